// SPDX-License-Identifier: GPL-2.0
//! Packets, with anything in their headers.

use rand::Rng;

use super::{Villain, NEIGHBOUR, PORTS, SOCKETS};
use crate::device::TX;
use crate::guest::{Guest, PORT};
use crate::header::{self, Header, HOST, MAX_PAYLOAD};

/// What packets are for, as often as they are: connections shall not end at once.
const OPERATIONS: &[u16] = &[1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 7];

impl Villain {
    pub(super) fn header(&mut self, edgy: bool) -> Header {
        let mut header = Header {
            source_cid: self.guest.options.cid.into(),
            destination_cid: HOST,
            source_port: self.random.random_range(PORTS),
            destination_port: self.host_port(),
            len: 0,
            kind: self.random.random_range(1..=2),
            operation: self.one_of(OPERATIONS),
            flags: self.random.random_range(0..4),
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        };
        if self.random.random_bool(0.6) {
            self.aim(&mut header);
        }
        if !edgy {
            return header;
        }
        for _ in 0..self.random.random_range(1..4) {
            match self.random.random_range(0..9) {
                0 => header.source_cid = self.wide(),
                1 => header.destination_cid = self.wide(),
                2 => header.source_port = self.edge(),
                3 => header.destination_port = self.edge(),
                4 => header.kind = self.edge() as u16,
                5 => header.operation = self.edge() as u16,
                6 => header.flags = self.edge(),
                7 => header.buf_alloc = self.edge(),
                _ => header.fwd_cnt = self.edge(),
            }
        }
        header
    }

    /// At a connection that there is.
    fn aim(&mut self, header: &mut Header) {
        if self.random.random_bool(0.05) {
            let own = self.guest.options.cid;
            header.source_cid = self.one_of(&[own, NEIGHBOUR]).into();
            header.source_port = PORT;
            header.destination_port = self.neighbour;
            return;
        }
        let number = self.random.random_range(0..SOCKETS);
        let Some((kind, socket)) = self.sockets.get(number % self.sockets.len().max(1)) else {
            return;
        };
        if let (Ok(port), Ok(peer)) = (socket.port(), socket.peer()) {
            header.kind = Guest::kind_of(*kind);
            header.source_port = peer.port;
            header.destination_port = port;
        }
    }

    pub(super) fn wide(&mut self) -> u64 {
        let low = u64::from(self.edge());
        let own = u64::from(self.guest.options.cid);
        self.one_of(&[
            own,
            HOST,
            low,
            (low << 32) | own,
            (low << 32) | HOST,
            u64::MAX,
        ])
    }

    /// A packet that is well-formed, but for its header.
    pub(super) fn packet(&mut self, edgy: bool) {
        let mut header = self.header(edgy);
        let len = match self.random.random_range(0..10) {
            0 => self.edge().min(MAX_PAYLOAD as u32),
            1..=3 => self.random.random_range(0..9000),
            _ => self.random.random_range(0..100),
        };
        // C calls its own mistakes what has payload and is no data.
        let len = if header.operation == 5 { len } else { 0 };
        header.len = len;
        if edgy && self.random.random_bool(0.2) {
            header.len = self.edge();
        }
        let at = self.place();
        self.guest.memory.write(at, &header.encode());
        let whole = header::LEN as u32 + len;
        let cut = match self.random.random_range(0..4) {
            0 => header::LEN as u32,
            1 => self.random.random_range(1..whole.max(2)),
            _ => whole,
        };
        self.chain(
            TX,
            &[
                (at, cut, 0),
                (at + u64::from(cut), whole - cut.min(whole), 0),
            ],
        );
    }

    /// Packets that each cause a reply, which nobody takes.
    pub(super) fn flood(&mut self) {
        for _ in 0..200 {
            self.packet(false);
        }
    }
}
