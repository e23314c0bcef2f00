// SPDX-License-Identifier: GPL-2.0

//! Credit: nobody sends more than the other side has room for (section 5.10.6.3).
//!
//! Every header tells its receiver two numbers about its sender: `buf_alloc`, the bytes of its
//! receive window, and `fwd_cnt`, the payload bytes its application has taken so far. Their sum is
//! the right edge: the position in the stream up to which the receiver may send.
//!
//! The two directions share nothing, so that each can have its own lock. C keeps both in
//! `struct virtio_vsock_sock`, under `tx_lock` and `rx_lock`.

use crate::count::Count;

/// Bytes consumed that are told to the peer at the latest, however large the window.
///
/// Half of what a peer sends at once ([`MAX_PAYLOAD`](crate::MAX_PAYLOAD)): a sender that has used
/// up a large window gets it back in pieces that are worth a packet.
const MAX_UPDATE_STEP: u32 = 256 * 1024;
/// A reader that waits tells of room in smaller steps: so many of them are one.
const STARVING_STEPS: u32 = 8;

/// What a received header did to the room for sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreditChange {
    /// There was none and now there is: a blocked writer can go on.
    pub opened: bool,
    /// Bytes by which it grew; 0 if it shrank.
    pub grown_by: u32,
}

impl CreditChange {
    /// Whether writers have to be woken, of whom `capacity` bytes may be in flight
    /// ([`TransmitCredit::capacity`]).
    ///
    /// A writer waits for room of any size, a stream in the kernel for more of it: telling them of
    /// each byte would make them send a byte at a time.
    #[inline]
    pub const fn wakes_writers(self, capacity: u32) -> bool {
        self.opened || (self.grown_by > 0 && self.grown_by >= capacity / 4)
    }
}

/// The room that the peer has for what we send.
///
/// # Invariants
///
/// `peer_fwd_cnt` is never past `tx_cnt`: their distance is the bytes in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TransmitCredit {
    /// Payload bytes granted for sending so far.
    tx_cnt: Count,
    /// Payload bytes that the peer says it has taken out of its window.
    peer_fwd_cnt: Count,
    /// Bytes of the peer's window, as it says.
    peer_buf_alloc: u32,
    /// Bytes that we let be in flight, whatever the peer says.
    limit: u32,
}

impl TransmitCredit {
    /// A connection on which nothing was sent, to a peer that has not spoken: there is no room.
    ///
    /// `local_window` is the size in bytes of our own receive window. It limits the peer's as
    /// well: what is in flight occupies our memory, and a peer may claim a window of 4 GiB
    /// (`virtio_transport_tx_buf_size()`). The price, as in C: a peer that waits for more bytes than
    /// this (`SO_RCVLOWAT`) waits for ever.
    pub const fn new(local_window: u32) -> Self {
        Self {
            tx_cnt: Count::ZERO,
            peer_fwd_cnt: Count::ZERO,
            peer_buf_alloc: 0,
            limit: local_window,
        }
    }

