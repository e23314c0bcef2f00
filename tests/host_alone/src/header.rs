// SPDX-License-Identifier: GPL-2.0
//! The header of a packet, as section 5.10.6 of the virtio specification has it.
//!
//! Not that of `rust/proto`, which is part of what is tested.

pub const LEN: usize = 44;

/// The CID of the host.
pub const HOST: u64 = 2;

/// Largest payload that the host's side takes in one packet.
pub const MAX_PAYLOAD: usize = 64 * 1024;

pub mod operation {
    pub const INVALID: u16 = 0;
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RESET: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const READ_WRITE: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

pub mod flag {
    pub const SHUTDOWN_RECEIVE: u32 = 1;
    pub const SHUTDOWN_SEND: u32 = 2;
    pub const SHUTDOWN_BOTH: u32 = 3;
    pub const END_OF_MESSAGE: u32 = 1;
    pub const END_OF_RECORD: u32 = 2;
}

pub const STREAM: u16 = 1;
pub const SEQPACKET: u16 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    pub source_cid: u64,
    pub destination_cid: u64,
    pub source_port: u32,
    pub destination_port: u32,
    pub len: u32,
    pub kind: u16,
    pub operation: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; LEN] {
        let fields: [&[u8]; 10] = [
            &self.source_cid.to_le_bytes(),
            &self.destination_cid.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.destination_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.operation.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut wire = [0; LEN];
        let mut rest = &mut wire[..];
        for field in fields {
            let (place, later) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = later;
        }
        wire
    }

    /// Of the first [`LEN`] bytes.
    pub fn parse(wire: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| wire[at + i]));
        let half = |at: usize| u16::from_le_bytes([wire[at], wire[at + 1]]);
        let long = |at: usize| u64::from(word(at)) | (u64::from(word(at + 4)) << 32);
        Self {
            source_cid: long(0),
            destination_cid: long(8),
            source_port: word(16),
            destination_port: word(20),
            len: word(24),
            kind: half(28),
            operation: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// The header of a packet without payload, back to who sent this one.
    pub fn answer(&self, operation: u16) -> Self {
        Self {
            source_cid: self.destination_cid,
            destination_cid: self.source_cid,
            source_port: self.destination_port,
            destination_port: self.source_port,
            len: 0,
            operation,
            flags: 0,
            ..*self
        }
    }
}

/// A packet that the host has sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    pub header: Header,
    pub payload: Vec<u8>,
}
