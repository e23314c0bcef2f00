// SPDX-License-Identifier: GPL-2.0
//! MSG_ZEROCOPY: the kernel refers to the sender's pages, and says on the error queue when it no
//! longer does.

use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::ensure;
use libc::{MSG_DONTWAIT, MSG_EOR, MSG_NOSIGNAL, MSG_ZEROCOPY, POLLERR, POLLIN};

use super::credit::fill;
use crate::case::{stays, wait_until, Setup, A_WHILE, PATIENCE};
use crate::errno::{check, Errno};
use crate::pattern::Pattern;
use crate::socket::{Kind, Pair, Socket, DEFAULT_WINDOW};
use crate::{cases, ensure_eq};

cases!("zerocopy":
    a_send_completes_once_its_bytes_are_read,
    completions_are_numbered_in_order,
    a_completion_wakes_who_polls_for_errors,
    without_the_socket_option_the_flag_has_no_effect,
    a_send_that_does_not_fit_the_window_says_that_it_was_copied,
    every_alignment_and_length_arrives_intact,
    scattered_memory_arrives_intact,
    more_than_the_window_arrives_intact,
    a_message_arrives_as_one,
    memory_that_is_not_there_is_refused_and_nothing_is_sent,
    unread_bytes_complete_when_the_reader_closes,
    a_closed_sender_leaves_its_bytes_to_the_reader,
);

const PAGE: usize = 4096;

// linux/vm_sockets.h
const SOL_VSOCK: i32 = 287;
const VSOCK_RECVERR: i32 = 1;

// linux/errqueue.h
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// Page-aligned memory, which stays where it is.
struct Pages {
    data: *mut u8,
    len: usize,
}

impl Pages {
    fn new(len: usize) -> anyhow::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: A new mapping.
        let data = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        ensure!(data != libc::MAP_FAILED, "mmap failed");
        Ok(Self {
            data: data.cast(),
            len,
        })
    }

    fn filled(pattern: &Pattern, position: u64, len: usize) -> anyhow::Result<Self> {
        let mut pages = Self::new(len)?;
        pattern.fill(position, &mut pages.bytes_mut()[..len]);
        Ok(pages)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: The mapping is this long.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: As above, and exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours.
        unsafe { libc::munmap(self.data.cast(), self.len) };
    }
}

/// That the kernel no longer refers to the memory of these sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Completion {
    first: u32,
    last: u32,
    copied: bool,
}

/// The next completion; none if there is none yet.
fn completion(socket: &Socket) -> anyhow::Result<Option<Completion>> {
    let mut control = [0u64; 16];
    // SAFETY: Consists of integers and pointers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | MSG_DONTWAIT;
    // SAFETY: The message describes the memory.
    match check(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) } as i64) {
        Err(Errno(libc::EAGAIN)) => return Ok(None),
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    // SAFETY: The kernel has filled in the message; its header is followed by what its type says.
    let (header, error) = unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        ensure!(!header.is_null(), "a message without control data");
        let data = libc::CMSG_DATA(header).cast::<libc::sock_extended_err>();
        (*header, data.read_unaligned())
    };
    ensure_eq!(
        (header.cmsg_level, header.cmsg_type),
        (SOL_VSOCK, VSOCK_RECVERR)
    );
    ensure!(
        header.cmsg_len >= size_of::<libc::sock_extended_err>(),
        "short control data"
    );
    ensure_eq!(
        (error.ee_errno, error.ee_origin),
        (0, SO_EE_ORIGIN_ZEROCOPY)
    );
    let copied = error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED != 0;
    Ok(Some(Completion {
        first: error.ee_info,
        last: error.ee_data,
        copied,
    }))
}

/// Waits for a completion.
fn next_completion(socket: &Socket) -> anyhow::Result<Completion> {
    let mut found = None;
    wait_until("a completion", || {
        found = completion(socket).transpose();
        found.is_some()
    })?;
    found.unwrap_or_else(|| anyhow::bail!("no completion"))
}

fn pair(setup: &Setup, kind: Kind) -> anyhow::Result<Pair> {
    let pair = setup.pair(kind)?;
    pair.client.set_zerocopy()?;
    Ok(pair)
}

/// A send that refers to `bytes` until it completes.
fn send(socket: &Socket, bytes: &[u8], flags: i32) -> Result<usize, Errno> {
    socket.send(bytes, flags | MSG_ZEROCOPY)
}

