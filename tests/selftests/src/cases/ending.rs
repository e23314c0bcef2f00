// SPDX-License-Identifier: GPL-2.0
//! How connections end, and what is left of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use libc::{MSG_DONTWAIT, SHUT_RD, SHUT_RDWR, SHUT_WR};

use crate::case::{stays, wait_until, Setup, PATIENCE};
use crate::errno::Errno;
use crate::fault::StalledDelivery;
use crate::socket::{Address, Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("ending":
    a_stream_that_is_shut_for_sending_can_still_receive,
    a_peer_that_will_not_receive_cannot_be_sent_to,
    a_reader_that_shut_its_end_reads_nothing,
    a_blocked_reader_wakes_when_either_end_shuts_down,
    a_blocked_writer_wakes_when_either_end_shuts_down,
    writing_to_a_closed_peer_raises_sigpipe_unless_told_not_to,
    closing_with_unread_data_lets_the_peer_read_its_own,
    data_sent_before_close_is_read_after_it,
    a_socket_that_was_never_connected_says_so,
    a_connected_socket_cannot_connect_again,
    nobody_listening_is_a_reset,
    a_socket_that_failed_to_connect_can_listen,
    a_full_backlog_is_a_reset,
    a_listener_that_goes_resets_who_was_not_accepted,
    accept_needs_a_listener,
    a_connect_without_answer_times_out_and_can_be_repeated,
    a_connect_without_answer_can_be_interrupted,
    a_port_can_be_used_again_after_both_ends_closed
        => "both the peer's close and its own are answered: the second reset meets the next connection",
    close_does_not_wait_without_linger,
    a_lingering_close_waits_until_everything_has_left,
    a_lingering_close_gives_up_in_time,
    a_linger_of_0_does_not_wait,
    a_closed_socket_waits_8_s_for_a_peer_that_does_not_answer,
);

/// Waits until the peer of `socket` has closed its end.
pub fn gone(socket: &Socket) -> anyhow::Result<()> {
    let (mut send, mut seen) = (Ok(0), 0);
    wait_until("the peer is gone", || {
        seen = socket.events().unwrap_or(0);
        send = socket.send(b"", 0);
        seen & libc::POLLRDHUP != 0 && send == Err(Errno(libc::EPIPE))
    })
    .map_err(|error| error.context(format!("events are {seen:#x}, send() returns {send:?}")))
}

fn a_stream_that_is_shut_for_sending_can_still_receive(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = setup.pair(kind)?;
        client.send(b"last words", 0)?;
        client.shutdown(SHUT_WR)?;
        ensure_eq!(client.send(b"x", 0), Err(Errno(libc::EPIPE)));
        ensure_eq!(server.recv_exact(10)?, b"last words");
        ensure_eq!(server.recv_vec(1, 0), Ok(vec![]));
        for _ in 0..3 {
            server.send(b"answer", 0)?;
            ensure_eq!(client.recv_vec(10, 0), Ok(b"answer".to_vec()));
        }
    }
    Ok(())
}

fn a_peer_that_will_not_receive_cannot_be_sent_to(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    server.shutdown(SHUT_RD)?;
    wait_until("the peer knows", || {
        client.send(b"x", 0) == Err(Errno(libc::EPIPE))
    })?;
    server.send_all(b"still heard")?;
    ensure_eq!(client.recv_exact(11)?, b"still heard");
    Ok(())
}

fn a_reader_that_shut_its_end_reads_nothing(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.send_all(b"unread")?;
    wait_until("it is there", || server.unread() == Ok(6))?;
    server.shutdown(SHUT_RD)?;
    ensure_eq!(server.recv_vec(10, 0), Ok(vec![]));
    Ok(())
}

fn a_blocked_reader_wakes_when_either_end_shuts_down(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        for own in [false, true] {
            let Pair { client, server } = setup.pair(kind)?;
            thread::scope(|scope| {
                let reader = scope.spawn(|| server.recv_vec(1, 0));
                stays("the reader is blocked", || !reader.is_finished())?;
                if own {
                    server.shutdown(SHUT_RD)?;
                } else {
                    client.shutdown(SHUT_WR)?;
                }
                ensure_eq!(reader.join().unwrap(), Ok(vec![]));
                anyhow::Ok(())
            })?;
        }
    }
    Ok(())
}

