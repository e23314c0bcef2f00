// SPDX-License-Identifier: GPL-2.0
//! Credit between a guest and the host.

use std::thread;

use anyhow::ensure;
use rvsock_selftests::case::{stays, wait_until, Setup};
use rvsock_selftests::errno::Errno;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Kind, DEFAULT_WINDOW};
use rvsock_selftests::{cases, ensure_eq};

use crate::device::skip;
use crate::guest::{Guest, Options};
use crate::header::{flag, operation};

cases!("credit":
    the_host_sends_what_the_guest_has_room_for,
    a_guest_without_a_window_gets_nothing,
    the_host_says_what_it_has_read,
    a_request_for_credit_is_answered,
    who_exceeds_the_window_is_reset,
    a_window_that_shrinks_under_data_is_waited_for,
    messages_larger_than_the_guests_window_are_refused,
    a_window_of_4_gib_is_no_leave_to_fill_memory,
    windows_wrap_around,
    small_packets_that_wait_take_little_memory,
);

fn the_host_sends_what_the_guest_has_room_for(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(3);
    let mut guest = Guest::start(&Options {
        window: 10_000,
        ..Options::default()
    })?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    let bytes = pattern.bytes(0, 25_000);
    thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(|| socket.send_all(&bytes));
        let mut got = Vec::new();
        for until in [10_000, 20_000, 25_000] {
            while got.len() < until {
                let packet = guest.expect(operation::READ_WRITE)?;
                connection.handle(&packet)?;
                got.extend(packet.payload);
            }
            ensure_eq!(got.len(), until);
            guest.expect_silence()?;
            guest.give_credit(&mut connection)?;
        }
        pattern.check(0, &got)?;
        Ok(sender.join().unwrap()?)
    })
}

fn a_guest_without_a_window_gets_nothing(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options {
        window: 0,
        ..Options::default()
    })?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    socket.set_nonblocking()?;
    ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::EAGAIN)));
    connection.window = 1;
    guest.give_credit(&mut connection)?;
    wait_until("room for a byte", || socket.send(b"xy", 0) == Ok(1))?;
    ensure_eq!(socket.send(b"y", 0), Err(Errno(libc::EAGAIN)));
    Ok(())
}

fn the_host_says_what_it_has_read(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    ensure_eq!(connection.peer_window as usize, DEFAULT_WINDOW);
    let len = DEFAULT_WINDOW;
    guest.send_data(&mut connection, &vec![7; len])?;
    guest.flush()?;
    ensure_eq!(connection.room(), 0);
    ensure_eq!(socket.recv_exact(len)?.len(), len);
    while (connection.room() as usize) < len / 2 {
        let packet = guest.expect(operation::CREDIT_UPDATE)?;
        connection.handle(&packet)?;
    }
    Ok(())
}

fn a_request_for_credit_is_answered(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let (socket, mut connection) = guest.connect_pair(kind)?;
        guest.send_data(&mut connection, b"12345")?;
        ensure_eq!(socket.recv_exact(5)?, b"12345");
        guest.send_control(&connection, operation::CREDIT_REQUEST, 0)?;
        loop {
            let packet = guest.expect(operation::CREDIT_UPDATE)?;
            connection.handle(&packet)?;
            if packet.header.fwd_cnt == 5 {
                break;
            }
        }
        drop(socket);
        guest.answer_close(&connection)?;
    }
    Ok(())
}

fn who_exceeds_the_window_is_reset(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let (socket, mut connection) = guest.connect_pair(kind)?;
        let mut rest = DEFAULT_WINDOW;
        while rest > 0 {
            let len = rest.min(65_536);
            guest.send_part(&mut connection, &vec![1; len], 0)?;
            rest -= len;
        }
        guest.flush()?;
        ensure_eq!(socket.take_error()?, None);
        guest.send_part(&mut connection, b"!", flag::END_OF_MESSAGE)?;
        guest.expect(operation::RESET)?;
        ensure_eq!(socket.take_error()?, Some(Errno(libc::ENOBUFS)));
    }
    Ok(())
}

