// SPDX-License-Identifier: GPL-2.0

//! Physically contiguous buffers for payload.

use kernel::{
    alloc::{flags, AllocError, Flags},
    iov::IovIterSource,
    page::PAGE_SIZE,
    prelude::*,
};

/// A buffer in one physically contiguous piece, filled from the front.
///
/// All of it is initialized memory: a device that does not write what it says it wrote reveals
/// zeroes, or what this buffer held before.
pub struct Run {
    bytes: KVec<u8>,
    filled: usize,
}

impl Run {
    /// A run without memory.
    pub const fn empty() -> Self {
        Self {
            bytes: KVec::new(),
            filled: 0,
        }
    }

    /// A run with room for `capacity` bytes. More than a page is had without effort, or not at all.
    pub fn new(capacity: usize, gfp: Flags) -> Result<Self, AllocError> {
        let gfp = if capacity > PAGE_SIZE {
            flags::GFP_NOWAIT | flags::__GFP_NOWARN
        } else {
            gfp
        };
        let mut bytes = KVec::with_capacity(capacity, gfp | flags::__GFP_ZERO)?;
        // SAFETY: That many bytes were allocated, and all of them are zero.
        unsafe { bytes.inc_len(capacity) };
        Ok(Self { bytes, filled: 0 })
    }

    /// A run filled with the next `len` bytes of `source`. May sleep. `EFAULT` if they cannot be
    /// read.
    pub fn copy_of(source: &mut IovIterSource<'_>, len: usize) -> Result<Self> {
        let mut bytes = KVec::with_capacity(len, GFP_KERNEL | flags::__GFP_NOWARN)?;
        let room = bytes.spare_capacity_mut().get_mut(..len).ok_or(ENOMEM)?;
        if source.copy_from_iter_raw(room).len() < len {
            return Err(EFAULT);
        }
        // SAFETY: That many bytes were initialized just now, within the capacity.
        unsafe { bytes.inc_len(len) };
        Ok(Self { bytes, filled: len })
    }

    /// Bytes there is room for in all.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory that it takes: allocators round up, to the next power of two at most.
    #[inline]
    pub fn held(&self) -> usize {
        let rounded = self.capacity().checked_next_power_of_two();
        rounded.unwrap_or(usize::MAX)
    }

    /// Bytes that are filled.
    #[inline]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The filled part.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.as_slice().get(..self.filled).unwrap_or(&[])
    }

    /// The part that is not filled; [`Run::fill`] says how much of it has become so.
    pub fn room_mut(&mut self) -> &mut [u8] {
        self.bytes
            .as_mut_slice()
            .get_mut(self.filled..)
            .unwrap_or(&mut [])
    }

    /// The next `len` bytes are filled. `EINVAL` if there is no room for them.
    pub fn fill(&mut self, len: usize) -> Result {
        let filled = self
            .filled
            .checked_add(len)
            .filter(|filled| *filled <= self.capacity());
        self.filled = filled.ok_or(EINVAL)?;
        Ok(())
    }

    /// Fills as much of `bytes` in as there is room for; returns the rest.
    pub fn append<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let room = self.room_mut();
        let len = room.len().min(bytes.len());
        let (now, rest) = bytes.split_at_checked(len).unwrap_or((&[], bytes));
        // SAFETY: There is room for as many bytes, and nobody else has this memory.
        // `copy_from_slice()` would compare the lengths once more, and panic.
        unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), room.as_mut_ptr(), now.len()) };
        self.filled = self.filled.saturating_add(now.len());
        rest
    }

    /// Nothing is filled any more.
    pub fn clear(&mut self) {
        self.filled = 0;
    }
}