fn a_blocked_writer_wakes_when_either_end_shuts_down(setup: &Setup) -> anyhow::Result<()> {
    for own in [false, true] {
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        super::credit::fill(&client, 64 * 1024)?;
        thread::scope(|scope| {
            let writer = scope.spawn(|| client.send(b"x", 0));
            stays("the writer is blocked", || !writer.is_finished())?;
            if own {
                client.shutdown(SHUT_WR)?;
            } else {
                server.shutdown(SHUT_RD)?;
            }
            ensure_eq!(writer.join().unwrap(), Err(Errno(libc::EPIPE)));
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_signal: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Counts a signal in `SIGNALS`; system calls are not restarted after it.
fn catch(signal: i32) {
    // SAFETY: The handler is safe in any context.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as *const () as usize;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

fn writing_to_a_closed_peer_raises_sigpipe_unless_told_not_to(setup: &Setup) -> anyhow::Result<()> {
    catch(libc::SIGPIPE);
    // Only streams raise it.
    for (kind, signals) in [(Kind::Stream, 1), (Kind::Seqpacket, 0)] {
        let Pair { client, server } = setup.pair(kind)?;
        drop(server);
        gone(&client)?;
        SIGNALS.store(0, Ordering::Relaxed);
        ensure_eq!(client.send(b"x", 0), Err(Errno(libc::EPIPE)));
        ensure_eq!(
            SIGNALS.load(Ordering::Relaxed),
            0,
            "{kind:?} with MSG_NOSIGNAL"
        );
        ensure_eq!(
            client.send_raw(b"x".as_ptr(), 1, 0),
            Err(Errno(libc::EPIPE))
        );
        ensure_eq!(SIGNALS.load(Ordering::Relaxed), signals, "{kind:?}");
    }
    Ok(())
}

fn closing_with_unread_data_lets_the_peer_read_its_own(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = setup.pair(kind)?;
        client.send(b"never read", 0)?;
        server.send(b"for you", 0)?;
        wait_until("both are there", || {
            server.unread() == Ok(10) && client.unread() == Ok(7)
        })?;
        drop(server);
        gone(&client)?;
        ensure_eq!(client.send(b"x", MSG_DONTWAIT), Err(Errno(libc::EPIPE)));
        ensure_eq!(client.unread()?, 7);
        ensure_eq!(client.recv_vec(10, 0), Ok(b"for you".to_vec()));
        ensure_eq!(client.recv_vec(10, 0), Ok(vec![]));
        ensure_eq!(client.recv_vec(10, 0), Ok(vec![]));
    }
    Ok(())
}

fn data_sent_before_close_is_read_after_it(setup: &Setup) -> anyhow::Result<()> {
    let pattern = crate::pattern::Pattern::new(9);
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.send_all(&pattern.bytes(0, 200_000))?;
    drop(client);
    gone(&server)?;
    let bytes = server.recv_exact(300_000)?;
    ensure_eq!(bytes.len(), 200_000);
    pattern.check(0, &bytes)
}

fn a_socket_that_was_never_connected_says_so(_setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let socket = Socket::new(kind)?;
        ensure_eq!(socket.send(b"x", 0), Err(Errno(libc::ENOTCONN)));
        ensure_eq!(socket.recv_vec(1, 0), Err(Errno(libc::ENOTCONN)));
        ensure_eq!(socket.shutdown(SHUT_RDWR), Err(Errno(libc::ENOTCONN)));
        let listener = Socket::listening(kind)?;
        ensure_eq!(listener.send(b"x", 0), Err(Errno(libc::ENOTCONN)));
        ensure_eq!(listener.recv_vec(1, 0), Err(Errno(libc::ENOTCONN)));
    }
    Ok(())
}

fn a_connected_socket_cannot_connect_again(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    let pair = setup.pair(Kind::Stream)?;
    for end in [&pair.client, &pair.server] {
        ensure_eq!(
            end.connect(setup.address(&listener)?),
            Err(Errno(libc::EISCONN))
        );
    }
    ensure_eq!(
        listener.connect(setup.address(&listener)?),
        Err(Errno(libc::EINVAL))
    );
    pair.client.send_all(b"x")?;
    ensure_eq!(pair.server.recv_exact(1)?, b"x");
    Ok(())
}

/// A port that was just free; nothing else in this namespace opens ports meanwhile.
fn free_address(setup: &Setup) -> anyhow::Result<Address> {
    Ok(setup.address(&Socket::listening(Kind::Stream)?)?)
}

fn nobody_listening_is_a_reset(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let socket = Socket::new(kind)?;
        let address = free_address(setup)?;
        for _ in 0..3 {
            ensure_eq!(socket.connect(address), Err(Errno(libc::ECONNRESET)));
        }
        // The same socket can still connect.
        let listener = Socket::listening(kind)?;
        socket.connect(setup.address(&listener)?)?;
        listener.accept()?.send(b"hello", 0)?;
        ensure_eq!(socket.recv_vec(10, 0), Ok(b"hello".to_vec()));
    }
    Ok(())
}

fn a_socket_that_failed_to_connect_can_listen(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let socket = Socket::new(kind)?;
        socket.set_receive_timeout(PATIENCE)?;
        for _ in 0..3 {
            ensure_eq!(
                socket.connect(free_address(setup)?),
                Err(Errno(libc::ECONNRESET))
            );
        }
        // What the failure has left, an error or the state of a connection, is nothing to a listener.
        socket.listen(10)?;
        for _ in 0..3 {
            let client = setup.connected_to(&socket, kind)?;
            let server = socket.accept()?;
            Pair { client, server }.converse()?;
        }
    }
    Ok(())
}

fn a_full_backlog_is_a_reset(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::new(Kind::Stream)?;
    listener.bind(Address::ANY)?;
    listener.listen(2)?;
    let mut waiting = Vec::new();
    let refused = loop {
        match setup.connected_to(&listener, Kind::Stream) {
            Ok(socket) => waiting.push(socket),
            Err(error) => break error,
        }
        ensure!(waiting.len() < 10, "nobody is refused");
    };
    ensure_eq!(refused, Errno(libc::ECONNRESET));
    // As everywhere, the backlog is exceeded by one.
    ensure_eq!(waiting.len(), 3);
    let server = listener.accept()?;
    waiting[0].send_all(b"first")?;
    ensure_eq!(server.recv_exact(5)?, b"first");
    waiting.push(setup.connected_to(&listener, Kind::Stream)?);
    Ok(())
}

fn a_listener_that_goes_resets_who_was_not_accepted(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    let clients = [(); 3].map(|()| setup.connected_to(&listener, Kind::Stream));
    let clients = clients.into_iter().collect::<Result<Vec<_>, _>>()?;
    clients[0].send_all(b"lost")?;
    drop(listener);
    for client in &clients {
        gone(client)?;
        ensure_eq!(client.recv_vec(1, 0), Ok(vec![]));
        ensure_eq!(client.send(b"x", 0), Err(Errno(libc::EPIPE)));
    }
    Ok(())
}

fn accept_needs_a_listener(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Stream)?;
    let bound = Socket::new(Kind::Stream)?;
    bound.bind(Address::ANY)?;
    for socket in [&pair.client, &pair.server, &bound] {
        ensure_eq!(socket.accept().map(|_| ()), Err(Errno(libc::EINVAL)));
    }
    let listener = Socket::listening(Kind::Stream)?;
    listener.set_nonblocking()?;
    ensure_eq!(listener.accept().map(|_| ()), Err(Errno(libc::EAGAIN)));
    Ok(())
}

