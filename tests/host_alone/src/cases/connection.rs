// SPDX-License-Identifier: GPL-2.0
//! Connections between a guest and sockets of the host, packet by packet.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context};
use rvsock_selftests::case::Setup;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};

use crate::device::feature;
use crate::guest::{prepare, Connection, Guest, Options, CID, PORT};
use crate::header::{flag, operation, Header, HOST, SEQPACKET, STREAM};

cases!("connection":
    a_request_says_who_asks,
    both_sides_can_connect_and_talk,
    megabytes_arrive_in_both_directions,
    messages_keep_their_ends,
    a_message_larger_than_a_buffer_ends_once,
    a_guest_can_refuse,
    a_port_nobody_listens_at_refuses,
    a_guest_that_does_not_answer_is_waited_for,
    an_answer_that_makes_no_sense_is_a_protocol_error,
    who_is_not_there_is_no_device,
    who_does_not_run_is_unreachable,
    messages_have_to_be_agreed_upon,
    the_host_says_what_it_shuts_down,
    what_a_guest_shuts_down_ends_one_direction,
    a_closed_socket_waits_for_its_guest,
    a_guest_can_close
        => "close() sends a reset for a connection that is over",
    a_reset_ends_a_connection
        => "close() sends a reset for a connection that is over",
    unread_data_survives_a_reset,
    packets_without_a_socket_are_reset,
    a_reset_without_a_socket_is_not_answered,
    packets_of_another_kind_are_reset,
    packets_from_and_to_others_are_nobodys,
    a_connection_ignores_what_it_does_not_know,
    a_full_backlog_refuses,
);

const KINDS: [Kind; 2] = [Kind::Stream, Kind::Seqpacket];

fn a_request_says_who_asks(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for (kind, number) in [(Kind::Stream, STREAM), (Kind::Seqpacket, SEQPACKET)] {
        let socket = Socket::new(kind)?;
        socket.set_window(77_777)?;
        socket.set_nonblocking()?;
        ensure_eq!(
            socket.connect(guest.address(PORT)),
            Err(Errno(libc::EINPROGRESS))
        );
        let packet = guest.receive()?;
        let expected = Header {
            source_cid: HOST,
            destination_cid: CID.into(),
            source_port: socket.port()?,
            destination_port: PORT,
            len: 0,
            kind: number,
            operation: operation::REQUEST,
            flags: 0,
            buf_alloc: 77_777,
            fwd_cnt: 0,
        };
        ensure_eq!(packet.header, expected);
        ensure_eq!(packet.payload, Vec::new());
    }
    Ok(())
}

fn both_sides_can_connect_and_talk(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for _ in 0..2 {
        let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
        guest.converse(&socket, &mut connection)?;
        drop(socket);
        guest.answer_close(&connection)?;

        let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
        guest.converse(&socket, &mut connection)?;
        drop(socket);
        guest.answer_close(&connection)?;
    }
    Ok(())
}

const MANY: usize = 3 << 20;

fn megabytes_arrive_in_both_directions(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(1);
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    let bytes = pattern.bytes(0, MANY);
    thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(|| socket.send_all(&bytes));
        pattern.check(0, &guest.receive_data(&mut connection, MANY)?)?;
        Ok(sender.join().unwrap()?)
    })?;
    thread::scope(|scope| {
        let receiver = scope.spawn(|| socket.recv_exact(MANY));
        guest.send_data(&mut connection, &bytes)?;
        pattern.check(0, &receiver.join().unwrap()?)
    })
}

fn messages_keep_their_ends(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Seqpacket)?;
    for (flags, ends) in [
        (0, flag::END_OF_MESSAGE),
        (libc::MSG_EOR, flag::END_OF_MESSAGE | flag::END_OF_RECORD),
    ] {
        socket.send(b"message", flags)?;
        let packet = guest.expect(operation::READ_WRITE)?;
        connection.handle(&packet)?;
        ensure_eq!(packet.payload, b"message");
        ensure_eq!(packet.header.flags, ends);

        guest.send_part(&mut connection, b"ans", 0)?;
        guest.send_part(&mut connection, b"wer", ends)?;
        let mut buffer = [0; 64];
        let received = socket.recv_message(&mut buffer, 0)?;
        ensure_eq!(received.len, 6);
        ensure_eq!(received.flags & libc::MSG_EOR, flags & libc::MSG_EOR);
    }
    Ok(())
}

