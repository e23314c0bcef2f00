// SPDX-License-Identifier: GPL-2.0

//! The packet header: 44 little-endian bytes before every payload (section 5.10.6).
//!
//! C header: `include/uapi/linux/virtio_vsock.h`, `struct virtio_vsock_hdr`.

use crate::flags::{MessageFlags, ShutdownFlags};

/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = 44;

/// Most payload bytes in one packet (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
///
/// The specification sets no limit; this is what Linux sends, and accepts from a guest.
pub const MAX_PAYLOAD: u32 = 64 * 1024;

/// The header is eleven words long; a CID is two of them, `type` and `op` share one.
const WORDS: usize = HEADER_LEN / 4;

/// One end of a connection (section 5.10.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// Context id: which machine.
    pub cid: u32,
    /// Port: which socket of that machine.
    pub port: u32,
}

impl Address {
    /// The address of port `port` on machine `cid`.
    #[inline]
    pub const fn new(cid: u32, port: u32) -> Self {
        Self { cid, port }
    }
}

/// What a packet promises about boundaries: the `type` field (section 5.10.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Bytes without boundaries (`VIRTIO_VSOCK_TYPE_STREAM`).
    Stream,
    /// Messages and records (`VIRTIO_VSOCK_TYPE_SEQPACKET`).
    Seqpacket,
}

impl Kind {
    /// The kind of a wire value, [`None`] if it is unknown: such a packet must be answered by a
    /// reset (section 5.10.6.4).
    #[inline]
    pub const fn from_wire(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::Stream),
            2 => Some(Self::Seqpacket),
            _ => None,
        }
    }

    /// The wire value of this kind.
    #[inline]
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::Stream => 1,
            Self::Seqpacket => 2,
        }
    }
}

/// What a packet is for: the `op` field (section 5.10.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Means nothing, and is ignored where C ignores it (`VIRTIO_VSOCK_OP_INVALID`).
    Invalid,
    /// Asks a listener for a connection.
    Request,
    /// Grants a request.
    Response,
    /// Refuses a request or ends a connection at once (`VIRTIO_VSOCK_OP_RST`).
    Reset,
    /// Announces an end of receiving or sending, see [`ShutdownFlags`].
    Shutdown,
    /// Carries payload (`VIRTIO_VSOCK_OP_RW`).
    ReadWrite,
    /// Carries nothing but the two credit fields that every header has.
    CreditUpdate,
    /// Asks for a credit update.
    CreditRequest,
    /// A value that no specification has given a meaning yet.
    Unknown(u16),
}

impl Operation {
    /// The operation of a wire value.
    #[inline]
    pub const fn from_wire(value: u16) -> Self {
        match value {
            0 => Self::Invalid,
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            unknown => Self::Unknown(unknown),
        }
    }

    /// The wire value of this operation.
    #[inline]
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::Invalid => 0,
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(value) => value,
        }
    }
}

/// Why 44 bytes are not a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// The upper 32 bits of a CID, reserved and zero (section 5.10.6), are not zero.
    ///
    /// C compares all 64 bits on the host and drops the upper ones in the guest. A sender that
    /// cannot be named cannot be answered either: the packet is dropped.
    WideCid,
}

/// A packet header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// Who sent the packet.
    pub source: Address,
    /// Whom it is for.
    pub destination: Address,
    /// Payload bytes that follow. Not checked: only the receiver knows what it received.
    pub len: u32,
    /// Wire value of [`Kind`]. It stays raw because a reset echoes even an unknown one.
    pub kind: u16,
    /// What the packet is for.
    pub operation: Operation,
    /// Raw flags, whose meaning depends on the operation.
    pub flags: u32,
    /// Bytes of the sender's receive window, used and free (section 5.10.6.3).
    pub buf_alloc: u32,
    /// Payload bytes that the sender's application has taken so far, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    ///
    /// `bytes` must be a private copy: in shared memory, the peer could change them after the
    /// checks.
    ///
    /// # Errors
    ///
    /// [`HeaderError::WideCid`], and nothing else: every other value has a meaning or an answer.
    #[inline]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let mut words = [[0; 4]; WORDS];
        words.as_flattened_mut().copy_from_slice(bytes);
        let [source_cid, source_high, destination_cid, destination_high, rest @ ..] =
            words.map(u32::from_le_bytes);
        let [source_port, destination_port, len, kind_operation, flags, buf_alloc, fwd_cnt] = rest;
        if source_high != 0 || destination_high != 0 {
            return Err(HeaderError::WideCid);
        }
        let (kind, operation) = split(kind_operation);
        Ok(Self {
            source: Address::new(source_cid, source_port),
            destination: Address::new(destination_cid, destination_port),
            len,
            kind,
            operation: Operation::from_wire(operation),
            flags,
            buf_alloc,
            fwd_cnt,
        })
    }

    /// Writes the header.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let words = [
            self.source.cid,
            0,
            self.destination.cid,
            0,
            self.source.port,
            self.destination.port,
            self.len,
            join(self.kind, self.operation.to_wire()),
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(words.map(u32::to_le_bytes).as_flattened());
        bytes
    }

    /// The flags, if this is a [`Operation::Shutdown`].
    #[inline]
    pub const fn shutdown_flags(&self) -> ShutdownFlags {
        ShutdownFlags::from_bits(self.flags)
    }

    /// The flags, if this is a [`Operation::ReadWrite`] of a [`Kind::Seqpacket`] connection.
    #[inline]
    pub const fn message_flags(&self) -> MessageFlags {
        MessageFlags::from_bits(self.flags)
    }

    /// The header of a part of this packet with `len` bytes: a message ends with its last part.
    #[inline]
    pub fn part(&self, len: u32, is_last: bool) -> Self {
        let ends_later = self.operation == Operation::ReadWrite && !is_last;
        let hidden = if ends_later {
            MessageFlags::ALL.bits()
        } else {
            0
        };
        Self {
            len,
            flags: self.flags & !hidden,
            ..*self
        }
    }
}

