// SPDX-License-Identifier: GPL-2.0
//! Files and pipes that go to a socket without passing through the sender's memory: sendfile() and
//! splice(). The kernel may refer to their pages instead of copying them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::thread;

use crate::case::{wait_until, Setup};
use crate::errno::{check, Errno};
use crate::pattern::Pattern;
use crate::socket::{Kind, Pair, Socket, DEFAULT_WINDOW};
use crate::{cases, ensure_eq};

cases!("splice":
    every_part_of_a_file_arrives_intact,
    pieces_of_all_sizes_in_a_pipe_arrive_in_order,
    more_than_the_window_of_a_file_arrives_intact,
    a_file_changed_before_it_is_read_is_read_as_it_is_then
        => "the socket copies what it is given",
    pages_that_the_file_has_lost_are_read_all_the_same,
    a_part_of_a_file_is_one_message,
    pages_that_nobody_reads_go_with_the_sockets,
    a_pipe_that_does_not_fit_the_window_keeps_the_rest,
);

const PAGE: usize = 4096;

/// What one call of sendmsg() is given of a pipe, at most: a page for each of its places.
const PIPE: usize = 16 * PAGE;

/// A file in memory with the pattern from its beginning.
pub fn file(pattern: &Pattern, len: usize) -> anyhow::Result<File> {
    // SAFETY: The name is a string; the descriptor is ours.
    let file = unsafe {
        let fd = check(libc::memfd_create(c"splice".as_ptr(), libc::MFD_CLOEXEC))?;
        File::from_raw_fd(fd)
    };
    file.write_all_at(&pattern.bytes(0, len), 0)?;
    Ok(file)
}

/// Sends a part of a file; how much was taken.
pub fn send_file(socket: &Socket, file: &File, offset: usize, len: usize) -> Result<usize, Errno> {
    let (to, from) = (socket.as_raw_fd(), file.as_raw_fd());
    let mut offset = offset as libc::off_t;
    // SAFETY: Both are open; the offset is valid.
    let sent = unsafe { libc::sendfile(to, from, &mut offset, len) };
    Ok(check(sent as i64)? as usize)
}

/// The ends of a pipe, to read and to write.
fn pipe() -> Result<(File, File), Errno> {
    let mut ends = [0; 2];
    // SAFETY: There is room for two descriptors, which are ours.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])))
    }
}

/// Moves what is in a pipe to a socket; how much was taken.
fn splice(pipe: &File, socket: &Socket, len: usize, flags: u32) -> Result<usize, Errno> {
    let (from, to) = (pipe.as_raw_fd(), socket.as_raw_fd());
    // SAFETY: Both are open; there are no offsets.
    let moved = unsafe { libc::splice(from, null_mut(), to, null_mut(), len, flags) };
    Ok(check(moved as i64)? as usize)
}

fn every_part_of_a_file_arrives_intact(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(1);
    let file = file(&pattern, 48 * PAGE)?;
    for len in [
        1,
        511,
        512,
        2048,
        PAGE - 1,
        PAGE,
        3 * PAGE + 7,
        PIPE,
        17 * PAGE,
        40 * PAGE,
    ] {
        for offset in [0, 1, 2047, 2048, PAGE - 1, PAGE, 5 * PAGE + 1] {
            ensure_eq!(send_file(&client, &file, offset, len), Ok(len));
            pattern.check(offset as u64, &server.recv_exact(len)?)?;
        }
    }
    Ok(())
}

fn pieces_of_all_sizes_in_a_pipe_arrive_in_order(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(2);
    let file = file(&pattern, PIPE)?;
    let (reader, writer) = pipe()?;
    let sizes = [1, 4, 100, PAGE, 700, 3000, 2 * PAGE, 1, 511, PAGE + 1, 90];
    for turn in 0..50 {
        let mut expected = Vec::new();
        for at in 0..5 {
            let len = sizes[(turn * 3 + at) % sizes.len()];
            let offset = expected.len() % PAGE;
            expected.extend_from_slice(&pattern.bytes(offset as u64, len));
            // What is written shares pages of the pipe, parts of the file are pages of their own.
            if (turn + at) % 2 == 0 {
                (&writer).write_all(&pattern.bytes(offset as u64, len))?;
            } else {
                put_part(&writer, &file, offset, len)?;
            }
        }
        ensure_eq!(
            splice(&reader, &client, expected.len(), 0),
            Ok(expected.len())
        );
        ensure_eq!(server.recv_exact(expected.len())?, expected, "turn {turn}");
    }
    Ok(())
}

