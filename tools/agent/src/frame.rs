// SPDX-License-Identifier: GPL-2.0
//! The frames of the control channel.
//!
//! A frame is a 9-byte header (payload length as little-endian `u32`, kind, command id as
//! little-endian `u32`) and its payload. `tools/rig/channel.py` is the other end.

use std::io::{self, Read, Write};

/// Largest payload accepted; anything longer means that the two ends lost each other.
const MAX_PAYLOAD: usize = 1 << 20;

const HEADER: usize = 9;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the agent: start a command, described by the payload (see [`crate::command::Spec`]).
    Start = 1,
    /// To the agent: bytes for the command's standard input; an empty payload closes it.
    Stdin = 2,
    /// To the agent: send the signal in the payload's only byte to the command's process group.
    Signal = 3,
    /// To the agent: rows and columns (`u16` each) of the command's terminal.
    Resize = 4,
    /// To the agent: answer with a `Pong`.
    Ping = 5,
    /// From the agent, first of all: the payload is the session's name.
    Hello = 16,
    /// From the agent: output of a command.
    Stdout = 17,
    /// From the agent: error output of a command.
    Stderr = 18,
    /// From the agent, last frame of a command: `exited N`, `killed N` or `failed REASON`.
    Exit = 19,
    /// From the agent: answer to a `Ping`.
    Pong = 20,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [
            Start, Stdin, Signal, Resize, Ping, Hello, Stdout, Stderr, Exit, Pong,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// One message of the control channel.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    /// The command it belongs to, chosen by the rig; 0 where there is none.
    pub id: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: Kind, id: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            id,
            payload: payload.into(),
        }
    }

    /// Reads the next frame, or `None` at the end of the stream.
    pub fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        if let Err(error) = input.read_exact(&mut header) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(None),
                _ => Err(error),
            };
        }
        let [l0, l1, l2, l3, kind, i0, i1, i2, i3] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let kind = Kind::from_byte(kind).filter(|_| length <= MAX_PAYLOAD);
        let Some(kind) = kind else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("not a frame: {header:02x?}"),
            ));
        };
        let mut payload = vec![0; length];
        input.read_exact(&mut payload)?;
        Ok(Some(Self {
            kind,
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            payload,
        }))
    }

    /// Writes header and payload in one piece: the port has many writers.
    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        output.write_all(&bytes)?;
        output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let frames = [
            Frame::new(Kind::Start, 7, *b"aecho\0"),
            Frame::new(Kind::Ping, 0, []),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut input).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut input).unwrap(), None);
    }

    #[test]
    fn a_wild_length_or_kind_is_an_error() {
        let long = [0xff, 0xff, 0xff, 0x7f, Kind::Stdin as u8, 0, 0, 0, 0];
        let unknown = [0, 0, 0, 0, 99, 0, 0, 0, 0];
        for header in [long, unknown] {
            let error = Frame::read(&mut header.as_slice()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_cut_payload_is_an_error() {
        let mut bytes = Vec::new();
        Frame::new(Kind::Stdin, 1, *b"hello")
            .write(&mut bytes)
            .unwrap();
        bytes.pop();
        assert!(Frame::read(&mut bytes.as_slice()).is_err());
    }
}
