// SPDX-License-Identifier: GPL-2.0
//! The active end: tests, and what they measure, as one line of JSON each.

use crate::request::{Kind, Report, Request};
use crate::server::CLOSING;
use crate::socket;
use std::fs::File;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Round trips that are measured at least, however long they take: two quantiles are asked of them.
const PINGS_MIN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Messages of a size, over some connections at a time, for the time of the plan.
    Stream { size: usize, connections: usize },
    /// Messages of a size over one connection until so many bytes are sent.
    Bytes { size: usize, total: u64 },
    /// Messages that come back, one at a time.
    Ping { size: usize },
    /// Connections that the peer closes, one at a time.
    Connect,
}

impl FromStr for Test {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("no such test: {text}");
        let number = |word: &str| {
            word.parse::<usize>()
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(wrong)
        };
        match *text.split(':').collect::<Vec<_>>() {
            ["stream", size, connections] => Ok(Self::Stream {
                size: number(size)?,
                connections: number(connections)?,
            }),
            ["bytes", size, total] => Ok(Self::Bytes {
                size: number(size)?,
                total: number(total)? as u64,
            }),
            ["ping", size] => Ok(Self::Ping {
                size: number(size)?,
            }),
            ["connect"] => Ok(Self::Connect),
            _ => Err(wrong()),
        }
    }
}

/// Where the server is, and how long a test takes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub cid: u32,
    pub port: u32,
    pub warm_up: Duration,
    pub time: Duration,
}

impl Plan {
    /// Runs a test; the members of its JSON object.
    pub fn run(&self, test: Test) -> io::Result<String> {
        match test {
            Test::Stream { size, connections } => self.stream(size, connections, u64::MAX),
            Test::Bytes { size, total } => {
                let unlimited = Self {
                    warm_up: Duration::ZERO,
                    time: Duration::from_secs(3600),
                    ..*self
                };
                unlimited.stream(size, 1, total)
            }
            Test::Ping { size } => self.ping(size),
            Test::Connect => self.connect(),
        }
    }

    /// Opens a connection to the server, which is ready for it on return.
    fn open(&self, kind: Kind, size: usize, session: u32, connections: usize) -> io::Result<File> {
        let mut connection = socket::connect(self.cid, self.port)?;
        Request {
            kind,
            session,
            connections: connections as u32,
            size: size as u32,
            warm_up: self.warm_up,
            time: self.time,
        }
        .write(&mut connection)?;
        connection.read_exact(&mut [0])?;
        Ok(connection)
    }

    /// Sends over all connections at once, until the receiver has measured or so many bytes were
    /// sent over each.
    fn stream(&self, size: usize, connections: usize, total: u64) -> io::Result<String> {
        let session = std::process::id();
        let open = |kind| self.open(kind, size, session, connections);
        let mut control = open(Kind::Control)?;
        let opened = (0..connections)
            .map(|_| open(Kind::Sink))
            .collect::<io::Result<Vec<_>>>()?;
        let start = Barrier::new(connections);
        let measured = AtomicBool::new(false);
        let send = |mut connection: File| -> io::Result<()> {
            let message = vec![b'x'; size];
            let mut sent = 0;
            start.wait();
            while sent < total && !measured.load(Ordering::Relaxed) {
                connection.write_all(&message)?;
                sent += size as u64;
            }
            Ok(())
        };
        let report = thread::scope(|scope| {
            let senders: Vec<_> = opened
                .into_iter()
                .map(|connection| scope.spawn(|| send(connection)))
                .collect();
            let answer = control.read_exact(&mut [0]);
            measured.store(true, Ordering::Relaxed);
            for sender in senders {
                sender.join().expect("senders do not panic")?;
            }
            answer?;
            Report::read(&mut control)
        })?;
        let (bytes, seconds) = (report.bytes, report.time.as_secs_f64());
        Ok(format!(r#""bytes":{bytes},"seconds":{seconds:.6}"#))
    }

    fn ping(&self, size: usize) -> io::Result<String> {
        let mut connection = self.open(Kind::Echo, size, 0, 1)?;
        let mut message = vec![b'x'; size];
        let mut times = Vec::new();
        let began = Instant::now();
        while began.elapsed() < self.warm_up + self.time || times.len() < PINGS_MIN {
            let sent = Instant::now();
            connection.write_all(&message)?;
            connection.read_exact(&mut message)?;
            if began.elapsed() >= self.warm_up {
                times.push(sent.elapsed());
            }
        }
        times.sort_unstable();
        let microseconds = |percent| quantile(&times, percent).as_secs_f64() * 1e6;
        Ok(format!(
            r#""p50":{:.3},"p99":{:.3},"count":{}"#,
            microseconds(50),
            microseconds(99),
            times.len()
        ))
    }

    fn connect(&self) -> io::Result<String> {
        let mut measured: Option<(Instant, u64)> = None;
        let began = Instant::now();
        loop {
            let mut connection = socket::connect(self.cid, self.port + CLOSING)?;
            // The end of file: the peer has closed its side.
            if connection.read(&mut [0])? != 0 {
                return Err(io::Error::other("data on a connection that carries none"));
            }
            drop(connection);
            if let Some((_, count)) = &mut measured {
                *count += 1;
            } else if began.elapsed() >= self.warm_up {
                measured = Some((Instant::now(), 0));
            }
            if let Some((since, count)) = measured.filter(|(since, _)| since.elapsed() >= self.time)
            {
                let seconds = since.elapsed().as_secs_f64();
                return Ok(format!(r#""count":{count},"seconds":{seconds:.6}"#));
            }
        }
    }
}

/// The value that so many percent do not exceed; zero if there is none.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_have_names() {
        let stream = Test::Stream {
            size: 64,
            connections: 8,
        };
        assert_eq!("stream:64:8".parse(), Ok(stream));
        assert_eq!(
            "bytes:64:4096".parse(),
            Ok(Test::Bytes {
                size: 64,
                total: 4096
            })
        );
        assert_eq!("ping:64".parse(), Ok(Test::Ping { size: 64 }));
        assert_eq!("connect".parse(), Ok(Test::Connect));
        for wrong in ["", "stream", "stream:0:1", "ping:x", "connect:1"] {
            assert!(wrong.parse::<Test>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 50), Duration::from_millis(100));
        assert_eq!(quantile(&times, 99), Duration::from_millis(198));
        assert_eq!(quantile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(quantile(&[], 50), Duration::ZERO);
    }
}
