// SPDX-License-Identifier: GPL-2.0

//! What the device works on, by the numbers that it gives back.

use kernel::prelude::*;

/// A header of its own cache line: the device may own the neighbour's.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Header<const N: usize>([u8; N]);

/// Slots with a header of `N` bytes and, where they are occupied, a `T`.
///
/// Headers stay in place. What is occupied when the slots are dropped belongs to a device that was
/// not reset: it is never freed, and neither are the headers.
pub(crate) struct Slots<T, const N: usize> {
    headers: KVec<Header<N>>,
    contents: KVec<Option<T>>,
    /// Numbers of those that are empty.
    free: KVec<usize>,
}

impl<T, const N: usize> Slots<T, N> {
    /// Empty slots, as many as `count`. May sleep.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let mut contents = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut free = KVec::with_capacity(count, GFP_KERNEL)?;
        for slot in 0..count {
            contents.push_within_capacity(None).map_err(|_| ENOMEM)?;
            free.push_within_capacity(slot).map_err(|_| ENOMEM)?;
        }
        Ok(Self {
            headers: KVec::from_elem(Header([0; N]), count, GFP_KERNEL)?,
            contents,
            free,
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.contents.len()
    }

    pub(crate) fn occupied(&self) -> usize {
        self.contents.len().saturating_sub(self.free.len())
    }

    /// Takes an empty slot, to [occupy](Self::occupy) or to [give back](Self::give_back).
    pub(crate) fn take_empty(&mut self) -> Option<usize> {
        self.free.pop()
    }

    /// Gives back a slot that was taken and stayed empty.
    pub(crate) fn give_back(&mut self, slot: usize) {
        let _ = self.free.push_within_capacity(slot);
    }

    pub(crate) fn occupy(&mut self, slot: usize, content: T) {
        if let Some(place) = self.contents.as_mut_slice().get_mut(slot) {
            *place = Some(content);
        }
    }

    /// Empties a slot. The number may be one that the device has made up.
    pub(crate) fn vacate(&mut self, slot: usize) -> Option<T> {
        let content = self.contents.as_mut_slice().get_mut(slot)?.take()?;
        self.give_back(slot);
        Some(content)
    }

    /// Empties all of them, of a device that was reset, for good.
    pub(crate) fn clear(&mut self, mut f: impl FnMut(T)) {
        let contents = self.contents.as_mut_slice().iter_mut();
        contents.filter_map(Option::take).for_each(&mut f);
        self.contents.clear();
        self.free.clear();
    }

    pub(crate) fn header_mut(&mut self, slot: usize) -> Option<&mut [u8; N]> {
        let header = self.headers.as_mut_slice().get_mut(slot)?;
        Some(&mut header.0)
    }

    /// A copy of a header.
    pub(crate) fn header(&self, slot: usize) -> Option<[u8; N]> {
        let header = self.headers.as_slice().get(slot)?;
        // SAFETY: The slot is valid; a volatile read, because a bad device may be writing to it.
        Some(unsafe { core::ptr::from_ref(&header.0).read_volatile() })
    }
}

impl<T, const N: usize> Drop for Slots<T, N> {
    fn drop(&mut self) {
        if self.occupied() > 0 {
            core::mem::forget(core::mem::take(&mut self.contents));
            core::mem::forget(core::mem::take(&mut self.headers));
        }
    }
}
