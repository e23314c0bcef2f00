// SPDX-License-Identifier: GPL-2.0
//! Two guests: a packet reaches a socket only from its peer.
//!
//! A client stays in the table of bound sockets while it connects and is connected, and C looks
//! there by destination only.

use anyhow::{ensure, Context};
use rvsock_selftests::case::Setup;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::{Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};

use crate::guest::{Connection, Guest, Options, CID, PORT, SHORT, SOON};
use crate::header::{flag, operation, Header};

cases!("source":
    a_stranger_cannot_answer_for_another_guest
        => "the answer is taken from any guest",
    a_stranger_cannot_write_into_a_connection
        => "the payload is taken from any guest",
    a_stranger_cannot_end_a_connection
        => "a reset is taken from any guest",
    a_stranger_cannot_shut_down_a_connection
        => "a shutdown is taken from any guest",
    a_stranger_cannot_change_a_window
        => "credit is taken from any guest",
    a_stranger_gets_no_credit
        => "credit is sent to the socket's peer whoever asks",
    accepted_sockets_know_their_peers,
    a_strange_port_of_the_same_guest_is_a_stranger
        => "the port is not compared either",
);

const KINDS: [Kind; 2] = [Kind::Stream, Kind::Seqpacket];

fn stranger() -> anyhow::Result<Guest> {
    Guest::start(&Options {
        cid: CID + 1,
        ..Options::default()
    })
}

/// A packet from a stranger to a port of the host, which has to be reset.
fn refused(
    stranger: &mut Guest,
    kind: Kind,
    (local, port): (u32, u32),
    change: impl FnOnce(Header) -> Header,
    payload: &[u8],
) -> anyhow::Result<()> {
    let connection = Connection::new(stranger, kind, local, port);
    let header = change(Header {
        len: payload.len() as u32,
        ..connection.header(operation::READ_WRITE)
    });
    stranger.send(&header, payload)?;
    stranger.flush()?;
    if header.operation == operation::RESET {
        return stranger.expect_silence();
    }
    loop {
        let answer = stranger.receive_within(SOON)?.map(|packet| packet.header);
        let answer = answer.context("nobody has refused it")?;
        if answer.operation != operation::CREDIT_UPDATE {
            ensure_eq!(answer.operation, operation::RESET);
            ensure_eq!(answer.destination_port, local);
            break;
        }
    }
    Ok(())
}

fn is(operation: u16) -> impl Fn(Header) -> Header {
    move |header| Header {
        operation,
        ..header
    }
}

fn a_stranger_cannot_answer_for_another_guest(_: &Setup) -> anyhow::Result<()> {
    let (mut guest, mut stranger) = (Guest::start(&Options::default())?, stranger()?);
    for kind in KINDS {
        for operation in [operation::RESPONSE, operation::RESET, operation::READ_WRITE] {
            let socket = Socket::new(kind)?;
            socket.set_nonblocking()?;
            ensure_eq!(
                socket.connect(guest.address(PORT)),
                Err(Errno(libc::EINPROGRESS))
            );
            let ports = (PORT, socket.port()?);
            refused(&mut stranger, kind, ports, is(operation), b"")?;
            ensure_eq!(socket.poll(libc::POLLOUT, SHORT)?, 0, "{operation}");
            ensure_eq!(socket.take_error()?, None);
            let connection = guest.accept()?;
            ensure!(socket.poll(libc::POLLOUT, 10 * SHORT)? & libc::POLLOUT != 0);
            ensure_eq!(socket.take_error()?, None);
            drop(socket);
            guest.answer_close(&connection)?;
        }
    }
    Ok(())
}

/// Whatever the stranger sends, the connection to the guest goes on.
fn harmless(change: impl Fn(Header) -> Header, payload: &[u8]) -> anyhow::Result<()> {
    let (mut guest, mut stranger) = (Guest::start(&Options::default())?, stranger()?);
    for kind in KINDS {
        let (socket, mut connection) = guest.accept_from(kind)?;
        guest.converse(&socket, &mut connection)?;
        let ports = (PORT, connection.remote);
        refused(&mut stranger, kind, ports, &change, payload)?;
        ensure_eq!(socket.unread()?, 0);
        guest.converse(&socket, &mut connection)?;
        drop(socket);
        guest.answer_close(&connection)?;
    }
    Ok(())
}

fn a_stranger_cannot_write_into_a_connection(_: &Setup) -> anyhow::Result<()> {
    let change = |header| Header {
        flags: flag::END_OF_MESSAGE,
        ..header
    };
    harmless(change, b"evil")
}

fn a_stranger_cannot_end_a_connection(_: &Setup) -> anyhow::Result<()> {
    harmless(is(operation::RESET), b"")
}

fn a_stranger_cannot_shut_down_a_connection(_: &Setup) -> anyhow::Result<()> {
    for flags in [
        flag::SHUTDOWN_SEND,
        flag::SHUTDOWN_RECEIVE,
        flag::SHUTDOWN_BOTH,
    ] {
        let change = |header| Header {
            operation: operation::SHUTDOWN,
            flags,
            ..header
        };
        harmless(change, b"")?;
    }
    Ok(())
}

fn a_stranger_cannot_change_a_window(_: &Setup) -> anyhow::Result<()> {
    for (buf_alloc, fwd_cnt) in [(0, 0), (0, 8), (u32::MAX, u32::MAX)] {
        let change = |header| Header {
            operation: operation::CREDIT_UPDATE,
            buf_alloc,
            fwd_cnt,
            ..header
        };
        harmless(change, b"")?;
    }
    Ok(())
}

fn a_stranger_gets_no_credit(_: &Setup) -> anyhow::Result<()> {
    harmless(is(operation::CREDIT_REQUEST), b"")
}

fn accepted_sockets_know_their_peers(_: &Setup) -> anyhow::Result<()> {
    let (mut guest, mut stranger) = (Guest::start(&Options::default())?, stranger()?);
    let listener = Socket::listening(Kind::Stream)?;
    let port = listener.port()?;
    let mut connection = guest.connect(Kind::Stream, PORT, port)?;
    let socket = listener.accept()?;
    refused(&mut stranger, Kind::Stream, (PORT, port), |h| h, b"evil")?;
    refused(
        &mut stranger,
        Kind::Stream,
        (PORT, port),
        is(operation::RESET),
        b"",
    )?;
    guest.converse(&socket, &mut connection)
}

fn a_strange_port_of_the_same_guest_is_a_stranger(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        let (socket, mut connection) = guest.accept_from(kind)?;
        guest.converse(&socket, &mut connection)?;
        let ports = (PORT + 1, connection.remote);
        refused(&mut guest, kind, ports, |h| h, b"evil")?;
        ensure_eq!(socket.unread()?, 0);
        guest.converse(&socket, &mut connection)?;
        drop(socket);
        guest.answer_close(&connection)?;
    }
    Ok(())
}
