// SPDX-License-Identifier: GPL-2.0

//! Queues of buffers that the device writes to.

use crate::{slots::Slots, Reset, Virtqueue};
use kernel::prelude::*;
use rvsock_bindings::{bindings, Run};

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
/// What is posted in the ring lies in the header and in the run of a slot that is occupied, and
/// neither is touched until the device has used it or was reset.
pub struct InQueue<const N: usize> {
    queue: Virtqueue,
    slots: Slots<Run, N>,
}

impl<const N: usize> InQueue<N> {
    /// A queue with a slot for each descriptor of its ring. May sleep.
    pub fn new(queue: Virtqueue) -> Result<Self> {
        let slots = Slots::new(queue.size())?;
        // INVARIANT: Nothing is posted.
        Ok(Self { queue, slots })
    }

    /// The queue itself.
    pub fn queue(&mut self) -> &mut Virtqueue {
        &mut self.queue
    }

    /// Buffers that are posted.
    pub fn posted(&self) -> usize {
        self.slots.occupied()
    }

    /// Posts a run, or only a header if it has no capacity. Gives it back if the ring is full.
    pub fn post(&mut self, mut run: Run) -> Result<(), Run> {
        let Some(slot) = self.slots.take_empty() else {
            return Err(run);
        };
        run.clear();
        if self.add(slot, &mut run).is_err() {
            self.slots.give_back(slot);
            return Err(run);
        }
        // INVARIANT: The slot is occupied from now on.
        self.slots.occupy(slot, run);
        Ok(())
    }

    fn add(&mut self, slot: usize, run: &mut Run) -> Result {
        let header = self.slots.header_mut(slot).ok_or(ENOSPC)?;
        let mut pieces: [bindings::kvec; 2] = core::array::from_fn(|_| pin_init::zeroed());
        let [first, second] = &mut pieces;
        first.iov_base = header.as_mut_ptr().cast();
        first.iov_len = N;
        let room = run.room_mut();
        second.iov_base = room.as_mut_ptr().cast();
        second.iov_len = room.len();
        let count = if room.is_empty() { 1 } else { 2 };
        let pieces = pieces.get(..count).ok_or(EINVAL)?;
        // SAFETY: Headers stay in place, and the run lies in an allocation of its own. By the type
        // invariants both stay untouched.
        unsafe { self.queue.add_in(pieces, slot) }
    }

    /// Takes a buffer that the device has filled.
    pub fn take_used(&mut self) -> Option<Filled<N>> {
        let (slot, written) = self.queue.take_used()?;
        let run = self.slots.vacate(slot)?;
        let header = self.slots.header(slot)?;
        Some(Filled {
            header,
            run,
            written,
        })
    }

    /// Gives up the queue of a device that was reset.
    pub fn give_up(mut self, reset: &Reset) {
        while self.queue.detach_unused(reset) {}
        self.slots.clear(drop);
    }
}
