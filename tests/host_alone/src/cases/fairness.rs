// SPDX-License-Identifier: GPL-2.0
//! Whose turn it is, counted in bytes.

use std::time::Instant;

use anyhow::ensure;
use rvsock_selftests::case::{Setup, PATIENCE};
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::{Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};

use crate::guest::{Connection, Guest, Options};
use crate::header::operation;

cases!("fairness":
    a_ping_waits_for_no_more_than_128_kib_of_bulk
        => "it waits for everything that was queued before it",
    bulk_transfers_get_equal_shares
        => "who has queued first is served first",
    packets_of_a_connection_do_not_overtake_each_other,
    a_guest_that_never_stops_sending_is_sent_to,
);

const WINDOW: u32 = 4 << 20;
const FLOWS: usize = 8;

/// Connections of the host whose windows are full of what the guest has no buffers for.
struct Crowd {
    guest: Guest,
    bulk: Vec<(Socket, Connection)>,
}

impl Crowd {
    fn new(guest: Options) -> anyhow::Result<Self> {
        let mut guest = Guest::start(&Options {
            window: WINDOW,
            buffers: 32,
            memory: 64 << 20,
            ..guest
        })?;
        let mut bulk = Vec::new();
        for _ in 0..FLOWS {
            bulk.push(connect(&mut guest)?);
        }
        Ok(Self { guest, bulk })
    }

    /// Fills the windows; whatever has buffers is taken in afterwards.
    fn fill(&mut self) -> anyhow::Result<()> {
        self.guest.reposts = false;
        for (socket, _) in &self.bulk {
            socket.set_nonblocking()?;
            let mut sent = 0;
            while sent < WINDOW as usize {
                sent += socket.send(&vec![0; WINDOW as usize - sent], 0)?;
            }
            ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::EAGAIN)));
        }
        while self.guest.receive_within(crate::guest::SHORT)?.is_some() {}
        Ok(())
    }

    /// Posts a few buffers and takes what comes; to which port each packet went, and how long it
    /// was.
    fn step(&mut self) -> anyhow::Result<Vec<(u32, usize)>> {
        const BUFFERS: usize = 8;
        self.guest.post(BUFFERS)?;
        let mut taken = Vec::new();
        while taken.len() < BUFFERS {
            let packet = self.guest.receive()?;
            taken.push((packet.header.source_port, packet.payload.len()));
        }
        Ok(taken)
    }
}

fn connect(guest: &mut Guest) -> anyhow::Result<(Socket, Connection)> {
    let socket = Socket::new(Kind::Stream)?;
    socket.set_window(WINDOW.into())?;
    guest.accept_socket(socket)
}

fn a_ping_waits_for_no_more_than_128_kib_of_bulk(_: &Setup) -> anyhow::Result<()> {
    const LIMIT: usize = 128 * 1024;
    for buffer_len in [4096, 32_768, 65_580] {
        let mut crowd = Crowd::new(Options {
            buffer_len,
            ..Options::default()
        })?;
        let pings = [connect(&mut crowd.guest)?, connect(&mut crowd.guest)?];
        crowd.fill()?;
        let mut worst = 0;
        // One that pings again at once, and one that is quiet in between.
        for round in 0..12 {
            for (number, (socket, connection)) in pings.iter().enumerate() {
                if number == 1 && round % 4 != 0 {
                    continue;
                }
                socket.send_all(b"ping")?;
                let mut others = 0;
                let mut arrived = false;
                while !arrived {
                    for (port, len) in crowd.step()? {
                        arrived |= port == connection.remote;
                        others += if arrived { 0 } else { len };
                    }
                    ensure!(others <= LIMIT, "{others} bytes of others came first");
                }
                worst = worst.max(others);
            }
        }
        println!("# buffers of {buffer_len} bytes: {worst} bytes of others before a ping");
    }
    Ok(())
}

fn bulk_transfers_get_equal_shares(_: &Setup) -> anyhow::Result<()> {
    let mut crowd = Crowd::new(Options::default())?;
    crowd.fill()?;
    let mut shares = vec![0usize; FLOWS];
    for _ in 0..64 {
        for (port, len) in crowd.step()? {
            let flow = crowd
                .bulk
                .iter()
                .position(|(_, connection)| connection.remote == port);
            shares[flow.unwrap_or(0)] += len;
        }
    }
    let (least, most) = (shares.iter().min(), shares.iter().max());
    let difference = most.unwrap_or(&0) - least.unwrap_or(&0);
    ensure!(difference <= 2 * 65_536, "{shares:?}");
    Ok(())
}

fn packets_of_a_connection_do_not_overtake_each_other(_: &Setup) -> anyhow::Result<()> {
    let mut crowd = Crowd::new(Options::default())?;
    crowd.fill()?;
    let (socket, connection) = crowd.bulk.remove(0);
    let port = connection.remote;
    // The end of a full connection.
    drop(socket);
    let mut bytes = 0;
    let mut ended = false;
    while !ended {
        crowd.guest.post(8)?;
        let packet = crowd.guest.receive()?;
        if packet.header.source_port == port {
            bytes += packet.payload.len();
            ended = packet.header.operation == operation::SHUTDOWN;
        }
    }
    // What was taken while the windows were filled was not counted.
    let before = 32 * (4096 - 44);
    ensure!(
        bytes <= WINDOW as usize && bytes + before >= WINDOW as usize,
        "{bytes} bytes came before the end"
    );
    crowd.guest.send_control(&connection, operation::RESET, 0)?;
    crowd.guest.flush()
}

fn a_guest_that_never_stops_sending_is_sent_to(_: &Setup) -> anyhow::Result<()> {
    const LEN: usize = 200_000;
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    socket.send_all(&[7; LEN])?;
    let started = Instant::now();
    let mut received = 0;
    while received < LEN {
        ensure!(
            started.elapsed() < PATIENCE,
            "{received} bytes came meanwhile"
        );
        // A ring full of them: the host has not read them when the next ones come.
        for _ in 0..100 {
            let nothing_new = connection.header(operation::CREDIT_UPDATE);
            guest.send(&nothing_new, &[])?;
        }
        while let Some(packet) = guest.try_receive()? {
            connection.handle(&packet)?;
            received += packet.payload.len();
        }
    }
    Ok(())
}