    /// Takes in the credit fields of a received header: of every one, not only of a credit update
    /// (`virtio_transport_space_update()`).
    ///
    /// A `fwd_cnt` can only move forward, and not past what was sent. A header that says otherwise
    /// was overtaken by a newer one, or its sender lies: it changes nothing. C takes it over, and
    /// computes its window from it until the next header comes.
    #[inline]
    pub fn handle_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) -> CreditChange {
        let before = self.available();
        let fwd_cnt = Count::from_wire(fwd_cnt);
        if fwd_cnt.since(self.peer_fwd_cnt) <= self.in_flight() {
            self.peer_fwd_cnt = fwd_cnt;
            self.peer_buf_alloc = buf_alloc;
        }
        self.change_since(before)
    }

    /// Follows a change of our own window, see [`new()`](Self::new).
    ///
    /// That may be all a blocked writer waits for: the peer, which has room, has nothing to say.
    #[inline]
    pub fn set_limit(&mut self, local_window: u32) -> CreditChange {
        let before = self.available();
        self.limit = local_window;
        self.change_since(before)
    }

    fn change_since(&self, before: u32) -> CreditChange {
        let after = self.available();
        CreditChange {
            opened: before == 0 && after > 0,
            grown_by: after.saturating_sub(before),
        }
    }

    /// Bytes that may be sent now (`virtio_transport_has_space()`).
    #[inline]
    pub fn available(&self) -> u32 {
        // A window may shrink below what is in flight: then there is no room, not a lot of it.
        self.capacity().saturating_sub(self.in_flight())
    }

    /// Bytes that may ever be in flight at once: a longer message cannot be sent (`EMSGSIZE`).
    #[inline]
    pub fn capacity(&self) -> u32 {
        self.peer_buf_alloc.min(self.limit)
    }

    /// Takes room for up to `wanted` bytes that are about to be sent, and returns how many were
    /// granted (`virtio_transport_get_credit()`).
    #[inline]
    pub fn take(&mut self, wanted: u32) -> u32 {
        let granted = wanted.min(self.available());
        self.tx_cnt = self.tx_cnt.plus(granted);
        granted
    }

    /// Gives back `bytes` that were granted and not sent (`virtio_transport_put_credit()`).
    #[inline]
    pub fn give_back(&mut self, bytes: u32) {
        // INVARIANT: a peer that has acknowledged what it was not sent keeps what it has got.
        self.tx_cnt = self.tx_cnt.minus(bytes.min(self.in_flight()));
    }

    /// Bytes granted that the peer has not taken out of its window yet.
    #[inline]
    fn in_flight(&self) -> u32 {
        self.tx_cnt.since(self.peer_fwd_cnt)
    }
}

/// The peer sent more than it was given room for: the connection has to end (`ENOBUFS`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overrun;

/// What an outgoing header says about the room on this side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Advertisement {
    /// Bytes of the window, used and free.
    pub buf_alloc: u32,
    /// Payload bytes that the application has taken so far, wrapping.
    pub fwd_cnt: u32,
}

/// What has to be told to the peer of the room that we have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Update {
    /// Nothing.
    None,
    /// In a while: it has room for what the reader waits for.
    Soon,
    /// Something it may be waiting for.
    Now,
}

/// The room that we have for what the peer sends.
///
/// # Invariants
///
/// `queued` is at most the larger of `window` and `promised`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReceiveCredit {
    /// Bytes of the window, used and free (`buf_alloc`).
    window: u32,
    /// Payload bytes that the application has taken so far.
    fwd_cnt: Count,
    /// Bytes that were received and not taken yet (`rx_bytes`).
    queued: u32,
    /// Distance from `fwd_cnt` to the highest right edge that was ever advertised. A peer that
    /// relied on it is right even if the window has shrunk since.
    promised: u32,
    /// What the peer was told last.
    advertised: Advertisement,
    /// Bytes of room of which it was told [soon](Update::Soon), since it was told of any
    /// [now](Update::Now).
    deferred: u32,
}

impl ReceiveCredit {
    /// An empty window of `window` bytes.
    ///
    /// It counts as advertised: the packet that opens the connection carries it.
    pub const fn new(window: u32) -> Self {
        Self {
            window,
            fwd_cnt: Count::ZERO,
            queued: 0,
            promised: 0,
            advertised: Advertisement {
                buf_alloc: window,
                fwd_cnt: Count::ZERO.to_wire(),
            },
            deferred: 0,
        }
    }

    /// Admits `len` bytes of received payload (`virtio_transport_inc_rx_pkt()`).
    ///
    /// # Errors
    ///
    /// [`Overrun`] if they fit neither into the window nor below an edge that was advertised;
    /// nothing has changed then.
    #[inline]
    pub fn handle_payload(&mut self, len: u32) -> Result<(), Overrun> {
        let queued = self.queued.checked_add(len).ok_or(Overrun)?;
        if queued > self.window.max(self.promised) {
            return Err(Overrun);
        }
        self.queued = queued;
        Ok(())
    }

    /// Takes back the `len` bytes that were admitted last: there was no memory to queue them.
    #[inline]
    pub fn refuse_payload(&mut self, len: u32) {
        self.queued = self.queued.saturating_sub(len);
    }

