// SPDX-License-Identifier: GPL-2.0
//! Zero-copy sends of io_uring, which brings pages and notifications of its own.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use anyhow::{ensure, Context};
use io_uring::{cqueue, opcode, squeue, types, IoUring};

use crate::case::Setup;
use crate::pattern::Pattern;
use crate::socket::{Kind, Pair, Socket, DEFAULT_WINDOW};
use crate::{cases, ensure_eq};

cases!("uring":
    a_zero_copy_send_reports_that_nothing_was_copied,
    a_zero_copy_send_that_does_not_fit_the_window_arrives_intact,
    registered_buffers_are_sent_without_copying,
    a_send_from_a_hole_fails_and_gives_back_its_pages,
    messages_arrive_as_one,
);

// linux/io_uring.h
const IORING_SEND_ZC_REPORT_USAGE: u16 = 8;
const IORING_NOTIF_USAGE_ZC_COPIED: i32 = i32::MIN;

const LEN: usize = 150_000;

/// How a zero-copy send ended.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    /// Bytes, or a negative errno.
    result: i32,
    /// Whether the kernel copied; known when it no longer refers to the memory.
    copied: Option<bool>,
}

/// A ring with one send in it.
struct Sender(IoUring);

impl Sender {
    fn new() -> anyhow::Result<Self> {
        Ok(Self(IoUring::new(8).context("io_uring")?))
    }

    /// Starts a send of memory that the caller keeps until it completes.
    fn start(&mut self, entry: squeue::Entry) -> anyhow::Result<()> {
        // SAFETY: See above.
        unsafe { self.0.submission().push(&entry)? };
        self.0.submit()?;
        Ok(())
    }

    fn next(&mut self) -> anyhow::Result<cqueue::Entry> {
        // Waiting ends early where the kernel has work for this thread to do.
        while let Err(error) = self.0.submit_and_wait(1) {
            ensure!(error.kind() == ErrorKind::Interrupted, error);
        }
        self.0.completion().next().context("no completion")
    }

    /// The result of the send, and of its notification if there is to be one; `read` makes the
    /// other end take what was sent.
    fn finish(&mut self, read: impl FnOnce(i32) -> anyhow::Result<()>) -> anyhow::Result<Sent> {
        let first = self.next()?;
        read(first.result())?;
        let copied = if cqueue::more(first.flags()) {
            let second = self.next()?;
            ensure!(
                cqueue::notif(second.flags()),
                "the second completion is no notification"
            );
            Some(second.result() & IORING_NOTIF_USAGE_ZC_COPIED != 0)
        } else {
            None
        };
        Ok(Sent {
            result: first.result(),
            copied,
        })
    }
}

fn send_zc(socket: &Socket, bytes: &[u8]) -> opcode::SendZc {
    opcode::SendZc::new(
        types::Fd(socket.as_raw_fd()),
        bytes.as_ptr(),
        bytes.len() as u32,
    )
    .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
    .zc_flags(IORING_SEND_ZC_REPORT_USAGE)
}

fn a_zero_copy_send_reports_that_nothing_was_copied(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_zerocopy()?;
    let pattern = Pattern::new(30);
    let bytes = pattern.bytes(0, LEN);
    let mut sender = Sender::new()?;
    for _ in 0..3 {
        sender.start(send_zc(&client, &bytes).build())?;
        let sent = sender.finish(|_| pattern.check(0, &server.recv_exact(LEN)?))?;
        ensure_eq!(
            sent,
            Sent {
                result: LEN as i32,
                copied: Some(false)
            }
        );
    }
    Ok(())
}

fn a_zero_copy_send_that_does_not_fit_the_window_arrives_intact(
    setup: &Setup,
) -> anyhow::Result<()> {
    const LARGE: usize = 3 * DEFAULT_WINDOW;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_zerocopy()?;
    let pattern = Pattern::new(31);
    let bytes = pattern.bytes(0, LARGE);
    let mut sender = Sender::new()?;
    sender.start(send_zc(&client, &bytes).build())?;
    pattern.check(0, &server.recv_exact(LARGE)?)?;
    let sent = sender.finish(|_| Ok(()))?;
    ensure_eq!(sent.result, LARGE as i32);
    ensure!(sent.copied.is_some(), "there is no notification");
    Ok(())
}