fn a_window_that_shrinks_under_data_is_waited_for(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    socket.set_nonblocking()?;
    socket.send_all(&[1; 50_000])?;
    while connection.received < 50_000 {
        let packet = guest.expect(operation::READ_WRITE)?;
        connection.handle(&packet)?;
    }
    // 50,000 bytes under way in a window of 1,000: no room, and not nearly 4 GiB of it.
    connection.window = 1000;
    guest.send_control(&connection, operation::CREDIT_UPDATE, 0)?;
    guest.flush()?;
    wait_until("the window closes", || {
        socket.poll(libc::POLLOUT, std::time::Duration::ZERO) == Ok(0)
    })?;
    ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::EAGAIN)));
    guest.give_credit(&mut connection)?;
    wait_until("the window opens", || {
        socket.poll(libc::POLLOUT, std::time::Duration::ZERO) != Ok(0)
    })?;
    ensure_eq!(socket.send(&[1; 5000], 0)?, 1000);
    Ok(())
}

fn messages_larger_than_the_guests_window_are_refused(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options {
        window: 5000,
        ..Options::default()
    })?;
    let (socket, mut connection) = guest.connect_pair(Kind::Seqpacket)?;
    ensure_eq!(socket.send(&[0; 5001], 0), Err(Errno(libc::EMSGSIZE)));
    ensure_eq!(socket.send(&[0; 5000], 0), Ok(5000));
    ensure_eq!(guest.receive_data(&mut connection, 5000)?.len(), 5000);
    Ok(())
}

fn a_window_of_4_gib_is_no_leave_to_fill_memory(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options {
        window: u32::MAX,
        ..Options::default()
    })?;
    let (socket, _connection) = guest.accept_from(Kind::Stream)?;
    guest.reposts = false;
    socket.set_nonblocking()?;
    let mut sent = 0;
    while let Ok(len) = socket.send(&[0; 65_536], 0) {
        sent += len;
        ensure!(sent <= 4 * DEFAULT_WINDOW, "{sent} bytes and more");
    }
    stays("the host takes no more", || {
        socket.send(&[0; 1], 0) == Err(Errno(libc::EAGAIN))
    })?;
    drop((guest, socket));
    Ok(())
}

/// Takes minutes: counters of 32 bits go around once.
fn windows_wrap_around(setup: &Setup) -> anyhow::Result<()> {
    if !setup.long {
        return skip("takes minutes: needs --long");
    }
    let total: u64 = 5 << 30;
    let mut guest = Guest::start(&Options {
        sizes: [256, 256],
        buffers: 128,
        buffer_len: 65_536 + 44,
        ..Options::default()
    })?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    let chunk = vec![5; 65_536];
    thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(|| -> Result<(), Errno> {
            let mut rest = total;
            while rest > 0 {
                socket.send_all(&chunk)?;
                rest -= chunk.len() as u64;
            }
            Ok(())
        });
        let mut got = 0;
        while got < total {
            let packet = guest.expect(operation::READ_WRITE)?;
            connection.handle(&packet)?;
            got += packet.payload.len() as u64;
            if connection.received.wrapping_sub(connection.told) > 100_000 {
                guest.give_credit(&mut connection)?;
            }
        }
        Ok(sender.join().unwrap()?)
    })?;
    drop(socket);
    guest.answer_close(&connection)
}

fn small_packets_that_wait_take_little_memory(_: &Setup) -> anyhow::Result<()> {
    const PACKETS: u32 = 16;
    let mut guest = Guest::with_buffers(1)?;
    let (socket, _) = guest.connect_pair(Kind::Stream)?;
    guest.reposts = false;
    socket.send_all(b"packet")?;
    guest.expect(operation::READ_WRITE)?;
    let before = socket.memory_unsent()?;
    for _ in 0..PACKETS {
        socket.send_all(b"packet")?;
    }
    let each = (socket.memory_unsent()? - before) / PACKETS;
    ensure!(each <= 1024, "{each} bytes for a packet of 6");
    Ok(())
}