/// Puts a part of a file into a pipe.
fn put_part(pipe: &File, file: &File, offset: usize, len: usize) -> anyhow::Result<()> {
    let (from, to) = (file.as_raw_fd(), pipe.as_raw_fd());
    let mut offset = offset as libc::off64_t;
    // SAFETY: Both are open; the offset is valid.
    let moved = unsafe { libc::splice(from, &mut offset, to, null_mut(), len, 0) };
    ensure_eq!(check(moved as i64)? as usize, len);
    Ok(())
}

fn more_than_the_window_of_a_file_arrives_intact(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(3);
    let len = 9 * DEFAULT_WINDOW + 5;
    let file = file(&pattern, len)?;
    let sender = thread::spawn(move || send_file(&client, &file, 0, len));
    let mut position = 0;
    while position < len {
        let bytes = server.recv_exact((len - position).min(PAGE * 3 + 11))?;
        pattern.check(position as u64, &bytes)?;
        position += bytes.len();
    }
    ensure_eq!(sender.join().expect("it does not panic"), Ok(len));
    Ok(())
}

fn a_file_changed_before_it_is_read_is_read_as_it_is_then(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let (before, after) = (Pattern::new(4), Pattern::new(5));
    let file = file(&before, PIPE)?;
    ensure_eq!(send_file(&client, &file, 0, PIPE), Ok(PIPE));
    file.write_all_at(&after.bytes(0, PIPE), 0)?;
    after.check(0, &server.recv_exact(PIPE)?)
}

fn pages_that_the_file_has_lost_are_read_all_the_same(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(6);
    let lost = file(&pattern, PIPE)?;
    ensure_eq!(send_file(&client, &lost, 0, PIPE), Ok(PIPE));
    lost.set_len(0)?;
    drop(lost);
    drop(client);
    // What is free is in use again.
    let others = (0..8)
        .map(|seed| file(&Pattern::new(100 + seed), 4 * PIPE))
        .collect::<anyhow::Result<Vec<_>>>()?;
    pattern.check(0, &server.recv_exact(PIPE)?)?;
    drop(others);
    Ok(())
}

fn a_part_of_a_file_is_one_message(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    let pattern = Pattern::new(7);
    let file = file(&pattern, 2 * PIPE)?;
    for (offset, len) in [(0, 3 * PAGE), (100, PAGE), (PAGE - 1, 2), (PAGE, PIPE)] {
        ensure_eq!(send_file(&client, &file, offset, len), Ok(len));
        let message = server.recv_vec(2 * PIPE, 0)?;
        ensure_eq!(message.len(), len);
        pattern.check(offset as u64, &message)?;
    }
    Ok(())
}

fn pages_that_nobody_reads_go_with_the_sockets(setup: &Setup) -> anyhow::Result<()> {
    let before = shared_memory()?;
    for _ in 0..20 {
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        let file = file(&Pattern::new(8), DEFAULT_WINDOW)?;
        ensure_eq!(
            send_file(&client, &file, 0, DEFAULT_WINDOW),
            Ok(DEFAULT_WINDOW)
        );
        drop(server);
    }
    // 5 MiB were sent.
    wait_until("their memory is free again", || {
        shared_memory().is_ok_and(|now| now < before + (2 << 20))
    })
}

/// Bytes in files in memory.
fn shared_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("Shmem:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib
        .ok_or_else(|| anyhow::anyhow!("no Shmem"))?
        .parse::<u64>()?
        * 1024)
}

fn a_pipe_that_does_not_fit_the_window_keeps_the_rest(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: usize = 10 * PAGE + 100;
    let Pair { client, server } =
        setup.pair_with_windows(Kind::Stream, WINDOW as u64, WINDOW as u64)?;
    client.set_nonblocking()?;
    let pattern = Pattern::new(9);
    let (reader, writer) = pipe()?;
    (&writer).write_all(&pattern.bytes(0, PIPE))?;
    ensure_eq!(
        splice(&reader, &client, PIPE, libc::SPLICE_F_NONBLOCK),
        Ok(WINDOW)
    );
    ensure_eq!(
        splice(&reader, &client, PIPE, libc::SPLICE_F_NONBLOCK),
        Err(Errno(libc::EAGAIN))
    );
    pattern.check(0, &server.recv_exact(WINDOW)?)?;
    let rest = PIPE - WINDOW;
    wait_until("there is room again", || {
        splice(&reader, &client, rest, libc::SPLICE_F_NONBLOCK) == Ok(rest)
    })?;
    pattern.check(WINDOW as u64, &server.recv_exact(rest)?)?;
    Ok(())
}
