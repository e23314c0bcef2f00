// SPDX-License-Identifier: GPL-2.0
//! How fast the host's side is, with a guest that costs next to nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::Kind;

use crate::device::feature;
use crate::guest::{Guest, Options};
use crate::header::{self, operation, Header};
use crate::ring::Piece;

#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds for each figure
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of payload in each call or packet
    #[arg(long, default_values_t = [64usize, 4096, 65_536])]
    sizes: Vec<usize>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(arguments.seconds);
    println!("direction\tbytes\tMB/s\tpackets/s\tsignals/s");
    for size in &arguments.sizes {
        to_guest(*size, time)?.print("host to guest", *size);
        to_host(*size, time)?.print("guest to host", *size);
    }
    Ok(())
}

#[derive(Default)]
struct Figures {
    bytes: u64,
    packets: u64,
    signals: u64,
    time: Duration,
}

impl Figures {
    fn print(&self, direction: &str, size: usize) {
        let seconds = self.time.as_secs_f64();
        println!(
            "{direction}\t{size}\t{:.1}\t{:.0}\t{:.0}",
            self.bytes as f64 / seconds / 1e6,
            self.packets as f64 / seconds,
            self.signals as f64 / seconds
        );
    }
}

fn options() -> Options {
    Options {
        features: Options::default().features | feature::EVENT_IDX,
        ..Options::default()
    }
}

/// A program sends; the guest counts what comes and posts the same buffers again.
fn to_guest(size: usize, time: Duration) -> anyhow::Result<Figures> {
    let mut guest = Guest::start(&options())?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    let mut figures = Figures::default();
    let started = Instant::now();
    thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(|| {
            let data = vec![0; size];
            while started.elapsed() < time {
                match socket.send(&data, 0) {
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
            socket.shutdown(libc::SHUT_WR)
        });
        loop {
            let packet = guest.receive()?;
            if packet.header.operation == operation::SHUTDOWN {
                break;
            }
            connection.handle(&packet)?;
            figures.bytes += packet.payload.len() as u64;
            figures.packets += 1;
            figures.signals += guest.rx.take_calls();
            if connection.received.wrapping_sub(connection.told) > connection.window / 4 {
                guest.give_credit(&mut connection)?;
            }
        }
        Ok(sender.join().unwrap()?)
    })?;
    figures.time = started.elapsed();
    Ok(figures)
}

/// The guest sends from the same memory again and again; a program reads.
fn to_host(size: usize, time: Duration) -> anyhow::Result<Figures> {
    let mut guest = Guest::start(&options())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    let mut figures = Figures::default();
    let started = Instant::now();
    thread::scope(|scope| -> anyhow::Result<()> {
        let reader = scope.spawn(|| -> Result<(), Errno> {
            let mut buffer = vec![0; 256 * 1024];
            while socket.recv(&mut buffer, 0)? > 0 {}
            Ok(())
        });
        while started.elapsed() < time {
            while (connection.room() as usize) < size {
                let packet = guest.receive().context("waiting for credit")?;
                connection.handle(&packet)?;
            }
            let header = Header {
                len: size as u32,
                ..connection.header(operation::READ_WRITE)
            };
            let at = guest.slot()?;
            guest.memory.write(at, &header.encode());
            let piece = Piece {
                address: at,
                len: (header::LEN + size) as u32,
                writable: false,
            };
            guest.send_pieces(at, &[piece])?;
            connection.sent = connection.sent.wrapping_add(size as u32);
            figures.bytes += size as u64;
            figures.packets += 1;
            figures.signals += guest.tx.take_calls();
        }
        guest.send_control(&connection, operation::SHUTDOWN, 3)?;
        Ok(reader.join().unwrap()?)
    })?;
    figures.time = started.elapsed();
    Ok(figures)
}