    /// Takes `bytes` out of the queue, because the application has read them or never will
    /// (`virtio_transport_dec_rx_pkt()`).
    ///
    /// They are free again at once. C frees whole packets only, so that there one unread byte
    /// holds up to 64 KiB of the window.
    #[inline]
    pub fn consume(&mut self, bytes: u32) {
        let bytes = bytes.min(self.queued);
        self.queued = self.queued.saturating_sub(bytes);
        self.promised = self.promised.saturating_sub(bytes);
        self.fwd_cnt = self.fwd_cnt.plus(bytes);
    }

    /// Bytes that were received and not consumed (`SIOCINQ`).
    #[inline]
    pub fn queued(&self) -> u32 {
        self.queued
    }

    /// Bytes of the window, used and free.
    #[inline]
    pub fn window(&self) -> u32 {
        self.window
    }

    /// What the header says that is about to be sent; from here on the peer knows it
    /// (`virtio_transport_inc_tx_pkt()`).
    ///
    /// Headers have to leave in the order of these calls: C peers believe the last one.
    #[inline]
    pub fn advertise(&mut self) -> Advertisement {
        self.promised = self.promised.max(self.window);
        self.advertised = Advertisement {
            buf_alloc: self.window,
            fwd_cnt: self.fwd_cnt.to_wire(),
        };
        self.advertised
    }

    /// What the peer was told last.
    #[inline]
    pub fn advertised(&self) -> Advertisement {
        self.advertised
    }

    /// The header that [`advertise()`](Self::advertise) was asked for did not leave: the peer was
    /// told `last` before it.
    #[inline]
    pub fn retract(&mut self, last: Advertisement) {
        self.advertised = last;
    }

    /// Whether, and how soon, the peer has to be told, by a packet of its own if there is no other.
    ///
    /// Room goes back in steps of half the window, 256 KiB at most: neither does the peer wait for
    /// the last byte, nor does it get a packet for each (silly window syndrome). But if fewer than
    /// `low_water` bytes are queued, the reader waits for the peer and the peer maybe for room, and
    /// anything is told: now, if it is an eighth of a step, or if by what it knows for sure the peer
    /// cannot send what the reader waits for; otherwise soon. `low_water` is `SO_RCVLOWAT` for a
    /// stream, and [`u32::MAX`] for a seqpacket socket that has no complete message: the rest of it
    /// may need every byte.
    ///
    /// `capacity` is [that](TransmitCredit::capacity) of the other direction: a Linux peer limits
    /// what it sends by its own window as well.
    ///
    /// To be asked after [`consume()`](Self::consume) and when `low_water` changes.
    #[inline]
    pub fn poll_update(&mut self, low_water: u32, capacity: u32) -> Update {
        let (window, news) = (self.window.min(capacity), self.unadvertised());
        let step = (window / 2).min(MAX_UPDATE_STEP);
        let unsure = self.deferred.saturating_add(news);
        let is_starving = self.queued < low_water;
        let is_needed = unsure >= step
            || (is_starving && unsure >= step / STARVING_STEPS)
            || window.saturating_sub(unsure) < low_water;
        let update = match (self.window != self.advertised.buf_alloc, news > 0) {
            (true, _) => Update::Now,
            (false, true) if is_needed => Update::Now,
            (false, true) if is_starving => Update::Soon,
            _ => Update::None,
        };
        match update {
            Update::None => {}
            Update::Soon => self.deferred = unsure,
            Update::Now => self.deferred = 0,
        }
        update
    }

    /// Changes the size of the window to `window` bytes (`virtio_transport_notify_buffer_size()`).
    ///
    /// Returns whether that is news for the peer, who has to be told at once. If the window shrinks
    /// while a message that needs the old one is under way, that message never ends; C has this
    /// limit too.
    #[inline]
    pub fn set_window(&mut self, window: u32) -> bool {
        let changed = self.window != window;
        self.window = window;
        changed
    }