fn registered_buffers_are_sent_without_copying(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_zerocopy()?;
    let pattern = Pattern::new(32);
    let bytes = pattern.bytes(0, DEFAULT_WINDOW);
    let mut sender = Sender::new()?;
    let segment = libc::iovec {
        iov_base: bytes.as_ptr() as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: The bytes outlive the ring, which is declared after them.
    unsafe { sender.0.submitter().register_buffers(&[segment])? };
    // Beyond 64 KiB it is several packets.
    for (from, len) in [
        (0, 4096),
        (1, 5000),
        (4095, 65_536),
        (0, DEFAULT_WINDOW),
        (777, 200_000),
    ] {
        let entry = send_zc(&client, &bytes[from..from + len])
            .buf_index(Some(0))
            .build();
        sender.start(entry)?;
        let sent = sender.finish(|_| pattern.check(from as u64, &server.recv_exact(len)?))?;
        ensure_eq!(
            sent,
            Sent {
                result: len as i32,
                copied: Some(false)
            },
            "{len} bytes from {from} on"
        );
    }
    sender.0.submitter().unregister_buffers()?;
    ensure_eq!(bytes, pattern.bytes(0, DEFAULT_WINDOW));
    Ok(())
}

/// Pages in front of the hole were taken already when the kernel comes to it.
fn a_send_from_a_hole_fails_and_gives_back_its_pages(setup: &Setup) -> anyhow::Result<()> {
    const PAGE: usize = 4096;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_zerocopy()?;
    let mut sender = Sender::new()?;
    for pages in [1, 10, 40] {
        // SAFETY: A new mapping, whose last page is taken away again.
        let bytes = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let len = (pages + 1) * PAGE;
            let memory = libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0);
            ensure!(memory != libc::MAP_FAILED, "mmap failed");
            libc::munmap(memory.byte_add(pages * PAGE), PAGE);
            std::slice::from_raw_parts_mut(memory.cast::<u8>(), pages * PAGE)
        };
        bytes.fill(7);
        let (start, len) = (bytes.as_ptr(), bytes.len() as u32 + 1);
        let fd = types::Fd(client.as_raw_fd());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        sender.start(opcode::SendZc::new(fd, start, len).flags(flags).build())?;
        let sent = sender.finish(|result| {
            // Packets before the one with the hole may have left.
            let received = server.recv_exact(usize::try_from(result).unwrap_or(0))?;
            ensure!(received.iter().all(|byte| *byte == 7), "other bytes arrive");
            Ok(())
        })?;
        ensure!(
            sent.result == -libc::ENOMEM || (0..len as i32).contains(&sent.result),
            "{pages} pages: {sent:?}"
        );
        // SAFETY: The mapping is ours.
        unsafe { libc::munmap(bytes.as_mut_ptr().cast(), pages * PAGE) };
    }
    client.send_all(b"still alive")?;
    ensure_eq!(server.recv_exact(11)?, b"still alive");
    Ok(())
}

fn messages_arrive_as_one(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(33);
    let bytes = pattern.bytes(0, DEFAULT_WINDOW);
    let mut sender = Sender::new()?;
    for len in [1, 4096, 100_000, DEFAULT_WINDOW] {
        // Each has a window for itself: a message that has to wait for room is sent in two goes, and
        // io_uring counts the last one.
        let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
        client.set_zerocopy()?;
        sender.start(send_zc(&client, &bytes[..len]).build())?;
        let sent = sender.finish(|_| {
            let message = server.recv_vec(DEFAULT_WINDOW, 0)?;
            ensure_eq!(message.len(), len);
            pattern.check(0, &message)
        })?;
        ensure_eq!(
            sent,
            Sent {
                result: len as i32,
                copied: Some(false)
            }
        );
    }
    Ok(())
}
