// SPDX-License-Identifier: GPL-2.0

//! One end of a connection as far as credit goes: what the engine does with the values of this
//! crate, and an application that writes and reads.

use std::collections::VecDeque;

use vsock_proto::{
    handle_packet, Action, Address, Advertisement, CreditChange, Facts, Header, Kind, MessageFlags,
    Operation, Phase, ReceiveCredit, TransmitCredit, Update, HEADER_LEN,
};

/// A header as on the wire, and its payload.
type Packet = ([u8; HEADER_LEN], Vec<u8>);

/// What each byte of a stream must be, so that none can be lost, doubled or swapped unnoticed.
fn pattern(position: usize) -> u8 {
    (position ^ (position >> 8) ^ (position >> 16)) as u8
}

#[derive(Clone, Hash)]
pub struct Endpoint {
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
    /// The position up to which the peer was ever told that it may send.
    edge: usize,
    /// The writer found no room, and was not woken since.
    writer_sleeps: bool,
}

impl Endpoint {
    pub fn new(kind: Kind, cid: u32, window: u32, unsent: Vec<usize>) -> Self {
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
            edge: 0,
            writer_sleeps: false,
        }
    }

    /// Sends up to `most` bytes of the first message, as far as credit goes; without any, sleeps
    /// until somebody wakes it.
    fn write(&mut self, peer: &mut Self, most: usize) -> bool {
        let Some(left) = self.unsent.front_mut() else {
            return false;
        };
        if self.writer_sleeps {
            return false;
        }
        let wanted = most.min(*left);
        let granted = self.tx.take(wanted as u32) as usize;
        if granted == 0 {
            self.writer_sleeps = true;
            return true;
        }
        // An allocation may fail half way: what was granted and not sent is given back.
        let sent = granted - granted / 3;
        self.tx.give_back((granted - sent) as u32);
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
        self.edge = self.edge.max(self.read + self.rx.window() as usize);
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
        let change = self.tx.handle_peer(header.buf_alloc, header.fwd_cnt);
        self.wake_writer(change);
        match handle_packet(Phase::Established, &Facts::default(), &header) {
            Action::Receive => self.receive(&header, payload),
            Action::SendCredit => self.send(peer, Operation::CreditUpdate, 0, Vec::new()),
            Action::WriteSpace => (),
            action => panic!("unexpected {action:?}"),
        }
        true
    }

    fn wake_writer(&mut self, change: CreditChange) {
        if change.wakes_writers(self.tx.capacity()) {
            self.writer_sleeps = false;
        }
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
        if self.rx.poll_update(low_water, self.tx.capacity()) != Update::None {
            self.send(peer, Operation::CreditUpdate, 0, Vec::new());
        }
    }

    /// Sets `SO_VM_SOCKETS_BUFFER_SIZE`.
    fn resize(&mut self, peer: &mut Self, window: u32) {
        let change = self.tx.set_limit(window);
        self.wake_writer(change);
        if self.rx.set_window(window) {
            self.send(peer, Operation::CreditUpdate, 0, Vec::new());
        }
    }

    fn set_low_water(&mut self, peer: &mut Self, low_water: u32) {
        self.low_water = low_water;
        self.update(peer);
    }

    /// Tells the peer of the window, as the packets do that open a connection.
    pub fn announce(&mut self, peer: &mut Self) {
        self.send(peer, Operation::CreditUpdate, 0, Vec::new());
    }

    /// Tries a step; false if it cannot be taken now.
    pub fn perform(&mut self, peer: &mut Self, step: Step) -> bool {
        match step {
            Step::Write(most) => return self.write(peer, most),
            Step::Read(most) => return self.read(peer, most),
            Step::Deliver => return self.deliver(peer),
            Step::AskForCredit => self.send(peer, Operation::CreditRequest, 0, Vec::new()),
            Step::Resize(window) => self.resize(peer, window),
            Step::SetLowWater(low_water) => self.set_low_water(peer, low_water),
        }
        true
    }

    /// What holds at any time, whatever happened: nobody sent past the edge of the other's window.
    pub fn check(&self, peer: &Self) {
        assert!(peer.sent <= self.edge, "credit exceeds the window");
        assert!(self.queue.len() == self.rx.queued() as usize);
    }

    /// What holds when nothing moves any more.
    pub fn check_end(&self) {
        assert!(
            self.unsent.is_empty() && self.queue.is_empty(),
            "bytes are stuck"
        );
        assert!(self.inbox.is_empty());
    }

    /// Bytes that are still to be sent.
    pub fn left(&self) -> usize {
        self.unsent.iter().sum()
    }

    /// Bytes that the application has read.
    pub fn bytes_read(&self) -> usize {
        self.read
    }
}

/// What can happen at an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// The application writes up to so many bytes.
    Write(usize),
    /// The application reads up to so many bytes.
    Read(usize),
    /// The next packet arrives.
    Deliver,
    /// A credit request leaves; no Linux ever sends one.
    AskForCredit,
    /// The application sets the size of the window.
    Resize(u32),
    /// The application sets `SO_RCVLOWAT`.
    SetLowWater(u32),
}
