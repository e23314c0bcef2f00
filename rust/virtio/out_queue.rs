// SPDX-License-Identifier: GPL-2.0

//! Queues of buffers that the device reads.

use crate::{slots::Slots, Reset, Virtqueue};
use kernel::prelude::*;
use rvsock_bindings::{bindings, StableBytes};

/// Pieces of a buffer: a header, the head of an sk_buff, its fragments.
const MAX_PIECES: usize = bindings::MAX_SKB_FRAGS as usize + 2;

/// A queue of buffers with a header of `N` bytes, a payload `P`, and `C`, which just comes along.
///
/// # Invariants
///
/// What is posted in the ring lies in the header and in the payload of a slot that is occupied, and
/// neither is touched until the device has used it or was reset.
pub struct OutQueue<P: StableBytes, C, const N: usize> {
    queue: Virtqueue,
    slots: Slots<(Option<P>, C), N>,
}

impl<P: StableBytes, C, const N: usize> OutQueue<P, C, N> {
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

    /// Whether something is posted.
    pub fn is_busy(&self) -> bool {
        self.slots.occupied() > 0
    }

    /// Whether half of the slots are occupied, or more.
    pub fn is_half_full(&self) -> bool {
        self.slots.occupied() >= self.slots.count().div_ceil(2)
    }

    /// Posts a buffer. Gives payload and companion back if the ring is full (`ENOSPC`), or cannot
    /// take that many pieces. Does not sleep.
    pub fn post(
        &mut self,
        header: [u8; N],
        payload: Option<P>,
        companion: C,
    ) -> Result<(), (Error, Option<P>, C)> {
        let Some(slot) = self.slots.take_empty() else {
            return Err((ENOSPC, payload, companion));
        };
        match self.add(slot, header, payload.as_ref()) {
            Ok(()) => {
                // INVARIANT: The slot is occupied from now on.
                self.slots.occupy(slot, (payload, companion));
                Ok(())
            }
            Err(error) => {
                self.slots.give_back(slot);
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
        let place = self.slots.header_mut(slot).ok_or(ENOSPC)?;
        *place = header;
        let mut pieces: [bindings::kvec; MAX] = core::array::from_fn(|_| pin_init::zeroed());
        let mut count = 0;
        let header = core::iter::once(place.as_slice());
        let payload = payload.into_iter().flat_map(StableBytes::pieces);
        for bytes in Iterator::chain(header, payload) {
            let piece = pieces.get_mut(count).ok_or(E2BIG)?;
            piece.iov_base = bytes.as_ptr().cast_mut().cast();
            piece.iov_len = bytes.len();
            count = count.saturating_add(1);
        }
        let pieces = pieces.get(..count).ok_or(E2BIG)?;
        // SAFETY: Headers stay in place, and the payload keeps its bytes there. By the type
        // invariants both stay untouched.
        unsafe { self.queue.add_out(pieces, slot) }
    }

    /// Takes a buffer that the device has used.
    pub fn take_used(&mut self) -> Option<(Option<P>, C)> {
        let (slot, _) = self.queue.take_used()?;
        self.slots.vacate(slot)
    }

    /// Gives up the queue of a device that was reset; calls `f` with what was posted.
    pub fn give_up(mut self, reset: &Reset, mut f: impl FnMut(Option<P>, C)) {
        while self.queue.detach_unused(reset) {}
        self.slots
            .clear(|(payload, companion)| f(payload, companion));
    }
}