fn a_connect_without_answer_times_out_and_can_be_repeated(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    listener.set_nonblocking()?;
    let client = Socket::new(Kind::Stream)?;
    client.set_connect_timeout(Duration::from_millis(100))?;
    let stalled = StalledDelivery::new(setup)?;
    let started = Instant::now();
    ensure_eq!(
        client.connect(setup.address(&listener)?),
        Err(Errno(libc::ETIMEDOUT))
    );
    ensure!(
        started.elapsed() >= Duration::from_millis(100),
        "after {:?}",
        started.elapsed()
    );
    stalled.release()?;
    // The request was taken back.
    ensure_eq!(listener.poll(libc::POLLIN, crate::case::A_WHILE)?, 0);
    client.set_connect_timeout(PATIENCE)?;
    client.connect(setup.address(&listener)?)?;
    listener.accept()?.send_all(b"at last")?;
    ensure_eq!(client.recv_exact(7)?, b"at last");
    Ok(())
}

fn a_connect_without_answer_can_be_interrupted(setup: &Setup) -> anyhow::Result<()> {
    catch(libc::SIGUSR1);
    let listener = Socket::listening(Kind::Stream)?;
    let client = Socket::new(Kind::Stream)?;
    client.set_connect_timeout(PATIENCE)?;
    let address = setup.address(&listener)?;
    let stalled = StalledDelivery::new(setup)?;
    let client_end = &client;
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let connecting = scope.spawn(move || {
            // SAFETY: No memory involved.
            tell.send(unsafe { libc::pthread_self() }).unwrap();
            client_end.connect(address)
        });
        let thread = told.recv()?;
        stays("connect() waits", || !connecting.is_finished())?;
        // SAFETY: The thread was not joined.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
        ensure_eq!(connecting.join().unwrap(), Err(Errno(libc::EINTR)));
        anyhow::Ok(())
    })?;
    stalled.release()?;
    client.connect(address)?;
    listener.accept()?.send_all(b"at last")?;
    ensure_eq!(client.recv_exact(7)?, b"at last");
    Ok(())
}

