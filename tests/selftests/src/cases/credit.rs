// SPDX-License-Identifier: GPL-2.0
//! Credit: how much may be under way, in both directions.

use std::os::fd::AsRawFd;
use std::thread;

use anyhow::ensure;

use crate::case::{stays, wait_until, Setup, A_WHILE};
use crate::errno::{check, Errno};
use crate::fault::StalledDelivery;
use crate::pattern::Pattern;
use crate::socket::{
    Kind, Pair, Socket, DEFAULT_WINDOW, SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE, SO_VM_SOCKETS_BUFFER_SIZE,
};
use crate::{cases, ensure_eq};

cases!("credit":
    a_writer_is_stopped_at_exactly_the_window,
    the_smallest_window_can_be_used
        => "each packet counts as 576 bytes at least: the connection ends with ENOBUFS",
    a_writer_is_stopped_at_the_smaller_of_both_windows,
    a_blocked_writer_goes_on_when_the_reader_makes_room,
    both_directions_have_a_window_of_their_own,
    a_reader_of_single_bytes_lets_the_writer_finish,
    a_writer_of_single_bytes_fills_the_window,
    a_window_that_shrinks_with_bytes_under_way_loses_none,
    a_window_that_grows_lets_a_blocked_writer_go_on,
    a_writer_that_its_own_window_has_stopped_goes_on_when_that_grows,
    the_window_stays_between_its_limits,
    a_window_of_4_gib_less_1_is_offered_and_used,
    a_larger_window_than_4_gib_becomes_4_gib_less_1,
    a_reader_below_its_low_water_mark_keeps_waiting,
    a_low_water_mark_of_the_whole_window_can_be_reached
        => "room comes back when a whole packet is read, not a part of it",
    a_low_water_mark_above_the_window_is_refused,
    a_read_that_stops_at_memory_that_is_not_there_gives_back_room
        => "the peer is not told",
    bytes_to_be_read_are_counted_exactly,
    bytes_that_have_not_left_are_counted_exactly,
    counters_wrap_without_a_trace,
);

/// Sends until nothing fits; how many bytes that were.
pub fn fill(socket: &Socket, chunk: usize) -> anyhow::Result<usize> {
    let pattern = Pattern::new(0);
    let mut total = 0;
    loop {
        match socket.send(&pattern.bytes(total as u64, chunk), libc::MSG_DONTWAIT) {
            Ok(sent) => total += sent,
            Err(Errno(libc::EAGAIN)) => return Ok(total),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads what `fill` sent.
fn drain(socket: &Socket, len: usize) -> anyhow::Result<()> {
    let bytes = socket.recv_exact(len)?;
    ensure_eq!(bytes.len(), len);
    Pattern::new(0).check(0, &bytes)
}

fn a_writer_is_stopped_at_exactly_the_window(setup: &Setup) -> anyhow::Result<()> {
    for window in [1000, 4096, 65_535, DEFAULT_WINDOW, 1 << 20] {
        for chunk in [4096, 64 * 1024, 2 * window] {
            let pair = setup.pair_with_windows(Kind::Stream, window as u64, window as u64)?;
            ensure_eq!(fill(&pair.client, chunk)?, window, "chunks of {chunk}");
            ensure_eq!(pair.server.recv_vec(1, libc::MSG_PEEK)?.len(), 1);
            drain(&pair.server, window)?;
        }
    }
    Ok(())
}

fn the_smallest_window_can_be_used(setup: &Setup) -> anyhow::Result<()> {
    const SMALLEST: usize = 128;
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = setup.pair_with_windows(kind, 1, 1)?;
        ensure_eq!(server.window(), Ok(SMALLEST as u64));
        for _ in 0..3 {
            ensure_eq!(client.send(&[1; SMALLEST], 0), Ok(SMALLEST));
            ensure_eq!(server.recv_vec(1000, 0), Ok(vec![1; SMALLEST]));
        }
    }
    Ok(())
}

/// The own window limits a writer, too: what is under way occupies its memory.
fn a_writer_is_stopped_at_the_smaller_of_both_windows(setup: &Setup) -> anyhow::Result<()> {
    for (own, theirs) in [(8192, 100_000), (100_000, 8192)] {
        let pair = setup.pair_with_windows(Kind::Stream, own, theirs)?;
        ensure_eq!(
            fill(&pair.client, 3000)?,
            8192,
            "windows of {own} and {theirs}"
        );
        ensure_eq!(
            fill(&pair.server, 3000)?,
            8192,
            "windows of {theirs} and {own}"
        );
        drain(&pair.server, 8192)?;
        drain(&pair.client, 8192)?;
    }
    Ok(())
}

fn a_blocked_writer_goes_on_when_the_reader_makes_room(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let filled = fill(&client, 64 * 1024)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.send(b"more", 0));
        stays("the writer is blocked", || !writer.is_finished())?;
        drain(&server, filled)?;
        ensure_eq!(server.recv_exact(4)?, b"more");
        ensure_eq!(writer.join().unwrap(), Ok(4));
        Ok(())
    })
}

