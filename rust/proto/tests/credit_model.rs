// SPDX-License-Identifier: GPL-2.0

//! Two endpoints over a lossless, ordered link, under an adversarial schedule.
//!
//! Whatever is written, read, delivered and resized in which order: no receiver ever sees an
//! overrun, every byte arrives once and in order, and as long as there is data and a reader who
//! wants it, something moves.

use std::collections::VecDeque;

use proptest::prelude::*;
use vsock_proto::{
    handle_packet, Action, Address, Advertisement, Facts, Header, Kind, MessageFlags, Operation,
    Phase, ReceiveCredit, TransmitCredit, HEADER_LEN,
};

/// A header as on the wire, and its payload.
type Packet = ([u8; HEADER_LEN], Vec<u8>);

/// What each byte of a stream must be, so that none can be lost, doubled or swapped unnoticed.
fn pattern(position: usize) -> u8 {
    (position ^ (position >> 8) ^ (position >> 16)) as u8
}

struct Endpoint {
    kind: Kind,
    address: Address,
    tx: TransmitCredit,
    rx: ReceiveCredit,
    /// Packets on their way to this endpoint.
    inbox: VecDeque<Packet>,
    /// Lengths of the messages that are left to send; a stream is one long message.
    unsent: VecDeque<usize>,
    /// Bytes that were sent, and bytes that the application read.
    sent: usize,
    read: usize,
    /// Bytes received and not read, and where messages end in them.
    queue: VecDeque<u8>,
    ends: VecDeque<usize>,
    /// `SO_RCVLOWAT`.
    low_water: u32,
}

impl Endpoint {
    fn new(kind: Kind, cid: u32, window: u32, unsent: Vec<usize>) -> Self {
        Self {
            kind,
            address: Address { cid, port: 1 },
            tx: TransmitCredit::new(window),
            rx: ReceiveCredit::new(window),
            inbox: VecDeque::new(),
            unsent: unsent.into(),
            sent: 0,
            read: 0,
            queue: VecDeque::new(),
            ends: VecDeque::new(),
            low_water: 1,
        }
    }

    /// Sends up to `most` bytes of the first message, as far as credit goes.
    fn write(&mut self, peer: &mut Self, most: usize) -> bool {
        let Some(left) = self.unsent.front_mut() else {
            return false;
        };
        let wanted = most.min(*left);
        let granted = self.tx.take(wanted as u32) as usize;
        // An allocation may fail half way: what was granted and not sent is given back.
        let sent = granted - granted / 3;
        self.tx.give_back((granted - sent) as u32);
        if sent == 0 {
            return false;
        }
        *left -= sent;
        let mut flags = MessageFlags::NONE;
        if *left == 0 {
            self.unsent.pop_front();
            if self.kind == Kind::Seqpacket {
                flags = MessageFlags::END_OF_MESSAGE;
            }
        }
        let payload = (self.sent..self.sent + sent).map(pattern).collect();
        self.sent += sent;
        self.send(peer, Operation::ReadWrite, flags.bits(), payload);
        true
    }

    fn send(&mut self, peer: &mut Self, operation: Operation, flags: u32, payload: Vec<u8>) {
        let Advertisement { buf_alloc, fwd_cnt } = self.rx.advertise();
        let header = Header {
            source: self.address,
            destination: peer.address,
            len: payload.len() as u32,
            kind: self.kind.to_wire(),
            operation,
            flags,
            buf_alloc,
            fwd_cnt,
        };
        peer.inbox.push_back((header.encode(), payload));
    }

    /// Receives the next packet.
    fn deliver(&mut self, peer: &mut Self) -> bool {
        let Some((bytes, payload)) = self.inbox.pop_front() else {
            return false;
        };
        let header = Header::parse(&bytes).unwrap();
        self.tx.handle_peer(header.buf_alloc, header.fwd_cnt);
        match handle_packet(Phase::Established, &Facts::default(), &header) {
            Action::Receive => self.receive(&header, payload),
            Action::SendCredit => self.send(peer, Operation::CreditUpdate, 0, Vec::new()),
            Action::WriteSpace => (),
            action => panic!("unexpected {action:?}"),
        }
        true
    }

    fn receive(&mut self, header: &Header, payload: Vec<u8>) {
        self.rx.handle_payload(header.len).expect("overrun");
        self.queue.extend(payload);
        if header
            .message_flags()
            .contains(MessageFlags::END_OF_MESSAGE)
        {
            self.ends.push_back(self.read + self.queue.len());
        }
    }

    /// What a reader gets who wants up to `most` bytes: a whole message, if there are messages.
    fn readable(&self, peer: &Self, most: usize) -> usize {
        match self.kind {
            Kind::Seqpacket => self.ends.front().map_or(0, |end| end - self.read),
            Kind::Stream => {
                // Nobody waits for more than will come, or for more than can be under way at once.
                let to_come = peer.sent + peer.unsent.iter().sum::<usize>() - self.read;
                let room = self.rx.window().min(peer.tx.capacity());
                let wanted = to_come.min(self.low_water.min(room) as usize);
                if self.queue.len() < wanted {
                    return 0;
                }
                most.min(self.queue.len())
            }
        }
    }