fn a_port_can_be_used_again_after_both_ends_closed(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    let first = Socket::new(Kind::Stream)?;
    first.connect(setup.address(&listener)?)?;
    let server = listener.accept()?;
    let port = first.port()?;
    drop(first);
    gone(&server)?;
    // Behind what is delivered before it, so the first client's end is gone now.
    let stalled = StalledDelivery::new(setup)?;
    drop(server);
    let second = Socket::new(Kind::Stream)?;
    second.set_nonblocking()?;
    second.bind(Address {
        port,
        ..Address::ANY
    })?;
    ensure_eq!(
        second.connect(setup.address(&listener)?),
        Err(Errno(libc::EINPROGRESS))
    );
    stalled.release()?;
    second.poll(libc::POLLOUT, PATIENCE)?;
    ensure_eq!(second.take_error()?, None);
    listener.accept()?.send_all(b"again")?;
    second.poll(libc::POLLIN, PATIENCE)?;
    ensure_eq!(second.recv_exact(5)?, b"again");
    Ok(())
}

fn close_does_not_wait_without_linger(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Stream)?;
    let stalled = StalledDelivery::new(setup)?;
    pair.client.send_all(b"not out yet")?;
    let started = Instant::now();
    drop(pair.client);
    ensure!(
        started.elapsed() < Duration::from_secs(1),
        "close() took {:?}",
        started.elapsed()
    );
    stalled.release()?;
    ensure_eq!(pair.server.recv_exact(11)?, b"not out yet");
    Ok(())
}

fn a_lingering_close_waits_until_everything_has_left(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_linger(60)?;
    let stalled = StalledDelivery::new(setup)?;
    client.send_all(b"not out yet")?;
    thread::scope(|scope| {
        let closing = scope.spawn(move || drop(client));
        stays("close() waits", || !closing.is_finished())?;
        stalled.release()?;
        closing.join().unwrap();
        anyhow::Ok(())
    })?;
    ensure_eq!(server.recv_exact(11)?, b"not out yet");
    Ok(())
}

fn a_lingering_close_gives_up_in_time(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_linger(1)?;
    let stalled = StalledDelivery::new(setup)?;
    client.send_all(b"not out yet")?;
    let started = Instant::now();
    drop(client);
    let took = started.elapsed();
    stalled.release()?;
    ensure!(took >= Duration::from_millis(990), "close() took {took:?}");
    ensure!(took < PATIENCE, "close() took {took:?}");
    ensure_eq!(server.recv_exact(11)?, b"not out yet");
    Ok(())
}

fn a_linger_of_0_does_not_wait(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_linger(0)?;
    let stalled = StalledDelivery::new(setup)?;
    client.send_all(b"not out yet")?;
    let started = Instant::now();
    drop(client);
    ensure!(
        started.elapsed() < Duration::from_secs(1),
        "close() took {:?}",
        started.elapsed()
    );
    stalled.release()?;
    ensure_eq!(server.recv_exact(11)?, b"not out yet");
    Ok(())
}

/// The peer has unread data, so it does not answer the good-bye with a reset.
fn a_closed_socket_waits_8_s_for_a_peer_that_does_not_answer(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.send_all(b"read late")?;
    wait_until("it is there", || server.unread() == Ok(9))?;
    let started = Instant::now();
    drop(client);
    gone(&server)?;
    // The reset that comes then ends what the reader has, too; but only what came before counts.
    thread::sleep(Duration::from_secs(10).saturating_sub(started.elapsed()));
    ensure_eq!(server.recv_exact(20)?, b"read late");
    ensure_eq!(server.send(b"x", 0), Err(Errno(libc::EPIPE)));
    Ok(())
}
