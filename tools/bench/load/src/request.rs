// SPDX-License-Identifier: GPL-2.0
//! What the two ends say to each other about a test.

use std::io::{self, Read, Write};
use std::time::Duration;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Reads to the end.
    Sink = 1,
    /// Sends every message back.
    Echo = 2,
    /// Sends one byte when the session has been measured, and a [`Report`] when all others are at
    /// their end.
    Control = 3,
}

/// The first bytes of a connection. The server answers with one byte when it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: Kind,
    /// Connections with the same session number are measured together.
    pub session: u32,
    /// How many of them carry data; there is one more for control.
    pub connections: u32,
    /// Bytes of a message.
    pub size: u32,
    /// What is not measured, from the first byte on.
    pub warm_up: Duration,
    /// What is measured after that, at most.
    pub time: Duration,
}

impl Request {
    pub const LEN: usize = 24;

    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(Self::LEN);
        for word in [
            self.kind as u32,
            self.session,
            self.connections,
            self.size,
            self.warm_up.as_millis() as u32,
            self.time.as_millis() as u32,
        ] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        output.write_all(&bytes)
    }

    pub fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut word = || -> io::Result<u32> {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes)?;
            Ok(u32::from_le_bytes(bytes))
        };
        let kind = match word()? {
            1 => Kind::Sink,
            2 => Kind::Echo,
            3 => Kind::Control,
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("request of unknown kind {other}"),
                ))
            }
        };
        Ok(Self {
            kind,
            session: word()?,
            connections: word()?,
            size: word()?,
            warm_up: Duration::from_millis(word()?.into()),
            time: Duration::from_millis(word()?.into()),
        })
    }
}

/// What all connections of a session received while they were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub bytes: u64,
    pub time: Duration,
}

impl Report {
    pub fn write(self, output: &mut impl Write) -> io::Result<()> {
        let mut bytes = self.bytes.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(self.time.as_nanos() as u64).to_le_bytes());
        output.write_all(&bytes)
    }

    pub fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut word = || -> io::Result<u64> {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        Ok(Self {
            bytes: word()?,
            time: Duration::from_nanos(word()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let request = Request {
            kind: Kind::Echo,
            session: 7,
            connections: 8,
            size: 64,
            warm_up: Duration::from_millis(150),
            time: Duration::from_secs(1),
        };
        let report = Report {
            bytes: 1 << 40,
            time: Duration::from_nanos(12345678901),
        };
        let mut bytes = Vec::new();
        request.write(&mut bytes).unwrap();
        assert_eq!(bytes.len(), Request::LEN);
        report.write(&mut bytes).unwrap();
        let mut input = bytes.as_slice();
        assert_eq!(Request::read(&mut input).unwrap(), request);
        assert_eq!(Report::read(&mut input).unwrap(), report);
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        assert!(Request::read(&mut [9; Request::LEN].as_slice()).is_err());
    }
}