    /// Bytes consumed that the peer does not know of.
    #[inline]
    fn unadvertised(&self) -> u32 {
        self.fwd_cnt
            .since(Count::from_wire(self.advertised.fwd_cnt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u32 = 256 * 1024;

    /// Room for sending to a peer that has advertised an empty window of [`WINDOW`] bytes.
    fn sender() -> TransmitCredit {
        let mut credit = TransmitCredit::new(WINDOW);
        credit.handle_peer(WINDOW, 0);
        credit
    }

    /// Room for receiving that was advertised to the peer.
    fn receiver(window: u32) -> ReceiveCredit {
        let mut credit = ReceiveCredit::new(window);
        credit.advertise();
        credit
    }

    #[test]
    fn nothing_is_sent_before_the_peer_has_spoken() {
        let mut credit = TransmitCredit::new(WINDOW);
        assert_eq!(credit.take(1), 0);
        assert_eq!(credit.capacity(), 0);
    }

    #[test]
    fn the_first_header_opens_the_window() {
        let change = TransmitCredit::new(WINDOW).handle_peer(1000, 0);
        assert!(change.opened);
        assert_eq!(change.grown_by, 1000);
    }

    #[test]
    fn a_grant_is_what_is_left_of_the_window() {
        let mut credit = sender();
        assert_eq!(credit.take(WINDOW - 10), WINDOW - 10);
        assert_eq!(credit.take(11), 10);
        assert_eq!(credit.take(1), 0);
    }

    #[test]
    fn what_was_not_sent_can_be_given_back() {
        let mut credit = sender();
        credit.take(WINDOW);
        credit.give_back(7);
        assert_eq!(credit.available(), 7);
    }

    #[test]
    fn a_window_that_shrinks_with_bytes_in_flight_is_shut() {
        let mut credit = sender();
        credit.take(1000);
        let change = credit.handle_peer(999, 0);
        assert_eq!(
            change,
            CreditChange {
                opened: false,
                grown_by: 0
            }
        );
        assert_eq!(credit.available(), 0);
        assert!(credit.handle_peer(999, 1000).opened);
        assert_eq!(credit.available(), 999);
    }

    #[test]
    fn the_own_window_limits_a_peer_that_promises_four_gigabytes() {
        let mut credit = sender();
        credit.handle_peer(u32::MAX, 0);
        assert_eq!(credit.capacity(), WINDOW);
        assert_eq!(credit.take(u32::MAX), WINDOW);
        credit.set_limit(WINDOW + 5);
        assert_eq!(credit.available(), 5);
        credit.set_limit(0);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn a_writer_that_its_own_window_had_stopped_is_woken_when_that_grows() {
        let mut credit = TransmitCredit::new(100);
        credit.handle_peer(WINDOW, 0);
        credit.take(100);
        let change = credit.set_limit(1000);
        assert!(change.wakes_writers(credit.capacity()));
        // What comes later does not, so that nothing else would.
        let change = credit.handle_peer(WINDOW, 100);
        assert!(!change.wakes_writers(credit.capacity()));
        assert!(!credit.set_limit(10).wakes_writers(10));
    }

    #[test]
    fn a_header_that_was_overtaken_changes_nothing() {
        let mut credit = sender();
        credit.take(100);
        credit.handle_peer(WINDOW, 100);
        let before = credit.clone();
        credit.handle_peer(1, 50);
        assert_eq!(credit, before);
    }

    #[test]
    fn a_peer_cannot_have_taken_what_it_was_not_sent() {
        let mut credit = sender();
        credit.take(100);
        let before = credit.clone();
        credit.handle_peer(WINDOW, 101);
        assert_eq!(credit, before);
    }

    #[test]
    fn giving_back_what_the_peer_has_acknowledged_does_not_wrap() {
        let mut credit = sender();
        credit.take(100);
        credit.handle_peer(WINDOW, 100);
        credit.give_back(100);
        assert_eq!(credit.available(), WINDOW);
    }

    #[test]
    fn a_payload_beyond_the_window_is_an_overrun_and_changes_nothing() {
        let mut credit = receiver(100);
        credit.handle_payload(60).unwrap();
        let before = credit.clone();
        assert_eq!(credit.handle_payload(41), Err(Overrun));
        assert_eq!(credit.handle_payload(u32::MAX), Err(Overrun));
        assert_eq!(credit, before);
        assert_eq!(credit.handle_payload(40), Ok(()));
    }

    #[test]
    fn a_payload_that_was_refused_is_neither_queued_nor_consumed() {
        let mut credit = receiver(100);
        credit.handle_payload(60).unwrap();
        let before = credit.clone();
        credit.handle_payload(40).unwrap();
        credit.refuse_payload(40);
        assert_eq!(credit, before);
    }

    #[test]
    fn what_did_not_leave_has_to_be_told_again() {
        let mut credit = receiver(WINDOW);
        credit.handle_payload(WINDOW).unwrap();
        credit.consume(WINDOW);
        let last = credit.advertised();
        assert_eq!(credit.poll_update(0, WINDOW), Update::Now);
        credit.advertise();
        assert_eq!(credit.poll_update(0, WINDOW), Update::None);
        credit.retract(last);
        assert_eq!(credit.poll_update(0, WINDOW), Update::Now);
    }

    #[test]
    fn every_byte_that_is_consumed_is_free_again() {
        let mut credit = receiver(100);
        credit.handle_payload(100).unwrap();
        credit.consume(1);
        assert_eq!(
            credit.advertise(),
            Advertisement {
                buf_alloc: 100,
                fwd_cnt: 1
            }
        );
        assert_eq!(credit.handle_payload(2), Err(Overrun));
        assert_eq!(credit.handle_payload(1), Ok(()));
        assert_eq!(credit.queued(), 100);
    }

    #[test]
    fn a_sender_keeps_what_it_was_promised_when_the_window_shrinks() {
        let mut credit = receiver(1000);
        credit.handle_payload(400).unwrap();
        assert!(credit.set_window(10));
        credit.advertise();
        credit.consume(100);
        assert_eq!(credit.handle_payload(600), Ok(()));
        assert_eq!(credit.handle_payload(1), Err(Overrun));
        credit.consume(900);
        assert_eq!(credit.handle_payload(11), Err(Overrun));
        assert_eq!(credit.handle_payload(10), Ok(()));
    }

    #[test]
    fn the_largest_window_can_be_filled() {
        let mut credit = receiver(u32::MAX);
        assert_eq!(credit.handle_payload(u32::MAX), Ok(()));
        assert_eq!(credit.handle_payload(1), Err(Overrun));
        credit.consume(u32::MAX);
        assert_eq!(credit.poll_update(0, WINDOW), Update::Now);
        assert_eq!(credit.advertise().fwd_cnt, u32::MAX);
        assert_eq!(credit.handle_payload(u32::MAX), Ok(()));
        credit.consume(u32::MAX);
        assert_eq!(credit.advertise().fwd_cnt, u32::MAX - 1);
    }

    #[test]
    fn no_more_is_consumed_than_is_queued() {
        let mut credit = receiver(100);
        credit.handle_payload(5).unwrap();
        credit.consume(6);
        assert_eq!(credit.advertise().fwd_cnt, 5);
        assert_eq!(credit.queued(), 0);
    }

    /// How many bytes a reader takes out of a full window before the peer is told.
    fn step(window: u32) -> u32 {
        let mut credit = receiver(window);
        credit.handle_payload(window).unwrap();
        (1..=window)
            .find(|_| {
                credit.consume(1);
                credit.poll_update(0, u32::MAX) == Update::Now
            })
            .unwrap()
    }

    #[test]
    fn room_goes_back_in_halves_of_the_window_and_256_kib_at_most() {
        assert_eq!(step(1), 1);
        assert_eq!(step(400), 200);
        assert_eq!(step(512 * 1024), 256 * 1024);
        assert_eq!(step(4 * 1024 * 1024), 256 * 1024);
    }

    #[test]
    fn a_reader_that_waits_for_the_peer_tells_it_of_every_byte() {
        let mut credit = receiver(WINDOW);
        credit.handle_payload(1000).unwrap();
        assert_eq!(credit.poll_update(u32::MAX, WINDOW), Update::None);
        credit.consume(1);
        assert_eq!(credit.poll_update(999, WINDOW), Update::None);
        assert_eq!(credit.poll_update(1000, WINDOW), Update::Soon);
        credit.advertise();
        assert_eq!(credit.poll_update(1000, WINDOW), Update::None);
        credit.consume(1);
        assert_eq!(credit.poll_update(WINDOW, WINDOW), Update::Now);
    }

    #[test]
    fn a_peer_that_has_room_is_told_soon_and_for_sure_before_long() {
        const STEP: u32 = 16 * 1024;
        let mut credit = receiver(16 * STEP);
        for told in 1..=2 * STEP {
            credit.handle_payload(1).unwrap();
            credit.consume(1);
            let is_step = told % STEP == 0;
            let due = if is_step { Update::Now } else { Update::Soon };
            assert_eq!(credit.poll_update(1, u32::MAX), due);
            credit.advertise();
        }
    }

    #[test]
    fn a_peer_that_limits_itself_is_told_in_smaller_steps() {
        let mut credit = receiver(WINDOW);
        credit.handle_payload(20).unwrap();
        credit.consume(10);
        assert_eq!(credit.poll_update(1, 22), Update::None);
        assert_eq!(credit.poll_update(1, 20), Update::Now);
        assert_eq!(credit.poll_update(1, 0), Update::Now);
    }

    #[test]
    fn a_changed_window_is_news_until_it_is_advertised() {
        let mut credit = receiver(WINDOW);
        assert!(!credit.set_window(WINDOW));
        assert!(credit.set_window(WINDOW / 2));
        assert_eq!(credit.poll_update(0, WINDOW), Update::Now);
        credit.advertise();
        assert_eq!(credit.poll_update(u32::MAX, WINDOW), Update::None);
    }

    #[test]
    fn a_connection_outlives_the_wrap_of_its_counters() {
        let (mut tx, mut rx) = (sender(), receiver(WINDOW));
        for _ in 0..(1u64 << 32) / u64::from(WINDOW) + 3 {
            assert_eq!(tx.take(u32::MAX), WINDOW);
            rx.handle_payload(WINDOW).unwrap();
            rx.consume(WINDOW);
            assert_eq!(rx.poll_update(1, WINDOW), Update::Now);
            let Advertisement { buf_alloc, fwd_cnt } = rx.advertise();
            assert!(tx.handle_peer(buf_alloc, fwd_cnt).opened);
        }
    }

    proptest! {
        #[test]
        fn no_peer_opens_more_than_the_own_window(
            limit: u32,
            steps in proptest::collection::vec(any::<(u32, u32, u32, u32)>(), 0..50),
        ) {
            let mut credit = TransmitCredit::new(limit);
            for (buf_alloc, fwd_cnt, wanted, unsent) in steps {
                let before = credit.available();
                let change = credit.handle_peer(buf_alloc, fwd_cnt);
                let after = credit.available();
                prop_assert_eq!(change.opened, before == 0 && after > 0);
                prop_assert_eq!(change.grown_by, after.saturating_sub(before));
                let granted = credit.take(wanted);
                prop_assert!(granted <= wanted && granted <= after);
                credit.give_back(unsent.min(granted));
                prop_assert!(credit.available() <= credit.capacity());
                prop_assert!(credit.capacity() <= limit);
            }
        }

        #[test]
        fn no_peer_fills_more_than_the_largest_window_it_was_given(
            windows in proptest::collection::vec(any::<u32>(), 1..10),
            steps in proptest::collection::vec(any::<(u8, u32, u32)>(), 0..50),
        ) {
            let largest = windows.iter().copied().max().unwrap();
            let mut credit = ReceiveCredit::new(windows[0]);
            for (choice, len, taken) in steps {
                credit.set_window(windows[usize::from(choice) % windows.len()]);
                if choice % 3 == 0 {
                    credit.advertise();
                }
                let before = credit.clone();
                if credit.handle_payload(len).is_err() {
                    prop_assert_eq!(&credit, &before);
                }
                prop_assert!(credit.queued() <= largest);
                credit.consume(taken);
            }
        }
    }
}