fn both_directions_have_a_window_of_their_own(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    ensure_eq!(fill(&client, 50_000)?, DEFAULT_WINDOW);
    ensure_eq!(fill(&server, 50_000)?, DEFAULT_WINDOW);
    drain(&client, DEFAULT_WINDOW)?;
    drain(&server, DEFAULT_WINDOW)?;
    Ok(())
}

fn a_reader_of_single_bytes_lets_the_writer_finish(setup: &Setup) -> anyhow::Result<()> {
    const LEN: usize = 32 * 1024;
    let Pair { client, server } = setup.pair_with_windows(Kind::Stream, 4096, 4096)?;
    let pattern = Pattern::new(1);
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.send_all(&pattern.bytes(0, LEN)));
        for position in 0..LEN {
            pattern.check(position as u64, &server.recv_exact(1)?)?;
        }
        ensure_eq!(writer.join().unwrap(), Ok(()));
        Ok(())
    })
}

fn a_writer_of_single_bytes_fills_the_window(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: usize = 16 * 1024;
    let pair = setup.pair_with_windows(Kind::Stream, WINDOW as u64, WINDOW as u64)?;
    ensure_eq!(fill(&pair.client, 1)?, WINDOW);
    drain(&pair.server, WINDOW)
}

fn a_window_that_shrinks_with_bytes_under_way_loses_none(setup: &Setup) -> anyhow::Result<()> {
    const SMALL: usize = 4096;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let filled = fill(&client, 64 * 1024)?;
    wait_until("everything is there", || server.unread() == Ok(filled))?;
    server.set_window(SMALL as u64)?;
    ensure_eq!(
        client.send(b"!", libc::MSG_DONTWAIT),
        Err(Errno(libc::EAGAIN))
    );
    drain(&server, filled)?;
    wait_until("there is room again", || {
        client.poll(libc::POLLOUT, A_WHILE) == Ok(libc::POLLOUT)
    })?;
    ensure_eq!(fill(&client, 1000)?, SMALL);
    drain(&server, SMALL)
}

/// A writer that was stopped after 4096 bytes writes as many again when `grow` is called, although
/// nobody reads.
fn goes_on(pair: &Pair, grow: impl FnOnce() -> Result<(), Errno>) -> anyhow::Result<()> {
    let Pair { client, server } = pair;
    ensure_eq!(fill(client, 4096)?, 4096);
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.send(&[7; 4096], 0));
        stays("the writer is blocked", || !writer.is_finished())?;
        grow()?;
        let went_on = wait_until("the writer goes on", || writer.is_finished());
        // It ends in any case.
        server.recv_exact(4096)?;
        ensure_eq!(writer.join().unwrap(), Ok(4096));
        went_on
    })
}

fn a_window_that_grows_lets_a_blocked_writer_go_on(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair_with_windows(Kind::Stream, 8192, 4096)?;
    goes_on(&pair, || pair.server.set_window(8192))
}

fn a_writer_that_its_own_window_has_stopped_goes_on_when_that_grows(
    setup: &Setup,
) -> anyhow::Result<()> {
    let pair = setup.pair_with_windows(Kind::Stream, 4096, 8192)?;
    goes_on(&pair, || pair.client.set_window(8192))
}