fn a_message_larger_than_a_buffer_ends_once(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(2);
    let mut guest = Guest::start(&Options {
        buffer_len: 1000,
        ..Options::default()
    })?;
    let (socket, mut connection) = guest.connect_pair(Kind::Seqpacket)?;
    let bytes = pattern.bytes(0, 100_000);
    socket.send(&bytes, libc::MSG_EOR)?;
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let packet = guest.expect(operation::READ_WRITE)?;
        connection.handle(&packet)?;
        got.extend(packet.payload);
        let ends = flag::END_OF_MESSAGE | flag::END_OF_RECORD;
        let expected = if got.len() == bytes.len() { ends } else { 0 };
        ensure_eq!(packet.header.flags, expected, "at byte {}", got.len());
    }
    pattern.check(0, &got)?;
    guest.expect_silence()
}

fn connecting(guest: &Guest, kind: Kind) -> anyhow::Result<Socket> {
    let socket = Socket::new(kind)?;
    socket.set_nonblocking()?;
    ensure_eq!(
        socket.connect(guest.address(PORT)),
        Err(Errno(libc::EINPROGRESS))
    );
    Ok(socket)
}

/// What becomes of a `connect()` that the guest answers with `operation`.
fn answered(guest: &mut Guest, kind: Kind, operation: u16) -> anyhow::Result<Option<Errno>> {
    let socket = connecting(guest, kind)?;
    let request = guest.expect(operation::REQUEST)?.header;
    let connection = Connection::new(guest, kind, PORT, request.source_port);
    guest.send_control(&connection, operation, 0)?;
    ensure!(socket.poll(libc::POLLOUT, Duration::from_secs(20))? != 0);
    Ok(socket.take_error()?)
}

fn a_guest_can_refuse(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let error = answered(&mut guest, kind, operation::RESET)?;
        ensure_eq!(error, Some(Errno(libc::ECONNRESET)));
    }
    guest.expect_silence()
}

fn an_answer_that_makes_no_sense_is_a_protocol_error(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        for operation in [
            operation::REQUEST,
            operation::SHUTDOWN,
            operation::READ_WRITE,
            operation::CREDIT_UPDATE,
            operation::CREDIT_REQUEST,
            8,
            u16::MAX,
        ] {
            let error = answered(&mut guest, kind, operation)?;
            ensure_eq!(error, Some(Errno(libc::EPROTO)), "operation {operation}");
            guest.expect(operation::RESET)?;
        }
    }
    Ok(())
}

fn a_port_nobody_listens_at_refuses(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let connection = Connection::new(&guest, kind, PORT, 0x1234_5678);
        guest.send_control(&connection, operation::REQUEST, 0)?;
        let reset = guest.receive()?.header;
        let expected = Header {
            source_cid: HOST,
            destination_cid: CID.into(),
            source_port: 0x1234_5678,
            destination_port: PORT,
            kind: connection.header(0).kind,
            operation: operation::RESET,
            ..Header::default()
        };
        ensure_eq!(reset, expected);
    }
    Ok(())
}

fn a_guest_that_does_not_answer_is_waited_for(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let socket = Socket::new(Kind::Stream)?;
    socket.set_connect_timeout(Duration::from_millis(500))?;
    let started = Instant::now();
    ensure_eq!(
        socket.connect(guest.address(PORT)),
        Err(Errno(libc::ETIMEDOUT))
    );
    ensure!(started.elapsed() >= Duration::from_millis(400));
    // An answer that comes too late is for nobody.
    let request = guest.expect(operation::REQUEST)?.header;
    let connection = Connection::new(&guest, Kind::Stream, PORT, request.source_port);
    guest.send_control(&connection, operation::RESPONSE, 0)?;
    guest.expect(operation::RESET)?;
    Ok(())
}

fn who_is_not_there_is_no_device(_: &Setup) -> anyhow::Result<()> {
    let guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let socket = Socket::new(kind)?;
        prepare(&socket)?;
        let mut address = guest.address(PORT);
        address.cid += 1;
        // Messages need a guest that has agreed to them.
        let expected = match kind {
            Kind::Stream => libc::ENODEV,
            Kind::Seqpacket => libc::ESOCKTNOSUPPORT,
        };
        ensure_eq!(socket.connect(address), Err(Errno(expected)));
    }
    Ok(())
}

fn who_does_not_run_is_unreachable(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::prepare(&Options::default())?;
    guest.device.set_cid(CID.into())?;
    let refused = || -> anyhow::Result<()> {
        let socket = Socket::new(Kind::Stream)?;
        prepare(&socket)?;
        ensure_eq!(
            socket.connect(guest.address(PORT)),
            Err(Errno(libc::EHOSTUNREACH))
        );
        Ok(())
    };
    refused()?;
    guest.device.set_running(1)?;
    guest.device.set_running(0)?;
    refused()?;

    guest.device.set_running(1)?;
    guest.post(16)?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    guest.device.set_running(0)?;
    ensure_eq!(socket.send(b"lost", 0), Err(Errno(libc::EHOSTUNREACH)));
    guest.device.set_running(1)?;
    guest.converse(&socket, &mut connection)
}