fn a_send_completes_once_its_bytes_are_read(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(10);
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = pair(setup, kind)?;
        let pages = Pages::filled(&pattern, 0, 64 * 1024)?;
        ensure_eq!(send(&client, pages.bytes(), 0)?, pages.len);
        wait_until("all is there", || server.unread() == Ok(pages.len))?;
        stays("it is referred to", || {
            matches!(completion(&client), Ok(None))
        })?;
        pattern.check(0, &server.recv_exact(pages.len)?)?;
        ensure_eq!(
            next_completion(&client)?,
            Completion {
                first: 0,
                last: 0,
                copied: false
            }
        );
    }
    Ok(())
}

fn completions_are_numbered_in_order(setup: &Setup) -> anyhow::Result<()> {
    const SENDS: u32 = 20;
    let pattern = Pattern::new(11);
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pages = Pages::filled(&pattern, 0, 2 * PAGE)?;
    for _ in 0..SENDS {
        ensure_eq!(send(&client, pages.bytes(), 0)?, pages.len);
    }
    for _ in 0..SENDS {
        pattern.check(0, &server.recv_exact(pages.len)?)?;
    }
    let mut next = 0;
    while next < SENDS {
        // Neighbours are merged.
        let Completion {
            first,
            last,
            copied,
        } = next_completion(&client)?;
        ensure_eq!((first, copied), (next, false));
        ensure!((first..SENDS).contains(&last), "{first} to {last}");
        next = last + 1;
    }
    ensure_eq!(completion(&client)?, None);
    Ok(())
}

fn a_completion_wakes_who_polls_for_errors(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pages = Pages::new(64 * 1024)?;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.poll(0, PATIENCE));
        stays("nobody is woken", || !waiting.is_finished())?;
        send(&client, pages.bytes(), 0)?;
        server.recv_exact(pages.len)?;
        ensure_eq!(waiting.join().unwrap(), Ok(POLLERR));
        next_completion(&client)?;
        ensure_eq!(client.poll(0, A_WHILE)?, 0);
        Ok(())
    })
}

fn without_the_socket_option_the_flag_has_no_effect(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pages = Pages::new(64 * 1024)?;
    ensure_eq!(send(&client, pages.bytes(), 0)?, pages.len);
    server.recv_exact(pages.len)?;
    stays("there is no completion", || {
        matches!(completion(&client), Ok(None))
    })
}

fn a_send_that_does_not_fit_the_window_says_that_it_was_copied(
    setup: &Setup,
) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pattern = Pattern::new(12);
    let pages = Pages::filled(&pattern, 0, DEFAULT_WINDOW + PAGE)?;
    ensure_eq!(send(&client, pages.bytes(), MSG_DONTWAIT)?, DEFAULT_WINDOW);
    pattern.check(0, &server.recv_exact(DEFAULT_WINDOW)?)?;
    ensure_eq!(
        next_completion(&client)?,
        Completion {
            first: 0,
            last: 0,
            copied: true
        }
    );
    // With room again, it is referred to again.
    wait_until("all room is back", || {
        client.events().unwrap_or(0) & libc::POLLOUT != 0
    })?;
    ensure_eq!(send(&client, &pages.bytes()[..PAGE], 0)?, PAGE);
    server.recv_exact(PAGE)?;
    ensure_eq!(
        next_completion(&client)?,
        Completion {
            first: 1,
            last: 1,
            copied: false
        }
    );
    Ok(())
}

fn every_alignment_and_length_arrives_intact(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pattern = Pattern::new(13);
    let pages = Pages::filled(&pattern, 0, 40 * PAGE)?;
    for offset in [0, 1, 7, 2048, 4095] {
        for len in [
            1, 127, 128, 4096, 4097, 16_383, 16_384, 65_536, 69_632, 150_001,
        ] {
            let bytes = &pages.bytes()[offset..offset + len];
            ensure_eq!(send(&client, bytes, 0)?, len);
            pattern.check(offset as u64, &server.recv_exact(len)?)?;
        }
    }
    Ok(())
}

