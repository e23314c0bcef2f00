// SPDX-License-Identifier: GPL-2.0

//! Queues of buffers that the device writes to.

use crate::{Reset, Virtqueue};
use kernel::prelude::*;
use rvsock_bindings::{bindings, Run};

/// A header of its own cache line: the device may own the neighbour's.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct HeaderSlot<const N: usize>([u8; N]);

/// A buffer that the device has filled.
pub struct Filled<const N: usize> {
    /// A copy of the header: the device may still write to the original. Meaningless where the
    /// device wrote less than a header.
    pub header: [u8; N],
    /// The buffer for what follows the header, not counted as filled yet.
    pub run: Run,
    /// How many bytes the device says it wrote, header included. Not to be trusted.
    pub written: usize,
}

impl<const N: usize> Filled<N> {
    /// Counts the first `len` bytes after the header as filled. `EINVAL` if the device did not
    /// write that much, or could not have.
    pub fn fill(&mut self, len: usize) -> Result {
        let total = N.checked_add(len).ok_or(EINVAL)?;
        if total > self.written {
            return Err(EINVAL);
        }
        self.run.fill(len)
    }
}

/// A queue of buffers with a header of `N` bytes and a run of bytes, which may be empty.
///
/// # Invariants
///
/// What is posted in the ring lies in `headers` and in the run of a slot that is occupied, and
/// neither is touched until the device has used it or was reset.
pub struct InQueue<const N: usize> {
    queue: Virtqueue,
    headers: KVec<HeaderSlot<N>>,
    slots: KVec<Option<Run>>,
    /// Numbers of the empty slots.
    free: KVec<usize>,
}

impl<const N: usize> InQueue<N> {
    /// A queue with a slot for each descriptor of its ring. May sleep.
    pub fn new(queue: Virtqueue) -> Result<Self> {
        let size = queue.size();
        let mut slots = KVec::with_capacity(size, GFP_KERNEL)?;
        let mut free = KVec::with_capacity(size, GFP_KERNEL)?;
        for slot in 0..size {
            slots.push_within_capacity(None).map_err(|_| ENOMEM)?;
            free.push_within_capacity(slot).map_err(|_| ENOMEM)?;
        }
        let headers = KVec::from_elem(HeaderSlot([0; N]), size, GFP_KERNEL)?;
        // INVARIANT: Nothing is posted.
        Ok(Self {
            queue,
            headers,
            slots,
            free,
        })
    }

    /// The queue itself.
    pub fn queue(&mut self) -> &mut Virtqueue {
        &mut self.queue
    }

    /// Buffers that are posted.
    pub fn posted(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Posts a run, or only a header if it has no capacity. Gives it back if the ring is full. May
    /// sleep.
    pub fn post(&mut self, mut run: Run) -> Result<(), Run> {
        let Some(slot) = self.free.pop() else {
            return Err(run);
        };
        run.clear();
        if self.add(slot, &mut run).is_err() {
            let _ = self.free.push_within_capacity(slot);
            return Err(run);
        }
        // INVARIANT: The slot is occupied from now on.
        if let Some(place) = self.slots.as_mut_slice().get_mut(slot) {
            *place = Some(run);
        }
        Ok(())
    }

    fn add(&mut self, slot: usize, run: &mut Run) -> Result {
        let header = self.headers.as_mut_slice().get_mut(slot).ok_or(ENOSPC)?;
        let mut pieces: [bindings::kvec; 2] = core::array::from_fn(|_| pin_init::zeroed());
        let [first, second] = &mut pieces;
        first.iov_base = header.0.as_mut_ptr().cast();
        first.iov_len = N;
        let room = run.room_mut();
        second.iov_base = room.as_mut_ptr().cast();
        second.iov_len = room.len();
        let count = if room.is_empty() { 1 } else { 2 };
        let pieces = pieces.get(..count).ok_or(EINVAL)?;
        // SAFETY: The header lies in an array that is not resized, the run in an allocation of its
        // own. By the type invariants both stay untouched.
        unsafe { self.queue.add_in(pieces, slot) }
    }

    /// Takes a buffer that the device has filled.
    pub fn take_used(&mut self) -> Option<Filled<N>> {
        let (slot, written) = self.queue.take_used()?;
        let run = self.slots.as_mut_slice().get_mut(slot)?.take()?;
        let header = self.headers.as_slice().get(slot)?;
        // SAFETY: The slot is valid; a volatile read, because a bad device may be writing to it.
        let header = unsafe { core::ptr::from_ref(&header.0).read_volatile() };
        let _ = self.free.push_within_capacity(slot);
        Some(Filled {
            header,
            run,
            written,
        })
    }

    /// Gives up the queue of a device that was reset.
    pub fn give_up(mut self, reset: &Reset) {
        while self.queue.detach_unused(reset) {}
        self.slots.clear();
        self.free.clear();
    }
}

impl<const N: usize> Drop for InQueue<N> {
    fn drop(&mut self) {
        if self.posted() > 0 {
            // Not given up after a reset: the device may still write to what is posted.
            core::mem::forget(core::mem::take(&mut self.slots));
            core::mem::forget(core::mem::take(&mut self.headers));
        }
    }
}