    fn read(&mut self, peer: &mut Self, most: usize) -> bool {
        let len = self.readable(peer, most);
        if len == 0 {
            return false;
        }
        for byte in self.queue.drain(..len) {
            assert_eq!(byte, pattern(self.read));
            self.read += 1;
        }
        self.ends.pop_front();
        self.rx.consume(len as u32);
        self.update(peer);
        true
    }

    /// Tells the peer about the window if it is time to.
    fn update(&mut self, peer: &mut Self) {
        let low_water = match self.kind {
            Kind::Stream => self.low_water,
            Kind::Seqpacket if self.ends.is_empty() => u32::MAX,
            Kind::Seqpacket => 0,
        };
        if self.rx.poll_update(low_water, self.tx.capacity()) {
            self.send(peer, Operation::CreditUpdate, 0, Vec::new());
        }
    }

    fn resize(&mut self, peer: &mut Self, window: u32) {
        self.tx.set_limit(window);
        if self.rx.set_window(window) {
            self.send(peer, Operation::CreditUpdate, 0, Vec::new());
        }
    }

    fn set_low_water(&mut self, peer: &mut Self, low_water: u32) {
        self.low_water = low_water;
        self.update(peer);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Read(usize),
    Deliver,
    AskForCredit,
    Resize(u32),
    SetLowWater(u32),
}

fn perform(step: Step, this: &mut Endpoint, peer: &mut Endpoint) {
    match step {
        Step::Write(most) => drop(this.write(peer, most)),
        Step::Read(most) => drop(this.read(peer, most)),
        Step::Deliver => drop(this.deliver(peer)),
        Step::AskForCredit => this.send(peer, Operation::CreditRequest, 0, Vec::new()),
        Step::Resize(window) => this.resize(peer, window),
        Step::SetLowWater(low_water) => this.set_low_water(peer, low_water),
    }
}

/// Runs the schedule, then lets everybody go on until nothing moves any more.
fn run(mut a: Endpoint, mut b: Endpoint, schedule: Vec<(bool, Step)>) {
    let totals = [&a, &b].map(|end| end.unsent.iter().sum::<usize>());
    a.send(&mut b, Operation::CreditUpdate, 0, Vec::new());
    b.send(&mut a, Operation::CreditUpdate, 0, Vec::new());
    for (first, step) in schedule {
        if first {
            perform(step, &mut a, &mut b);
        } else {
            perform(step, &mut b, &mut a);
        }
    }
    while settle(&mut a, &mut b) | settle(&mut b, &mut a) {}
    assert_eq!([b.read, a.read], totals, "bytes are stuck");
}

fn settle(this: &mut Endpoint, peer: &mut Endpoint) -> bool {
    this.deliver(peer) | this.read(peer, 1000) | this.write(peer, 1000)
}

/// Window sizes from one byte to more than there is to send.
fn window() -> impl Strategy<Value = u32> {
    prop_oneof![1..16u32, 64..8192u32, Just(1 << 20), Just(u32::MAX)]
}

fn schedule(step: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<(bool, Step)>> {
    proptest::collection::vec((any::<bool>(), step), 0..300)
}

/// Steps that leave the sizes alone.
fn transfer() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..9000usize).prop_map(Step::Write),
        3 => (1..9000usize).prop_map(Step::Read),
        6 => Just(Step::Deliver),
        1 => Just(Step::AskForCredit),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => transfer(),
        1 => window().prop_map(Step::Resize),
        1 => window().prop_map(Step::SetLowWater),
    ]
}

proptest! {
    #[test]
    fn a_stream_arrives_whole_whatever_the_schedule(
        windows in (window(), window()),
        lengths in (0..20_000usize, 0..20_000usize),
        schedule in schedule(any_step()),
    ) {
        let a = Endpoint::new(Kind::Stream, 3, windows.0, vec![lengths.0]);
        let b = Endpoint::new(Kind::Stream, 2, windows.1, vec![lengths.1]);
        run(a, b, schedule);
    }

    #[test]
    fn messages_up_to_the_window_arrive_whole_whatever_the_schedule(
        window in 64..8192u32,
        fractions in proptest::collection::vec(1..=64usize, 0..20),
        schedule in schedule(transfer()),
    ) {
        let messages = fractions.iter().map(|part| window as usize * part / 64).collect();
        let a = Endpoint::new(Kind::Seqpacket, 3, window, messages);
        let b = Endpoint::new(Kind::Seqpacket, 2, window, Vec::new());
        run(a, b, schedule);
    }
}

#[test]
fn a_message_as_large_as_the_window_gets_through_behind_a_small_one() {
    let a = Endpoint::new(Kind::Seqpacket, 3, 262_144, vec![1000, 262_144]);
    let b = Endpoint::new(Kind::Seqpacket, 2, 262_144, Vec::new());
    run(a, b, Vec::new());
}
