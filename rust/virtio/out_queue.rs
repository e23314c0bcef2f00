// SPDX-License-Identifier: GPL-2.0

//! Queues of buffers that the device reads.

use crate::{Reset, Virtqueue};
use kernel::prelude::*;
use rvsock_bindings::{bindings, StableBytes};

/// Pieces of a buffer: a header, the head of an sk_buff, its fragments.
const MAX_PIECES: usize = bindings::MAX_SKB_FRAGS as usize + 2;

/// A header of its own cache line: the device may own the neighbour's.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct HeaderSlot<const N: usize>([u8; N]);

/// A queue of buffers with a header of `N` bytes, a payload `P`, and `C`, which just comes along.
///
/// # Invariants
///
/// What is posted in the ring lies in `headers` and in the payload of a slot that is occupied, and
/// neither is touched until the device has used it or was reset.
pub struct OutQueue<P: StableBytes, C, const N: usize> {
    queue: Virtqueue,
    headers: KVec<HeaderSlot<N>>,
    slots: KVec<Option<(Option<P>, C)>>,
    /// Numbers of the empty slots.
    free: KVec<usize>,
}

impl<P: StableBytes, C, const N: usize> OutQueue<P, C, N> {
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

    /// Whether something is posted.
    pub fn is_busy(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Whether half of the slots are occupied, or more.
    pub fn is_half_full(&self) -> bool {
        self.free.len() <= self.slots.len() / 2
    }

    /// Posts a buffer. Gives payload and companion back if the ring is full (`ENOSPC`), or cannot
    /// take that many pieces. Does not sleep.
    pub fn post(
        &mut self,
        header: [u8; N],
        payload: Option<P>,
        companion: C,
    ) -> Result<(), (Error, Option<P>, C)> {
        let Some(slot) = self.free.pop() else {
            return Err((ENOSPC, payload, companion));
        };
        match self.add(slot, header, payload.as_ref()) {
            Ok(()) => {
                // INVARIANT: The slot is occupied from now on.
                if let Some(place) = self.slots.as_mut_slice().get_mut(slot) {
                    *place = Some((payload, companion));
                }
                Ok(())
            }
            Err(error) => {
                let _ = self.free.push_within_capacity(slot);
                Err((error, payload, companion))
            }
        }
    }

    fn add(&mut self, slot: usize, header: [u8; N], payload: Option<&P>) -> Result {
        // Most payload is in one piece; the list of pieces is cleared for each packet.
        match payload.map_or(0, |payload| payload.pieces().count()) {
            0 | 1 => self.add_pieces::<2>(slot, header, payload),
            _ => self.add_pieces::<MAX_PIECES>(slot, header, payload),
        }
    }

    fn add_pieces<const MAX: usize>(
        &mut self,
        slot: usize,
        header: [u8; N],
        payload: Option<&P>,
    ) -> Result {
        let place = self.headers.as_mut_slice().get_mut(slot).ok_or(ENOSPC)?;
        place.0 = header;
        let mut pieces: [bindings::kvec; MAX] = core::array::from_fn(|_| pin_init::zeroed());
        let mut count = 0;
        let header = core::iter::once(place.0.as_slice());
        let payload = payload.into_iter().flat_map(StableBytes::pieces);
        for bytes in Iterator::chain(header, payload) {
            let piece = pieces.get_mut(count).ok_or(E2BIG)?;
            piece.iov_base = bytes.as_ptr().cast_mut().cast();
            piece.iov_len = bytes.len();
            count = count.saturating_add(1);
        }
        let pieces = pieces.get(..count).ok_or(E2BIG)?;
        // SAFETY: The header lies in an array that is not resized; the payload keeps its bytes in
        // place. By the type invariants both stay untouched.
        unsafe { self.queue.add_out(pieces, slot) }
    }

    /// Takes a buffer that the device has used.
    pub fn take_used(&mut self) -> Option<(Option<P>, C)> {
        let (slot, _) = self.queue.take_used()?;
        let content = self.slots.as_mut_slice().get_mut(slot)?.take()?;
        let _ = self.free.push_within_capacity(slot);
        Some(content)
    }

    /// Gives up the queue of a device that was reset; calls `f` with what was posted.
    pub fn give_up(mut self, reset: &Reset, mut f: impl FnMut(Option<P>, C)) {
        while self.queue.detach_unused(reset) {}
        for (payload, companion) in self
            .slots
            .as_mut_slice()
            .iter_mut()
            .filter_map(Option::take)
        {
            f(payload, companion);
        }
        self.free.clear();
        self.slots.clear();
    }
}

impl<P: StableBytes, C, const N: usize> Drop for OutQueue<P, C, N> {
    fn drop(&mut self) {
        // Not given up after a reset: the device may still read what is posted.
        for content in self
            .slots
            .as_mut_slice()
            .iter_mut()
            .filter_map(Option::take)
        {
            core::mem::forget(content);
        }
        if self.is_busy() {
            core::mem::forget(core::mem::take(&mut self.headers));
        }
    }
}
