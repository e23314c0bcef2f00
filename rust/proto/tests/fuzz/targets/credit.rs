// SPDX-License-Identifier: GPL-2.0

//! Credit beside counters of 64 bits that never wrap, with a peer that may say anything.

use super::bytes::Bytes;
use vsock_proto::{CreditChange, ReceiveCredit, TransmitCredit, Update};

const SMALL: u32 = 1000;

// What an operation is by its byte, modulo 8.
const HEAR: u8 = 0;
const TAKE: u8 = 1;
const GIVE_BACK: u8 = 2;
const RESIZE: u8 = 3;
const RECEIVE: u8 = 4;
const CONSUME: u8 = 5;
const ADVERTISE: u8 = 6;
const ASK: u8 = 7;

/// An operation and its numbers.
type Operation = (u8, u32, u32);

#[rustfmt::skip]
const RUNS: [&[Operation]; 4] = [
    &[(HEAR, 1000, 0), (TAKE, 400, 0), (TAKE, 700, 0), (GIVE_BACK, 100, 0), (HEAR, 500, 400), (TAKE, 9, 0)],
    &[(RECEIVE, 600, 0), (CONSUME, 300, 0), (ASK, 1, 1000), (ADVERTISE, 0, 0), (RECEIVE, 700, 0), (RECEIVE, 1, 0)],
    &[(ADVERTISE, 0, 0), (RESIZE, 10, 0), (RECEIVE, 1000, 0), (CONSUME, 1000, 0), (ASK, 0, 10), (RECEIVE, 11, 0)],
    &[(HEAR, u32::MAX, 0), (RESIZE, u32::MAX, 0), (TAKE, u32::MAX, 0), (HEAR, u32::MAX, u32::MAX)],
];

/// A window, then operations of a byte and two numbers.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |operations: &[Operation]| {
        let mut seed = SMALL.to_le_bytes().to_vec();
        for (operation, first, second) in operations {
            seed.push(*operation);
            seed.extend(first.to_le_bytes());
            seed.extend(second.to_le_bytes());
        }
        seed
    };
    RUNS.map(seed).to_vec()
}

pub fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let window = input.u32();
    let (mut transmit, mut receive) = (Transmit::new(window), Receive::new(window));
    while !input.is_empty() {
        let (operation, first, second) = (input.u8() % 8, input.u32(), input.u32());
        match operation {
            HEAR => transmit.hear(first, second),
            TAKE => transmit.take(first),
            GIVE_BACK => transmit.give_back(first),
            RESIZE => {
                transmit.resize(first);
                receive.resize(first);
            }
            RECEIVE => receive.receive(first),
            CONSUME => receive.consume(first),
            ADVERTISE => receive.advertise(),
            ASK => receive.ask(first, second),
            _ => unreachable!("modulo 8"),
        }
        assert_eq!(transmit.credit.available(), transmit.available());
        assert_eq!(u64::from(receive.credit.queued()), receive.queued());
    }
}

/// Credit for sending, and positions in the stream we send, counted from its beginning.
struct Transmit {
    credit: TransmitCredit,
    sent: u64,
    acknowledged: u64,
    buf_alloc: u32,
    limit: u32,
}

impl Transmit {
    fn new(limit: u32) -> Self {
        Self {
            credit: TransmitCredit::new(limit),
            sent: 0,
            acknowledged: 0,
            buf_alloc: 0,
            limit,
        }
    }

    fn in_flight(&self) -> u64 {
        self.sent - self.acknowledged
    }

    fn available(&self) -> u32 {
        let capacity = u64::from(self.buf_alloc.min(self.limit));
        capacity.saturating_sub(self.in_flight()) as u32
    }

    fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        let before = self.available();
        let change = self.credit.handle_peer(buf_alloc, fwd_cnt);
        // The position between what was acknowledged and what was sent that ends in these bits.
        let news = u64::from(fwd_cnt.wrapping_sub(self.acknowledged as u32));
        if news <= self.in_flight() {
            self.acknowledged += news;
            self.buf_alloc = buf_alloc;
        }
        self.check_change(before, change);
    }

    fn resize(&mut self, limit: u32) {
        let before = self.available();
        let change = self.credit.set_limit(limit);
        self.limit = limit;
        self.check_change(before, change);
    }

    fn check_change(&self, before: u32, change: CreditChange) {
        let after = self.available();
        assert_eq!(change.opened, before == 0 && after > 0);
        assert_eq!(change.grown_by, after.max(before) - before);
    }

    fn take(&mut self, wanted: u32) {
        let granted = self.credit.take(wanted);
        assert_eq!(granted, wanted.min(self.available()));
        self.sent += u64::from(granted);
    }

    fn give_back(&mut self, bytes: u32) {
        self.credit.give_back(bytes);
        self.sent -= u64::from(bytes).min(self.in_flight());
    }
}

/// Credit for receiving, and positions in the stream we receive.
struct Receive {
    credit: ReceiveCredit,
    received: u64,
    read: u64,
    /// Up to where the peer was ever told that it may send, and what it was told last.
    edge: u64,
    told: (u32, u64),
    /// Bytes of which it was told soon.
    deferred: u64,
    window: u32,
}

impl Receive {
    fn new(window: u32) -> Self {
        Self {
            credit: ReceiveCredit::new(window),
            received: 0,
            read: 0,
            edge: 0,
            told: (window, 0),
            deferred: 0,
            window,
        }
    }

    fn queued(&self) -> u64 {
        self.received - self.read
    }

    fn end_of_window(&self) -> u64 {
        self.read + u64::from(self.window)
    }

    fn resize(&mut self, window: u32) {
        assert_eq!(self.credit.set_window(window), self.window != window);
        self.window = window;
    }

    fn receive(&mut self, len: u32) {
        let end = self.received + u64::from(len);
        let fits = end <= self.edge.max(self.end_of_window());
        let admitted = fits && end - self.read <= u64::from(u32::MAX);
        assert_eq!(self.credit.handle_payload(len).is_ok(), admitted);
        if admitted {
            self.received = end;
        }
    }

    fn consume(&mut self, bytes: u32) {
        self.credit.consume(bytes);
        self.read += u64::from(bytes).min(self.queued());
    }

    fn advertise(&mut self) {
        let told = self.credit.advertise();
        assert_eq!(
            (told.buf_alloc, told.fwd_cnt),
            (self.window, self.read as u32)
        );
        self.told = (self.window, self.read);
        self.edge = self.edge.max(self.end_of_window());
    }

    fn ask(&mut self, low_water: u32, capacity: u32) {
        let window = u64::from(self.window.min(capacity));
        let low_water = u64::from(low_water);
        let news = self.read - self.told.1;
        let unsure = (self.deferred + news).min(u64::from(u32::MAX));
        let is_out_of_reach = window.saturating_sub(unsure) < low_water;
        let is_starving = self.queued() < low_water;
        let step = (window / 2).min(256 * 1024);
        let is_large = unsure >= step || (is_starving && unsure >= step / 8);
        let due = match (self.window != self.told.0, news > 0) {
            (true, _) => Update::Now,
            (false, true) if is_large || is_out_of_reach => Update::Now,
            (false, true) if is_starving => Update::Soon,
            _ => Update::None,
        };
        assert_eq!(self.credit.poll_update(low_water as u32, capacity), due);
        self.deferred = match due {
            Update::None => self.deferred,
            Update::Soon => unsure,
            Update::Now => 0,
        };
    }
}
