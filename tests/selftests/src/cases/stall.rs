// SPDX-License-Identifier: GPL-2.0
//! Connections whose owner waits for memory in a system call, with the socket lock held: nobody else
//! has to wait for that, and nothing is lost.

use std::thread;
use std::time::Duration;

use crate::case::{wait_until, Setup, A_WHILE};
use crate::errno::Errno;
use crate::fault::StalledCall;
use crate::pattern::Pattern;
use crate::socket::{Address, Kind, Pair, Socket, DEFAULT_WINDOW};
use crate::{cases, ensure_eq};

cases!("stall":
    a_stalled_reader_holds_up_no_other_connection
        => "packets for it wait for its lock, and everybody's behind them",
    a_stalled_writer_holds_up_no_other_connection
        => "packets for it wait for its lock, and everybody's behind them",
    a_stalled_reader_of_messages_holds_up_no_other_connection
        => "packets for it wait for its lock, and everybody's behind them",
    a_peer_that_gave_up_can_use_its_port_again
        => "its reset waits for the lock, and the new request behind it",
    what_was_begun_for_a_peer_that_gave_up_is_not_for_its_successor
        => "the reset waits for the lock, and the new request behind it",
    what_comes_meanwhile_is_read_in_order,
    messages_that_come_meanwhile_are_whole,
    more_than_the_window_comes_when_there_is_room,
    single_bytes_fill_the_window,
    a_half_close_comes_after_the_data,
    a_peer_that_closes_is_noticed_afterwards,
    credit_that_comes_meanwhile_counts,
);

/// How long a connection may take that nobody holds up.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The reader of `pair` waits for memory, with `first` to be read.
fn stall_reader(pair: &Pair, first: &[u8]) -> anyhow::Result<StalledCall> {
    pair.client.send_all(first)?;
    let is_there = || pair.server.poll(libc::POLLIN, Duration::ZERO) == Ok(libc::POLLIN);
    wait_until("it is there", is_there)?;
    StalledCall::reader(&pair.server)
}

/// Bytes go there and back, at once.
fn use_connection(pair: &Pair) -> anyhow::Result<()> {
    for end in [&pair.client, &pair.server] {
        end.set_receive_timeout(AT_ONCE)?;
    }
    for round in 0..10 {
        pair.client.send_all(&[round; 1000])?;
        ensure_eq!(pair.server.recv_exact(1000)?, vec![round; 1000]);
        pair.server.send_all(&[round; 1000])?;
        ensure_eq!(pair.client.recv_exact(1000)?, vec![round; 1000]);
    }
    Ok(())
}

fn a_stalled_reader_holds_up_no_other_connection(setup: &Setup) -> anyhow::Result<()> {
    let (pair, other) = (setup.pair(Kind::Stream)?, setup.pair(Kind::Stream)?);
    let stalled = stall_reader(&pair, b"first")?;
    pair.client.send_all(b"second")?;
    use_connection(&other)?;
    // New ones, too.
    let listener = Socket::listening(Kind::Stream)?;
    let client = Socket::new(Kind::Stream)?;
    client.set_connect_timeout(AT_ONCE)?;
    client.connect(setup.address(&listener)?)?;
    let server = listener.accept()?;
    use_connection(&Pair { client, server })?;
    let mut bytes = stalled.release()?;
    let rest = b"firstsecond".len() - bytes.len();
    bytes.extend(pair.server.recv_exact(rest)?);
    ensure_eq!(bytes, b"firstsecond");
    use_connection(&pair)
}

fn a_stalled_writer_holds_up_no_other_connection(setup: &Setup) -> anyhow::Result<()> {
    let (pair, other) = (setup.pair(Kind::Stream)?, setup.pair(Kind::Stream)?);
    let stalled = StalledCall::writer(&pair.client)?;
    pair.server.send_all(b"for the writer")?;
    use_connection(&other)?;
    let sent = stalled.release()?;
    ensure_eq!(pair.server.recv_exact(sent.len())?, sent);
    ensure_eq!(pair.client.recv_exact(14)?, b"for the writer");
    use_connection(&pair)
}

fn a_stalled_reader_of_messages_holds_up_no_other_connection(setup: &Setup) -> anyhow::Result<()> {
    let (pair, other) = (setup.pair(Kind::Seqpacket)?, setup.pair(Kind::Stream)?);
    let stalled = stall_reader(&pair, b"first")?;
    pair.client.send_all(b"second")?;
    use_connection(&other)?;
    ensure_eq!(stalled.release()?, b"first");
    ensure_eq!(pair.server.recv_vec(100, 0)?, b"second");
    Ok(())
}

/// A connection to `listener`.
fn accepted(setup: &Setup, listener: &Socket) -> anyhow::Result<Pair> {
    let client = setup.connected_to(listener, Kind::Stream)?;
    Ok(Pair {
        server: listener.accept()?,
        client,
    })
}

/// Gives `client` up, whose server is stalled, and connects again from the same port.
fn connect_again(setup: &Setup, listener: &Socket, client: Socket) -> anyhow::Result<Pair> {
    let address = Address {
        port: client.port()?,
        ..Address::ANY
    };
    drop(client);
    let client = Socket::new(Kind::Stream)?;
    client.set_connect_timeout(AT_ONCE)?;
    // After 8 s without an answer the closed end resets the connection, and is gone.
    wait_until("the port is free", || client.bind(address).is_ok())?;
    client.connect(setup.address(listener)?)?;
    Ok(Pair {
        server: listener.accept()?,
        client,
    })
}