fn messages_have_to_be_agreed_upon(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options {
        features: feature::VERSION_1,
        ..Options::default()
    })?;
    let refused = |guest: &Guest| -> anyhow::Result<()> {
        let socket = Socket::new(Kind::Seqpacket)?;
        prepare(&socket)?;
        ensure_eq!(
            socket.connect(guest.address(PORT)),
            Err(Errno(libc::ESOCKTNOSUPPORT))
        );
        Ok(())
    };
    refused(&guest)?;
    let listener = Socket::listening(Kind::Seqpacket)?;
    let connection = Connection::new(&guest, Kind::Seqpacket, PORT, listener.port()?);
    guest.send_control(&connection, operation::REQUEST, 0)?;
    guest.expect(operation::RESET)?;

    // What was agreed upon can be taken back.
    let with = Options::default().features;
    for (features, works) in [(with, true), (feature::VERSION_1, false), (with, true)] {
        guest.device.set_features(features)?;
        if works {
            let (socket, connection) = guest.connect_pair(Kind::Seqpacket)?;
            drop(socket);
            guest.answer_close(&connection)?;
        } else {
            refused(&guest)?;
        }
    }
    Ok(())
}

fn the_host_says_what_it_shuts_down(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let (socket, mut connection) = guest.accept_from(kind)?;
        socket.shutdown(libc::SHUT_WR)?;
        let packet = guest.expect(operation::SHUTDOWN)?;
        ensure_eq!(packet.header.flags, flag::SHUTDOWN_SEND);
        ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::EPIPE)));
        guest.send_data(&mut connection, b"still")?;
        ensure_eq!(socket.recv_exact(5)?, b"still");
        socket.shutdown(libc::SHUT_RD)?;
        let packet = guest.expect(operation::SHUTDOWN)?;
        ensure!(packet.header.flags & flag::SHUTDOWN_RECEIVE != 0);
        drop(socket);
        guest.send_control(&connection, operation::RESET, 0)?;
    }
    Ok(())
}

fn what_a_guest_shuts_down_ends_one_direction(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let (socket, mut connection) = guest.connect_pair(kind)?;
        guest.send_data(&mut connection, b"last")?;
        guest.send_control(&connection, operation::SHUTDOWN, flag::SHUTDOWN_SEND)?;
        ensure_eq!(socket.recv_vec(64, 0)?, b"last");
        ensure_eq!(socket.recv_vec(64, 0)?, b"");
        socket.send(b"answer", 0)?;
        ensure_eq!(guest.receive_data(&mut connection, 6)?, b"answer");
        guest.send_control(&connection, operation::SHUTDOWN, flag::SHUTDOWN_RECEIVE)?;
        guest.expect(operation::RESET)?;
        ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::EPIPE)));
    }
    Ok(())
}

fn a_closed_socket_waits_for_its_guest(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, connection) = guest.accept_from(Kind::Stream)?;
    drop(socket);
    guest.expect(operation::SHUTDOWN)?;
    let started = Instant::now();
    // The guest says nothing: after 8 s the host gives up.
    let packet = loop {
        if let Some(packet) = guest.receive_within(Duration::from_secs(60))? {
            break packet;
        }
        ensure!(started.elapsed() < Duration::from_secs(60), "no reset");
    };
    ensure_eq!(packet.header.operation, operation::RESET);
    ensure!(started.elapsed() > Duration::from_secs(6));
    guest.send_control(&connection, operation::CREDIT_REQUEST, 0)?;
    guest.expect(operation::RESET)?;
    Ok(())
}

/// The connection of `socket` is over for both ends.
fn expect_end(guest: &mut Guest, socket: Socket) -> anyhow::Result<()> {
    ensure_eq!(socket.recv_vec(1, 0)?, b"");
    ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::EPIPE)));
    drop(socket);
    guest.expect_silence()
}

fn a_guest_can_close(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let (socket, connection) = guest.connect_pair(kind)?;
        guest.send_control(&connection, operation::SHUTDOWN, flag::SHUTDOWN_BOTH)?;
        guest.expect(operation::RESET)?;
        expect_end(&mut guest, socket)?;
    }
    Ok(())
}

fn a_reset_ends_a_connection(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let (socket, connection) = guest.accept_from(kind)?;
        guest.send_control(&connection, operation::RESET, 0)?;
        expect_end(&mut guest, socket)?;
    }
    Ok(())
}

