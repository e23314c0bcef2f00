// SPDX-License-Identifier: GPL-2.0
//! What poll() and epoll report, and when.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::ensure;

use super::credit::fill;
use crate::case::{wait_until, Setup, A_WHILE, PATIENCE};
use crate::errno::{check, Errno};
use crate::socket::{Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("polling":
    a_new_connection_can_be_written_and_not_read,
    data_makes_readable_until_it_is_read,
    a_full_window_makes_unwritable_until_there_is_room,
    a_half_closed_peer_makes_readable_for_good,
    a_closed_peer_makes_readable_and_writable,
    a_listener_is_readable_while_somebody_waits,
    a_refused_connect_is_an_error,
    an_edge_is_reported_once_for_each_arrival,
    an_edge_is_reported_when_a_full_window_opens,
);

/// Waits until a socket's events are these.
fn becomes(socket: &Socket, events: i16) -> anyhow::Result<()> {
    let mut last = 0;
    let what = format!("events {events:#x}");
    wait_until(&what, || {
        last = socket.events().unwrap_or(0);
        last == events
    })
    .map_err(|error| error.context(format!("events are {last:#x}")))
}

use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP};

fn a_new_connection_can_be_written_and_not_read(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let pair = setup.pair(kind)?;
        ensure_eq!(pair.client.events()?, POLLOUT);
        ensure_eq!(pair.server.events()?, POLLOUT);
    }
    Ok(())
}

fn data_makes_readable_until_it_is_read(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = setup.pair(kind)?;
        client.send(b"ab", 0)?;
        becomes(&server, POLLIN | POLLOUT)?;
        server.recv_vec(1, libc::MSG_PEEK)?;
        becomes(&server, POLLIN | POLLOUT)?;
        server.recv_vec(2, 0)?;
        becomes(&server, POLLOUT)?;
    }
    Ok(())
}

fn a_full_window_makes_unwritable_until_there_is_room(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let filled = fill(&client, 10_000)?;
    becomes(&client, 0)?;
    server.recv_exact(filled)?;
    becomes(&client, POLLOUT)
}

fn a_half_closed_peer_makes_readable_for_good(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.send(b"x", 0)?;
    client.shutdown(libc::SHUT_WR)?;
    becomes(&server, POLLIN | POLLOUT | POLLRDHUP)?;
    server.recv_exact(1)?;
    becomes(&server, POLLIN | POLLOUT | POLLRDHUP)?;
    ensure_eq!(server.recv_vec(1, 0), Ok(vec![]));
    becomes(&server, POLLIN | POLLOUT | POLLRDHUP)
}

/// Not POLLHUP: this end was not shut down.
fn a_closed_peer_makes_readable_and_writable(setup: &Setup) -> anyhow::Result<()> {
    for unread in [&b""[..], b"unread"] {
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        client.send_all(unread)?;
        drop(client);
        super::ending::gone(&server)?;
        becomes(&server, POLLIN | POLLOUT | POLLRDHUP)?;
        server.shutdown(libc::SHUT_RDWR)?;
        becomes(&server, POLLIN | POLLRDHUP | POLLHUP)?;
    }
    Ok(())
}

fn a_listener_is_readable_while_somebody_waits(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    ensure_eq!(listener.poll(POLLIN, A_WHILE)?, 0);
    let first = setup.connected_to(&listener, Kind::Stream)?;
    let second = setup.connected_to(&listener, Kind::Stream)?;
    for _ in [&first, &second] {
        ensure_eq!(listener.poll(POLLIN, PATIENCE)?, POLLIN);
        listener.accept()?;
    }
    ensure_eq!(listener.poll(POLLIN, A_WHILE)?, 0);
    Ok(())
}

fn a_refused_connect_is_an_error(setup: &Setup) -> anyhow::Result<()> {
    let address = setup.address(&Socket::listening(Kind::Stream)?)?;
    let client = Socket::new(Kind::Stream)?;
    client.set_nonblocking()?;
    ensure_eq!(client.connect(address), Err(Errno(libc::EINPROGRESS)));
    let events = client.poll(POLLOUT, PATIENCE)?;
    ensure!(events & POLLERR != 0, "events are {events:#x}");
    ensure_eq!(client.take_error()?, Some(Errno(libc::ECONNRESET)));
    ensure_eq!(client.take_error()?, None);
    Ok(())
}

/// An epoll that watches one socket for edges.
struct Edges(OwnedFd);

impl Edges {
    fn of(socket: &Socket, events: i32) -> anyhow::Result<Self> {
        // SAFETY: The descriptor is ours; the event lives through the call.
        unsafe {
            let epoll = OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?);
            let mut event = libc::epoll_event {
                events: (events | libc::EPOLLET) as u32,
                u64: 0,
            };
            check(libc::epoll_ctl(
                epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &mut event,
            ))?;
            Ok(Self(epoll))
        }
    }

    /// The events of the next edge; 0 if there is none in time.
    fn next(&self, timeout: Duration) -> anyhow::Result<u32> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: There is room for one event.
        check(unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                &mut event,
                1,
                timeout.as_millis() as i32,
            )
        })?;
        Ok(event.events)
    }
}

fn an_edge_is_reported_once_for_each_arrival(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let edges = Edges::of(&server, libc::EPOLLIN)?;
    ensure_eq!(edges.next(A_WHILE)?, 0);
    // Also while there is unread data.
    for _ in 0..3 {
        client.send_all(b"data")?;
        ensure_eq!(edges.next(PATIENCE)?, libc::EPOLLIN as u32);
        ensure_eq!(edges.next(A_WHILE)?, 0);
    }
    server.recv_exact(12)?;
    ensure_eq!(edges.next(A_WHILE)?, 0);
    Ok(())
}

fn an_edge_is_reported_when_a_full_window_opens(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let edges = Edges::of(&client, libc::EPOLLOUT)?;
    for _ in 0..3 {
        let filled = fill(&client, 64 * 1024)?;
        // What came before does not count.
        while edges.next(A_WHILE)? != 0 {}
        server.recv_exact(filled)?;
        ensure_eq!(edges.next(PATIENCE)?, libc::EPOLLOUT as u32);
    }
    Ok(())
}