fn a_peer_that_gave_up_can_use_its_port_again(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    let pair = accepted(setup, &listener)?;
    let stalled = stall_reader(&pair, b"last words")?;
    use_connection(&connect_again(setup, &listener, pair.client)?)?;
    ensure_eq!(stalled.release()?, b"last words");
    ensure_eq!(pair.server.recv_exact(1)?, b"");
    Ok(())
}

fn what_was_begun_for_a_peer_that_gave_up_is_not_for_its_successor(
    setup: &Setup,
) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    let pair = accepted(setup, &listener)?;
    let stalled = StalledCall::writer(&pair.server)?;
    let again = connect_again(setup, &listener, pair.client)?;
    let _ = stalled.release();
    again.client.set_receive_timeout(A_WHILE)?;
    let got = again.client.recv_vec(1 << 16, 0);
    ensure_eq!(got.map(|bytes| bytes.len()), Err(Errno(libc::EAGAIN)));
    use_connection(&again)
}

/// Reads what is left of `len` bytes after those that the stalled call has read.
fn read_rest(server: &Socket, stalled: StalledCall, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = stalled.release()?;
    bytes.extend(server.recv_exact(len - bytes.len())?);
    Ok(bytes)
}

fn what_comes_meanwhile_is_read_in_order(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(60);
    for size in [1, 100, 4096, 65_536] {
        let pair = setup.pair(Kind::Stream)?;
        let stalled = stall_reader(&pair, &pattern.bytes(0, 10))?;
        let mut position = 10;
        for _ in 0..(DEFAULT_WINDOW / 2 / size).min(200) {
            pair.client
                .send_all(&pattern.bytes(position as u64, size))?;
            position += size;
        }
        pattern.check(0, &read_rest(&pair.server, stalled, position)?)?;
        ensure_eq!(pair.server.unread()?, 0);
    }
    Ok(())
}

fn messages_that_come_meanwhile_are_whole(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Seqpacket)?;
    let pattern = Pattern::new(61);
    let stalled = stall_reader(&pair, b"first")?;
    let sizes = [1, 100, 4096, 70_000, 64];
    for size in sizes {
        pair.client.send(&pattern.bytes(size as u64, size), 0)?;
    }
    ensure_eq!(stalled.release()?, b"first");
    for size in sizes {
        let message = pair.server.recv_vec(100_000, 0)?;
        ensure_eq!(message.len(), size);
        pattern.check(size as u64, &message)?;
    }
    Ok(())
}

fn more_than_the_window_comes_when_there_is_room(setup: &Setup) -> anyhow::Result<()> {
    const LEN: usize = 4 * DEFAULT_WINDOW;
    let pair = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(62);
    let stalled = stall_reader(&pair, &pattern.bytes(0, 1))?;
    let client = pair.client.duplicate()?;
    let rest = pattern.bytes(1, LEN - 1);
    let writer = thread::spawn(move || client.send_all(&rest));
    thread::sleep(A_WHILE);
    pattern.check(0, &read_rest(&pair.server, stalled, LEN)?)?;
    writer.join().expect("the writer does not panic")?;
    Ok(())
}

fn single_bytes_fill_the_window(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: usize = 4096;
    let pair = setup.pair_with_windows(Kind::Stream, WINDOW as u64, WINDOW as u64)?;
    let pattern = Pattern::new(63);
    let stalled = stall_reader(&pair, &pattern.bytes(0, 1))?;
    for position in 1..WINDOW {
        pair.client.send_all(&pattern.bytes(position as u64, 1))?;
    }
    pattern.check(0, &read_rest(&pair.server, stalled, WINDOW)?)
}

fn a_half_close_comes_after_the_data(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Stream)?;
    let stalled = stall_reader(&pair, b"first")?;
    pair.client.send_all(b"last")?;
    pair.client.shutdown(libc::SHUT_WR)?;
    ensure_eq!(read_rest(&pair.server, stalled, 9)?, b"firstlast");
    ensure_eq!(pair.server.recv_exact(1)?, b"");
    pair.server.send_all(b"answer")?;
    ensure_eq!(pair.client.recv_exact(6)?, b"answer");
    Ok(())
}

fn a_peer_that_closes_is_noticed_afterwards(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Stream)?;
    let stalled = stall_reader(&pair, b"first")?;
    pair.client.send_all(b"last")?;
    drop(pair.client);
    ensure_eq!(read_rest(&pair.server, stalled, 9)?, b"firstlast");
    ensure_eq!(pair.server.recv_exact(1)?, b"");
    let is_over = || pair.server.send(b"x", 0).is_err();
    wait_until("sending fails", is_over)
}

/// The reader of one direction is the writer of the other.
fn credit_that_comes_meanwhile_counts(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Stream)?;
    pair.server.send_all(&vec![7; DEFAULT_WINDOW])?;
    let stalled = stall_reader(&pair, b"first")?;
    ensure_eq!(
        pair.client.recv_exact(DEFAULT_WINDOW)?.len(),
        DEFAULT_WINDOW
    );
    ensure_eq!(stalled.release()?, b"first");
    pair.server.set_nonblocking()?;
    let mut sent = 0;
    wait_until("there is room", || {
        sent += pair.server.send(&[8; 1000], 0).unwrap_or(0);
        sent >= 1000
    })?;
    ensure_eq!(pair.client.recv_exact(1000)?, vec![8; 1000]);
    Ok(())
}