fn the_window_stays_between_its_limits(setup: &Setup) -> anyhow::Result<()> {
    let connected = setup.pair(Kind::Stream)?;
    for socket in [
        Socket::new(Kind::Stream)?,
        connected.client,
        connected.server,
    ] {
        let set = |name, value: u64| socket.set(libc::AF_VSOCK, name, value);
        set(SO_VM_SOCKETS_BUFFER_SIZE, u64::MAX)?;
        ensure_eq!(socket.window(), Ok(DEFAULT_WINDOW as u64));
        set(SO_VM_SOCKETS_BUFFER_SIZE, 0)?;
        ensure_eq!(socket.window(), Ok(128));
        set(SO_VM_SOCKETS_BUFFER_MIN_SIZE, 10_000)?;
        ensure_eq!(socket.window(), Ok(10_000));
        set(SO_VM_SOCKETS_BUFFER_SIZE, 20_000)?;
        set(SO_VM_SOCKETS_BUFFER_MAX_SIZE, 15_000)?;
        ensure_eq!(socket.window(), Ok(15_000));
    }
    Ok(())
}

fn a_window_of_4_gib_less_1_is_offered_and_used(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: u64 = u32::MAX as u64;
    const LEN: usize = 8 << 20;
    let Pair { client, server } = setup.pair_with_windows(Kind::Stream, WINDOW, WINDOW)?;
    ensure_eq!(server.window(), Ok(WINDOW));
    let pattern = Pattern::new(2);
    // Nobody reads: all of it is under way.
    ensure_eq!(client.send_all(&pattern.bytes(0, LEN)), Ok(()));
    wait_until("everything is there", || server.unread() == Ok(LEN))?;
    pattern.check(0, &server.recv_exact(LEN)?)
}

fn a_larger_window_than_4_gib_becomes_4_gib_less_1(setup: &Setup) -> anyhow::Result<()> {
    const TOO_MUCH: u64 = 1 << 40;
    let Pair { client, server } = setup.pair_with_windows(Kind::Stream, TOO_MUCH, TOO_MUCH)?;
    for end in [&client, &server] {
        ensure_eq!(end.window(), Ok(u64::from(u32::MAX)));
        end.set_window(4096)?;
        end.set_window(TOO_MUCH)?;
        ensure_eq!(end.window(), Ok(u64::from(u32::MAX)));
    }
    client.send_all(b"still alive")?;
    ensure_eq!(server.recv_exact(11)?, b"still alive");
    Ok(())
}

fn a_reader_below_its_low_water_mark_keeps_waiting(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    server.set_low_water(1000)?;
    client.send_all(&[1; 999])?;
    wait_until("all is there", || server.unread() == Ok(999))?;
    ensure_eq!(server.poll(libc::POLLIN, A_WHILE)?, 0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| server.recv_vec(5000, 0));
        stays("the reader is blocked", || !reader.is_finished())?;
        client.send_all(&[1])?;
        ensure_eq!(reader.join().unwrap(), Ok(vec![1; 1000]));
        client.send_all(&[2; 3])?;
        client.shutdown(libc::SHUT_WR)?;
        // The end of the stream is above any mark.
        ensure_eq!(server.recv_vec(5000, 0), Ok(vec![2; 3]));
        ensure_eq!(server.recv_vec(5000, 0), Ok(vec![]));
        Ok(())
    })
}

/// The reader's mark is as high as the window: the writer must be told of every byte of room.
fn a_low_water_mark_of_the_whole_window_can_be_reached(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: usize = 64 * 1024;
    let Pair { client, server } =
        setup.pair_with_windows(Kind::Stream, WINDOW as u64, WINDOW as u64)?;
    let pattern = Pattern::new(3);
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.send_all(&pattern.bytes(0, 3 * WINDOW)));
        let mut position = 0;
        for len in [100, WINDOW - 1, 1, 4096, WINDOW - 5000] {
            server.set_low_water(WINDOW as i32)?;
            let events = server.poll(libc::POLLIN, crate::case::PATIENCE)?;
            ensure!(
                events & libc::POLLIN != 0,
                "not readable at position {position}"
            );
            ensure_eq!(server.unread()?, WINDOW);
            server.set_low_water(1)?;
            pattern.check(position as u64, &server.recv_exact(len)?)?;
            position += len;
        }
        let rest = server.recv_exact(3 * WINDOW - position)?;
        pattern.check(position as u64, &rest)?;
        ensure_eq!(writer.join().unwrap(), Ok(()));
        Ok(())
    })
}

fn a_low_water_mark_above_the_window_is_refused(setup: &Setup) -> anyhow::Result<()> {
    let pair = setup.pair(Kind::Stream)?;
    let window = DEFAULT_WINDOW as i32;
    ensure_eq!(
        pair.client.set_low_water(window + 1),
        Err(Errno(libc::EINVAL))
    );
    ensure_eq!(pair.client.set_low_water(window), Ok(()));
    ensure_eq!(pair.client.set_low_water(0), Ok(()));
    Ok(())
}