fn unread_data_survives_a_reset(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let (socket, mut connection) = guest.connect_pair(kind)?;
        guest.send_data(&mut connection, b"last words")?;
        guest.send_control(&connection, operation::RESET, 0)?;
        guest.flush()?;
        ensure_eq!(socket.recv_exact(10)?, b"last words");
        ensure_eq!(socket.recv_vec(1, 0)?, b"");
    }
    Ok(())
}

/// Sends a header that no socket takes, and returns the answer.
fn stray(guest: &mut Guest, header: Header) -> anyhow::Result<Header> {
    guest.send(&header, &[])?;
    Ok(guest
        .receive()
        .with_context(|| format!("after {header:?}"))?
        .header)
}

fn packets_without_a_socket_are_reset(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let listener = Socket::listening(Kind::Stream)?;
    for remote in [0, 1, u32::MAX, listener.port()?] {
        let connection = Connection::new(&guest, Kind::Stream, PORT, remote);
        for operation in [0, 2, 4, 5, 6, 7, 8, 0x100, u16::MAX] {
            let answer = stray(&mut guest, connection.header(operation))?;
            ensure_eq!(answer.operation, operation::RESET);
            ensure_eq!(answer.source_port, remote);
            ensure_eq!(answer.destination_port, PORT);
        }
    }
    Ok(())
}

fn a_reset_without_a_socket_is_not_answered(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let connection = Connection::new(&guest, Kind::Stream, PORT, 99);
    guest.send_control(&connection, operation::RESET, 0)?;
    guest.flush()?;
    guest.expect_silence()?;
    guest.exercise()
}

fn packets_of_another_kind_are_reset(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    let listener = Socket::listening(Kind::Stream)?;
    for kind in [0, SEQPACKET, 3, 0x101, u16::MAX] {
        for remote in [connection.remote, listener.port()?] {
            let header = Header {
                kind,
                destination_port: remote,
                ..connection.header(operation::REQUEST)
            };
            let answer = stray(&mut guest, header)?;
            ensure_eq!(answer.operation, operation::RESET, "kind {kind}");
        }
    }
    guest.converse(&socket, &mut connection)
}

fn packets_from_and_to_others_are_nobodys(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    let good = connection.header(operation::READ_WRITE);
    let cid = good.source_cid;
    let wide = 1 << 32;
    for (source_cid, destination_cid) in [
        (cid + 1, HOST),
        (HOST, HOST),
        (0, HOST),
        (u32::MAX.into(), HOST),
        (cid | wide, HOST),
        (cid, 0),
        (cid, 1),
        (cid, cid),
        (cid, u32::MAX.into()),
        (cid, HOST | wide),
    ] {
        let header = Header {
            source_cid,
            destination_cid,
            len: 4,
            ..good
        };
        guest.send(&header, b"evil")?;
    }
    guest.flush()?;
    guest.expect_silence()?;
    ensure_eq!(socket.unread()?, 0);
    guest.converse(&socket, &mut connection)
}

fn a_connection_ignores_what_it_does_not_know(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    for operation in [
        operation::INVALID,
        operation::REQUEST,
        operation::RESPONSE,
        8,
        u16::MAX,
    ] {
        guest.send_control(&connection, operation, u32::MAX)?;
    }
    // Shutting down nothing is nothing; of the rest only two bits have a meaning.
    guest.send_control(&connection, operation::SHUTDOWN, 0)?;
    guest.send_control(&connection, operation::SHUTDOWN, u32::MAX - 3)?;
    guest.flush()?;
    guest.expect_silence()?;
    guest.converse(&socket, &mut connection)
}

fn a_full_backlog_refuses(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let listener = Socket::new(Kind::Stream)?;
    listener.bind(rvsock_selftests::socket::Address::ANY)?;
    listener.listen(2)?;
    let port = listener.port()?;
    let mut accepted = 0;
    for local in 1.. {
        let connection = Connection::new(&guest, Kind::Stream, local, port);
        let answer = stray(&mut guest, connection.header(operation::REQUEST))?;
        if answer.operation == operation::RESET {
            break;
        }
        ensure_eq!(answer.operation, operation::RESPONSE);
        accepted += 1;
        ensure!(accepted < 10, "a backlog of 2 takes {accepted}");
    }
    // As everywhere, the backlog is exceeded by one.
    ensure_eq!(accepted, 3);
    drop(listener);
    let mut waiting = Vec::new();
    for _ in 0..accepted {
        waiting.push(guest.expect(operation::SHUTDOWN)?);
    }
    // They are answered when the guest goes.
    waiting
        .into_iter()
        .for_each(|packet| guest.put_back(packet));
    Ok(())
}
