// SPDX-License-Identifier: GPL-2.0
//! Packet headers, written down from the specification (5.10.6), not taken from the drivers that
//! they test.

use std::fmt;

pub const HEADER_LEN: usize = 44;

/// Kinds of sockets, `type` in the header.
pub const STREAM: u16 = 1;
pub const SEQPACKET: u16 = 2;

/// Operations.
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// Flags of SHUTDOWN: the sender will not receive, will not send.
pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;
pub const NOTHING_MORE: u32 = NO_RECEIVE | NO_SEND;

/// Flags of RW between seqpacket sockets: the end of a message, and of a record.
pub const END_OF_MESSAGE: u32 = 1;
pub const END_OF_RECORD: u32 = 2;

/// The CID of the host.
pub const HOST: u64 = 2;

/// A header, with no field too wild to be written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        out.copy_from_slice(&fields.concat());
        out
    }

    /// None if there are not enough bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(Self {
            src_cid: long(0)?,
            dst_cid: long(8)?,
            src_port: word(16)?,
            dst_port: word(20)?,
            len: word(24)?,
            kind: short(28)?,
            op: short(30)?,
            flags: word(32)?,
            buf_alloc: word(36)?,
            fwd_cnt: word(40)?,
        })
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            REQUEST => "REQUEST",
            RESPONSE => "RESPONSE",
            RST => "RST",
            SHUTDOWN => "SHUTDOWN",
            RW => "RW",
            CREDIT_UPDATE => "CREDIT_UPDATE",
            CREDIT_REQUEST => "CREDIT_REQUEST",
            _ => "op",
        };
        write!(
            f,
            "{op}({}) type {} {}:{} -> {}:{} len {} flags {:#x} buf_alloc {} fwd_cnt {}",
            self.op,
            self.kind,
            self.src_cid,
            self.src_port,
            self.dst_cid,
            self.dst_port,
            self.len,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let mut bytes = [0; HEADER_LEN];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn too_few_bytes_are_no_header() {
        assert_eq!(Header::parse(&[0; HEADER_LEN - 1]), None);
    }
}
