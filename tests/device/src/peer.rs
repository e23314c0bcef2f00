// SPDX-License-Identifier: GPL-2.0
//! One end of a connection as it should be, which holds the guest to the same.

use std::collections::VecDeque;

use anyhow::ensure;

use crate::device::Packet;
use crate::header::{
    Header, CREDIT_REQUEST, CREDIT_UPDATE, END_OF_MESSAGE, NOTHING_MORE, NO_SEND, RESPONSE, RST,
    RW, SEQPACKET, SHUTDOWN, STREAM,
};

/// The window of connections that the guest makes.
const WINDOW: u32 = 256 * 1024;

/// The end of a message in what was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boundary {
    /// Bytes that had arrived with it.
    pub end: u32,
    pub flags: u32,
}

pub struct Peer {
    pub kind: u16,
    pub is_connected: bool,
    /// It was reset, by either side.
    pub is_over: bool,
    /// What the guest has shut down.
    pub guest_shut: u32,
    /// Answer a shutdown of both directions with a reset, as it should be.
    pub answers_shutdown: bool,
    /// What has arrived and was not taken.
    pub received: VecDeque<u8>,
    pub boundaries: VecDeque<Boundary>,
    /// Packets of the guest with no payload: their operations.
    pub controls: Vec<u16>,
    /// Most descriptors that a packet came in.
    pub pieces: usize,
    window: u32,
    rx_cnt: u32,
    fwd_cnt: u32,
    /// The furthest that the guest was ever allowed to send.
    edge: u32,
    told: (u32, u32),
    tx_cnt: u32,
    /// What the guest said last of its window.
    pub guest_buf_alloc: u32,
    pub guest_fwd_cnt: u32,
}

impl Peer {
    /// For a connection that the guest asks for.
    pub fn new(request: &Header) -> Self {
        Self {
            is_connected: true,
            guest_buf_alloc: request.buf_alloc,
            guest_fwd_cnt: request.fwd_cnt,
            ..Self::connecting(request.kind, WINDOW)
        }
    }

    /// For a connection that we ask for.
    pub fn connecting(kind: u16, window: u32) -> Self {
        Self {
            kind,
            is_connected: false,
            is_over: false,
            guest_shut: 0,
            answers_shutdown: true,
            received: VecDeque::new(),
            boundaries: VecDeque::new(),
            controls: Vec::new(),
            pieces: 0,
            window,
            rx_cnt: 0,
            fwd_cnt: 0,
            edge: 0,
            told: (0, 0),
            tx_cnt: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
        }
    }

    /// Takes in a packet; what has to be answered.
    pub fn handle(&mut self, packet: Packet) -> anyhow::Result<Option<u16>> {
        let header = packet.header;
        self.take_credit(&header)?;
        self.pieces = self.pieces.max(packet.pieces);
        if header.op != RW {
            ensure!(packet.payload.is_empty(), "payload in {header:?}");
            self.controls.push(header.op);
        }
        match header.op {
            RESPONSE => {
                ensure!(!self.is_connected, "a second response: {header:?}");
                self.is_connected = true;
            }
            RST => self.is_over = true,
            SHUTDOWN => return Ok(self.handle_shutdown(&header)),
            RW => self.receive(&header, packet.payload)?,
            CREDIT_UPDATE => {}
            CREDIT_REQUEST => return Ok(Some(CREDIT_UPDATE)),
            _ => anyhow::bail!("an operation that makes no sense here: {header:?}"),
        }
        Ok(None)
    }

    fn take_credit(&mut self, header: &Header) -> anyhow::Result<()> {
        if header.op == RST {
            return Ok(());
        }
        let taken = header.fwd_cnt.wrapping_sub(self.guest_fwd_cnt);
        ensure!(
            taken <= self.in_flight(),
            "the guest has taken {taken} bytes of {}: {header:?}",
            self.in_flight()
        );
        self.guest_fwd_cnt = header.fwd_cnt;
        self.guest_buf_alloc = header.buf_alloc;
        Ok(())
    }

    fn handle_shutdown(&mut self, header: &Header) -> Option<u16> {
        self.guest_shut |= header.flags;
        if self.guest_shut & NOTHING_MORE == NOTHING_MORE && self.answers_shutdown {
            self.is_over = true;
            return Some(RST);
        }
        None
    }

    fn receive(&mut self, header: &Header, payload: Vec<u8>) -> anyhow::Result<()> {
        ensure!(
            self.guest_shut & NO_SEND == 0,
            "data after a shutdown: {header:?}"
        );
        ensure!(self.is_connected, "data before a response: {header:?}");
        self.rx_cnt = self.rx_cnt.wrapping_add(header.len);
        let beyond = self.rx_cnt.wrapping_sub(self.edge) as i32;
        ensure!(beyond <= 0, "{beyond} bytes beyond the window: {header:?}");
        self.received.extend(payload);
        if self.kind == STREAM {
            ensure!(header.flags == 0, "flags on a stream: {header:?}");
        } else if header.flags & END_OF_MESSAGE != 0 {
            self.boundaries.push_back(Boundary {
                end: self.rx_cnt,
                flags: header.flags,
            });
        }
        Ok(())
    }

    /// Kind, window and counter for the next header.
    pub fn advertise(&mut self) -> (u16, u32, u32) {
        self.told = (self.window, self.fwd_cnt);
        self.allow(self.window);
        (self.kind, self.window, self.fwd_cnt)
    }

    /// Whether half of the window is free without the guest knowing.
    pub fn has_news(&self) -> bool {
        self.fwd_cnt.wrapping_sub(self.told.1) >= self.window / 2 || self.window != self.told.0
    }

    /// The guest was told of a window of `window` bytes by a header of somebody else's making.
    pub fn allow(&mut self, window: u32) {
        let edge = self.fwd_cnt.wrapping_add(window);
        if edge.wrapping_sub(self.edge) as i32 > 0 {
            self.edge = edge;
        }
    }

    /// Takes up to `len` bytes out of the window; of messages, no more than the rest of one.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = match self.boundaries.front() {
            Some(boundary) => boundary.end.wrapping_sub(self.fwd_cnt) as usize,
            None if self.kind == SEQPACKET && !self.is_over => 0,
            None => usize::MAX,
        };
        let len = len.min(rest).min(self.received.len());
        if len == rest {
            self.boundaries.pop_front();
        }
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len as u32);
        self.received.drain(..len).collect()
    }

    pub fn count_sent(&mut self, len: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
    }

    fn in_flight(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.guest_fwd_cnt)
    }

    /// Bytes that the guest has room for.
    pub fn room(&self) -> u32 {
        self.guest_buf_alloc.saturating_sub(self.in_flight())
    }
}
