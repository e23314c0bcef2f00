// SPDX-License-Identifier: GPL-2.0

//! Credit beside counters of 64 bits that never wrap, with a peer that may say anything.

use super::bytes::Bytes;
use vsock_proto::{ReceiveCredit, TransmitCredit};

/// Positions in the stream we send, counted from its beginning.
struct Sender {
    sent: u64,
    acknowledged: u64,
    buf_alloc: u32,
    limit: u32,
}

impl Sender {
    fn in_flight(&self) -> u64 {
        self.sent - self.acknowledged
    }

    fn available(&self) -> u32 {
        let capacity = u64::from(self.buf_alloc.min(self.limit));
        capacity.saturating_sub(self.in_flight()) as u32
    }

    fn handle_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        // The position between what was acknowledged and what was sent that ends in these bits.
        let news = u64::from(fwd_cnt.wrapping_sub(self.acknowledged as u32));
        if news <= self.in_flight() {
            self.acknowledged += news;
            self.buf_alloc = buf_alloc;
        }
    }
}

/// Positions in the stream we receive.
struct Receiver {
    received: u64,
    read: u64,
    /// Up to where the peer was ever told that it may send, and what it was told last.
    edge: u64,
    told: (u32, u64),
    window: u32,
}

impl Receiver {
    fn admits(&self, len: u32) -> bool {
        let end = self.received + u64::from(len);
        end <= self.edge.max(self.read + u64::from(self.window))
            && end - self.read <= u64::from(u32::MAX)
    }

    fn is_update_due(&self, low_water: u32, capacity: u32) -> bool {
        let step = u64::from((self.window.min(capacity) / 2).min(256 * 1024));
        let news = self.read - self.told.1;
        let starving = self.received - self.read < u64::from(low_water);
        (news > 0 && (news >= step || starving)) || self.window != self.told.0
    }
}

const SMALL: u32 = 1000;

/// A window, then operations of a byte and a number or two.
pub fn seeds() -> Vec<Vec<u8>> {
    let run = |operations: &[(u8, u32, u32)]| {
        let mut seed = SMALL.to_le_bytes().to_vec();
        for (operation, first, second) in operations {
            seed.push(*operation);
            seed.extend(first.to_le_bytes());
            seed.extend(second.to_le_bytes());
        }
        seed
    };
    vec![
        run(&[
            (0, 1000, 0),
            (1, 400, 0),
            (1, 700, 0),
            (2, 100, 0),
            (0, 500, 400),
            (1, 9, 0),
        ]),
        run(&[
            (4, 600, 0),
            (5, 300, 0),
            (7, 1, 1000),
            (6, 0, 0),
            (4, 700, 0),
            (4, 1, 0),
        ]),
        run(&[
            (6, 0, 0),
            (3, 10, 0),
            (4, 1000, 0),
            (5, 1000, 0),
            (7, 0, 10),
            (4, 11, 0),
        ]),
        run(&[
            (0, u32::MAX, 0),
            (3, u32::MAX, 0),
            (1, u32::MAX, 0),
            (0, u32::MAX, u32::MAX),
        ]),
    ]
}

pub fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let window = input.u32();
    let mut transmit = TransmitCredit::new(window);
    let mut receive = ReceiveCredit::new(window);
    let mut sender = Sender {
        sent: 0,
        acknowledged: 0,
        buf_alloc: 0,
        limit: window,
    };
    let mut receiver = Receiver {
        received: 0,
        read: 0,
        edge: 0,
        told: (window, 0),
        window,
    };
    while !input.is_empty() {
        let (operation, first, second) = (input.u8(), input.u32(), input.u32());
        if operation % 8 < 3 {
            send(&mut transmit, &mut sender, operation, first, second);
        } else {
            take_in(&mut receive, &mut receiver, operation, first, second);
        }
        if operation % 8 == 3 {
            let before = transmit.available();
            let change = transmit.set_limit(first);
            sender.limit = first;
            check_change(before, &transmit, change.opened, change.grown_by);
        }
        assert_eq!(transmit.available(), sender.available());
        let queued = receiver.received - receiver.read;
        assert_eq!(u64::from(receive.queued()), queued);
    }
}

fn check_change(before: u32, transmit: &TransmitCredit, opened: bool, grown_by: u32) {
    let after = transmit.available();
    assert_eq!(opened, before == 0 && after > 0);
    assert_eq!(
        i64::from(grown_by),
        (i64::from(after) - i64::from(before)).max(0)
    );
}

fn send(
    transmit: &mut TransmitCredit,
    sender: &mut Sender,
    operation: u8,
    first: u32,
    second: u32,
) {
    match operation % 8 {
        0 => {
            let before = transmit.available();
            let change = transmit.handle_peer(first, second);
            sender.handle_peer(first, second);
            check_change(before, transmit, change.opened, change.grown_by);
        }
        1 => {
            let granted = transmit.take(first);
            assert_eq!(granted, first.min(sender.available()));
            sender.sent += u64::from(granted);
        }
        _ => {
            transmit.give_back(first);
            sender.sent -= u64::from(first).min(sender.in_flight());
        }
    }
}

fn take_in(
    receive: &mut ReceiveCredit,
    receiver: &mut Receiver,
    operation: u8,
    first: u32,
    second: u32,
) {
    match operation % 8 {
        3 => {
            assert_eq!(receive.set_window(first), receiver.window != first);
            receiver.window = first;
        }
        4 => {
            let admitted = receive.handle_payload(first).is_ok();
            assert_eq!(admitted, receiver.admits(first));
            receiver.received += if admitted { u64::from(first) } else { 0 };
        }
        5 => {
            receive.consume(first);
            let queued = receiver.received - receiver.read;
            receiver.read += u64::from(first).min(queued);
        }
        6 => {
            let told = receive.advertise();
            assert_eq!(
                (told.buf_alloc, told.fwd_cnt),
                (receiver.window, receiver.read as u32)
            );
            receiver.told = (receiver.window, receiver.read);
            receiver.edge = receiver
                .edge
                .max(receiver.read + u64::from(receiver.window));
        }
        _ => assert_eq!(
            receive.poll_update(first, second),
            receiver.is_update_due(first, second)
        ),
    }
}