fn scattered_memory_arrives_intact(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(14);
    let pages = Pages::filled(&pattern, 0, 60 * PAGE)?;
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = pair(setup, kind)?;
        // Offset and length of each piece; 17 pages for each 64 KiB at most, or C refuses them.
        let pieces = [(5000, 1), (4096, 4096), (8192, 20_480), (90_112, 70_000)];
        let mut segments = pieces.map(|(offset, len)| libc::iovec {
            iov_base: pages.bytes()[offset..].as_ptr() as *mut _,
            iov_len: len,
        });
        let total: usize = pieces.iter().map(|(_, len)| len).sum();
        // SAFETY: Consists of integers and pointers.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = segments.as_mut_ptr();
        message.msg_iovlen = segments.len();
        // SAFETY: The message describes the pages.
        let sent = check(unsafe {
            libc::sendmsg(client.as_raw_fd(), &message, MSG_ZEROCOPY | MSG_NOSIGNAL)
        } as i64)?;
        ensure_eq!(sent as usize, total);
        let received = server.recv_exact(total)?;
        let mut rest = &received[..];
        for (offset, len) in pieces {
            pattern.check(offset as u64, &rest[..len])?;
            rest = &rest[len..];
        }
        ensure_eq!(next_completion(&client)?.copied, false);
    }
    Ok(())
}

fn more_than_the_window_arrives_intact(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pattern = Pattern::new(15);
    let pages = Pages::filled(&pattern, 0, 5 * DEFAULT_WINDOW)?;
    thread::scope(|scope| {
        let bytes = pages.bytes();
        let writer = scope.spawn(|| send(&client, bytes, 0));
        pattern.check(0, &server.recv_exact(pages.len)?)?;
        ensure_eq!(writer.join().unwrap(), Ok(pages.len));
        Ok(())
    })
}

fn a_message_arrives_as_one(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Seqpacket)?;
    let pattern = Pattern::new(16);
    let pages = Pages::filled(&pattern, 0, DEFAULT_WINDOW)?;
    for len in [1, PAGE, 100_000, DEFAULT_WINDOW] {
        ensure_eq!(send(&client, &pages.bytes()[..len], MSG_EOR)?, len);
        let mut buffer = vec![0; len + 1];
        let received = server.recv_message(&mut buffer, 0)?;
        ensure_eq!((received.len, received.flags), (len, MSG_EOR));
        pattern.check(0, &buffer[..len])?;
    }
    Ok(())
}

fn memory_that_is_not_there_is_refused_and_nothing_is_sent(setup: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let Pair { client, server } = pair(setup, kind)?;
        let hole = 4096 as *const u8;
        for len in [1, 10_000, 100_000] {
            let flags = MSG_ZEROCOPY | MSG_NOSIGNAL;
            ensure_eq!(client.send_raw(hole, len, flags), Err(Errno(libc::ENOMEM)));
            ensure_eq!(
                client.send_raw(hole, len, MSG_NOSIGNAL),
                Err(Errno(libc::ENOMEM))
            );
        }
        ensure_eq!(server.poll(POLLIN, A_WHILE)?, 0);
        ensure_eq!(completion(&client)?, None);
        ensure_eq!(client.unsent()?, 0);
        // The room that was taken is back.
        if kind == Kind::Stream {
            ensure_eq!(fill(&client, 64 * 1024)?, DEFAULT_WINDOW);
        }
        server.send(b"still alive", 0)?;
        ensure_eq!(client.recv_vec(20, 0), Ok(b"still alive".to_vec()));
    }
    Ok(())
}

fn unread_bytes_complete_when_the_reader_closes(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pages = Pages::new(64 * 1024)?;
    for _ in 0..3 {
        send(&client, pages.bytes(), 0)?;
    }
    wait_until("all is there", || server.unread() == Ok(3 * pages.len))?;
    drop(server);
    let mut last = None;
    while last != Some(2) {
        last = Some(next_completion(&client)?.last);
    }
    Ok(())
}

fn a_closed_sender_leaves_its_bytes_to_the_reader(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair(setup, Kind::Stream)?;
    let pattern = Pattern::new(17);
    let pages = Pages::filled(&pattern, 0, 64 * 1024)?;
    send(&client, pages.bytes(), 0)?;
    let len = pages.len;
    drop(client);
    drop(pages);
    pattern.check(0, &server.recv_exact(len)?)?;
    ensure_eq!(server.recv_vec(1, 0), Ok(vec![]));
    Ok(())
}