/// Takes a word apart into its first (low) and second (high) half.
#[inline]
const fn split(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_le_bytes();
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

/// The reverse of [`split()`].
#[inline]
const fn join(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_le_bytes(), second.to_le_bytes());
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header whose fields all differ, and its bytes as written by hand from section 5.10.6.
    const HEADER: Header = Header {
        source: Address::new(0x0403_0201, 0x1413_1211),
        destination: Address::new(0x0c0b_0a09, 0x1817_1615),
        len: 0x1c1b_1a19,
        kind: 2,
        operation: Operation::ReadWrite,
        flags: 0x2423_2221,
        buf_alloc: 0x2827_2625,
        fwd_cnt: 0x2c2b_2a29,
    };
    #[rustfmt::skip]
    const BYTES: [u8; HEADER_LEN] = [
        0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0, // src_cid
        0x09, 0x0a, 0x0b, 0x0c, 0, 0, 0, 0, // dst_cid
        0x11, 0x12, 0x13, 0x14, // src_port
        0x15, 0x16, 0x17, 0x18, // dst_port
        0x19, 0x1a, 0x1b, 0x1c, // len
        2, 0, // type
        5, 0, // op
        0x21, 0x22, 0x23, 0x24, // flags
        0x25, 0x26, 0x27, 0x28, // buf_alloc
        0x29, 0x2a, 0x2b, 0x2c, // fwd_cnt
    ];

    #[test]
    fn every_field_stands_where_the_specification_puts_it() {
        assert_eq!(HEADER.encode(), BYTES);
        assert_eq!(Header::parse(&BYTES), Ok(HEADER));
    }

    #[test]
    fn a_message_ends_with_the_last_part_of_its_packet() {
        let whole = Header {
            operation: Operation::ReadWrite,
            flags: MessageFlags::ALL.bits(),
            len: 100,
            ..HEADER
        };
        let first = whole.part(60, false);
        assert_eq!((first.len, first.flags), (60, 0));
        let last = whole.part(40, true);
        assert_eq!((last.len, last.flags), (40, MessageFlags::ALL.bits()));
    }

    #[test]
    fn kinds_are_one_and_two() {
        assert_eq!(Kind::from_wire(0), None);
        assert_eq!(Kind::from_wire(1), Some(Kind::Stream));
        assert_eq!(Kind::from_wire(2), Some(Kind::Seqpacket));
        assert_eq!(Kind::from_wire(3), None);
        assert_eq!(Kind::Stream.to_wire(), 1);
        assert_eq!(Kind::Seqpacket.to_wire(), 2);
    }

    #[test]
    fn every_operation_survives_the_wire() {
        for value in 0..=u16::MAX {
            let operation = Operation::from_wire(value);
            assert_eq!(operation.to_wire(), value);
            assert_eq!(matches!(operation, Operation::Unknown(_)), value > 7);
        }
    }

    proptest! {
        #[test]
        fn bytes_are_a_header_unless_a_cid_is_wide(
            mut bytes in proptest::array::uniform32(any::<u8>())
                .prop_map(|seed| core::array::from_fn::<u8, HEADER_LEN, _>(|i| seed[i % 32])),
            high in prop_oneof![Just([0; 4]), any::<[u8; 4]>()],
            in_source in any::<bool>(),
        ) {
            bytes[4..8].fill(0);
            bytes[12..16].fill(0);
            let at = if in_source { 4 } else { 12 };
            bytes[at..at + 4].copy_from_slice(&high);
            match Header::parse(&bytes) {
                Ok(header) => prop_assert_eq!(header.encode(), bytes),
                Err(HeaderError::WideCid) => prop_assert_ne!(high, [0; 4]),
            }
        }
    }
}