fn bytes_to_be_read_are_counted_exactly(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let mut total = 0;
    for len in [1, 127, 128, 129, 1000, 4096, 70_000] {
        client.send_all(&vec![9; len])?;
        total += len;
        wait_until("it is counted", || server.unread() == Ok(total))?;
    }
    for len in [1, 1, 500, 3000, 65_536] {
        server.recv_vec(len, libc::MSG_PEEK)?;
        ensure_eq!(server.unread()?, total);
        server.recv_exact(len)?;
        total -= len;
        ensure_eq!(server.unread()?, total);
    }
    server.recv_exact(total)?;
    ensure_eq!(server.unread()?, 0);
    Ok(())
}

fn bytes_that_have_not_left_are_counted_exactly(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let stalled = StalledDelivery::new(setup)?;
    let mut total = 0;
    for len in [1, 4096, 100_000] {
        client.send_all(&vec![9; len])?;
        total += len;
        ensure_eq!(client.unsent()?, total);
        ensure_eq!(server.unread()?, 0);
    }
    stalled.release()?;
    wait_until("all has left", || client.unsent() == Ok(0))?;
    wait_until("all has come", || server.unread() == Ok(total))
}

/// tx_cnt and fwd_cnt have 32 bits.
fn counters_wrap_without_a_trace(setup: &Setup) -> anyhow::Result<()> {
    const LEN: u64 = (4 << 30) + (96 << 20);
    const CHUNK: usize = 1 << 20;
    if !setup.long {
        return Err(crate::case::Skip("takes minutes: --long".into()).into());
    }
    let Pair { client, server } = setup.pair_with_windows(Kind::Stream, 4 << 20, 4 << 20)?;
    let pattern = Pattern::new(4);
    let chunk = |position: u64| (LEN - position).min(CHUNK as u64) as usize;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut position = 0;
            while position < LEN {
                client.send_all(&pattern.bytes(position, chunk(position)))?;
                position += chunk(position) as u64;
            }
            Ok::<_, Errno>(())
        });
        let mut position = 0;
        while position < LEN {
            let bytes = server.recv_exact(chunk(position))?;
            ensure_eq!(bytes.len(), chunk(position));
            pattern.check(position, &bytes)?;
            position += bytes.len() as u64;
        }
        ensure_eq!(writer.join().unwrap(), Ok(()));
        ensure_eq!(fill(&client, CHUNK)?, 4 << 20);
        Ok(())
    })
}

/// Memory of which only the first `len` bytes are there.
fn half_of_memory(len: usize) -> anyhow::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: New mappings; the second one is inside the first.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), 2 * len, libc::PROT_NONE, flags, -1, 0);
        ensure!(start != libc::MAP_FAILED, "mmap failed");
        let readable = libc::PROT_READ | libc::PROT_WRITE;
        ensure!(libc::mprotect(start, len, readable) == 0, "mprotect failed");
        Ok(start.cast())
    }
}

fn a_read_that_stops_at_memory_that_is_not_there_gives_back_room(
    setup: &Setup,
) -> anyhow::Result<()> {
    // Three quarters of the window, in packets that end where the memory does.
    const THERE: usize = DEFAULT_WINDOW * 3 / 4;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    ensure_eq!(fill(&client, 16 * 1024)?, DEFAULT_WINDOW);
    wait_until("it is there", || server.unread() == Ok(DEFAULT_WINDOW))?;
    let memory = half_of_memory(THERE)?;
    // SAFETY: The kernel checks the memory, of which a part is there.
    let got = unsafe { libc::recv(server.as_raw_fd(), memory.cast(), DEFAULT_WINDOW, 0) };
    ensure_eq!(check(got as i64)? as usize, THERE);
    // SAFETY: So many bytes were written.
    Pattern::new(0).check(0, unsafe { std::slice::from_raw_parts(memory, THERE) })?;
    // The reader reads no more: the writer has to hear of the room by itself.
    let mut sent = 0;
    wait_until("the writer can send as much again", || {
        sent += client
            .send(&vec![0; THERE - sent], libc::MSG_DONTWAIT)
            .unwrap_or(0);
        sent == THERE
    })?;
    ensure_eq!(server.unread()?, DEFAULT_WINDOW);
    Ok(())
}
