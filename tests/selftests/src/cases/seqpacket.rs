// SPDX-License-Identifier: GPL-2.0
//! Messages of SOCK_SEQPACKET.

use std::thread;
use std::time::Duration;

use anyhow::ensure;
use libc::{MSG_DONTWAIT, MSG_EOR, MSG_PEEK, MSG_TRUNC, POLLIN};

use crate::case::{stays, wait_until, Setup, A_WHILE, PATIENCE};
use crate::errno::Errno;
use crate::pattern::Pattern;
use crate::socket::{Kind, Pair, Received, Socket, DEFAULT_WINDOW};
use crate::{cases, ensure_eq};

cases!("seqpacket":
    messages_of_all_sizes_keep_their_bounds_and_bytes,
    the_end_of_a_record_comes_with_its_message_only,
    a_short_buffer_truncates_a_message_and_says_so,
    peeking_shows_a_message_and_leaves_it,
    a_message_of_exactly_the_window_goes_through,
    a_message_above_the_window_is_refused,
    a_message_without_bytes_is_not_sent,
    a_flood_of_tiny_messages_is_bounded,
    a_low_water_mark_does_not_keep_a_message_from_its_reader,
    a_message_waits_for_room_as_a_whole,
    a_part_of_a_message_does_not_make_readable
        => "poll() counts bytes, recv() messages: it reports what recv() then waits for",
    a_message_cut_short_by_its_sender_is_never_read,
    bytes_to_be_read_are_counted_over_all_messages,
    a_buffer_that_is_not_there_loses_the_message_alone,
    a_closed_peer_leaves_whole_messages_to_be_read,
    a_stream_cannot_connect_to_messages,
);

fn messages_of_all_sizes_keep_their_bounds_and_bytes(setup: &Setup) -> anyhow::Result<()> {
    const COUNT: usize = 300;
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    let pattern = Pattern::new(5);
    // Around the limits where packets are merged, copied and cut.
    let limits = [1, 128, 4096, 16 * 1024, 65_536, DEFAULT_WINDOW];
    let len = |i: usize| match i % 4 {
        0 => limits[i / 4 % limits.len()],
        1 => limits[i / 4 % limits.len()] - (i % limits[i / 4 % limits.len()]).min(3),
        2 => (limits[i / 4 % limits.len()] + 1).min(DEFAULT_WINDOW),
        _ => i * 37 % 5000 + 1,
    };
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..COUNT).try_for_each(|i| {
                client
                    .send(&pattern.bytes(i as u64 * 7, len(i)), 0)
                    .map(|_| ())
            })
        });
        let mut buffer = vec![0; DEFAULT_WINDOW + 1];
        for i in 0..COUNT {
            let received = server.recv_message(&mut buffer, 0)?;
            ensure_eq!(
                received,
                Received {
                    len: len(i),
                    flags: 0
                },
                "message {i}"
            );
            pattern.check(i as u64 * 7, &buffer[..received.len])?;
        }
        ensure_eq!(writer.join().unwrap(), Ok(()));
        Ok(())
    })
}

fn the_end_of_a_record_comes_with_its_message_only(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    let ends = [false, true, true, false, true, false];
    for (i, end) in ends.iter().enumerate() {
        // Several packets each.
        let message = vec![i as u8; 20_000 + i];
        ensure_eq!(
            client.send(&message, if *end { MSG_EOR } else { 0 })?,
            message.len()
        );
    }
    let mut buffer = vec![0; 40_000];
    for (i, end) in ends.iter().enumerate() {
        let expected = Received {
            len: 20_000 + i,
            flags: if *end { MSG_EOR } else { 0 },
        };
        ensure_eq!(
            server.recv_message(&mut buffer, 0)?,
            expected,
            "message {i}"
        );
    }
    Ok(())
}

fn a_short_buffer_truncates_a_message_and_says_so(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    for _ in 0..3 {
        client.send(b"0123456789", MSG_EOR)?;
    }
    client.send(b"next", 0)?;
    let mut buffer = [0; 4];
    let flags = MSG_TRUNC | MSG_EOR;
    ensure_eq!(
        server.recv_message(&mut buffer, 0)?,
        Received { len: 4, flags }
    );
    ensure_eq!(&buffer, b"0123");
    // Asked for, the true length is returned.
    ensure_eq!(
        server.recv_message(&mut buffer, MSG_TRUNC)?,
        Received { len: 10, flags }
    );
    let mut exact = [0; 10];
    ensure_eq!(
        server.recv_message(&mut exact, MSG_TRUNC)?,
        Received {
            len: 10,
            flags: MSG_EOR
        }
    );
    ensure_eq!(
        server.recv_message(&mut buffer, 0)?,
        Received { len: 4, flags: 0 }
    );
    ensure_eq!(&buffer, b"next");
    Ok(())
}

fn peeking_shows_a_message_and_leaves_it(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    let pattern = Pattern::new(6);
    client.send(&pattern.bytes(0, 150_000), MSG_EOR)?;
    client.send(b"next", 0)?;
    let mut buffer = vec![0; 200_000];
    for len in [1, 70_000, 149_999] {
        let received = server.recv_message(&mut buffer[..len], MSG_PEEK)?;
        ensure_eq!(
            received,
            Received {
                len,
                flags: MSG_TRUNC | MSG_EOR
            }
        );
        pattern.check(0, &buffer[..len])?;
        let received = server.recv_message(&mut buffer[..len], MSG_PEEK | MSG_TRUNC)?;
        ensure_eq!(
            received,
            Received {
                len: 150_000,
                flags: MSG_TRUNC | MSG_EOR
            }
        );
    }
    for flags in [MSG_PEEK, MSG_PEEK | MSG_TRUNC, 0] {
        let received = server.recv_message(&mut buffer, flags)?;
        ensure_eq!(
            received,
            Received {
                len: 150_000,
                flags: MSG_EOR
            }
        );
        pattern.check(0, &buffer[..150_000])?;
    }
    ensure_eq!(server.recv_vec(10, 0), Ok(b"next".to_vec()));
    Ok(())
}

fn a_message_of_exactly_the_window_goes_through(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(7);
    for window in [1000, 5000, 65_536, 65_537, DEFAULT_WINDOW, 3 << 20] {
        let Pair { client, server } =
            setup.pair_with_windows(Kind::Seqpacket, window as u64, window as u64)?;
        for _ in 0..3 {
            ensure_eq!(client.send(&pattern.bytes(0, window), 0)?, window);
            let bytes = server.recv_vec(window + 1, 0)?;
            ensure_eq!(bytes.len(), window);
            pattern.check(0, &bytes)?;
        }
    }
    Ok(())
}

fn a_message_above_the_window_is_refused(setup: &Setup) -> anyhow::Result<()> {
    for (own, theirs) in [(5000, 5000), (5000, 9000), (9000, 5000)] {
        let Pair { client, server } = setup.pair_with_windows(Kind::Seqpacket, own, theirs)?;
        ensure_eq!(client.send(&[0; 5001], 0), Err(Errno(libc::EMSGSIZE)));
        ensure_eq!(client.send(&[1; 5000], 0), Ok(5000));
        ensure_eq!(server.recv_vec(6000, 0), Ok(vec![1; 5000]));
    }
    Ok(())
}

fn a_message_without_bytes_is_not_sent(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    ensure_eq!(client.send(b"", MSG_EOR), Ok(0));
    ensure_eq!(server.poll(POLLIN, A_WHILE)?, 0);
    client.send(b"x", 0)?;
    ensure_eq!(server.recv_vec(10, 0), Ok(b"x".to_vec()));
    Ok(())
}

/// Bounds take memory that the window does not count.
fn a_flood_of_tiny_messages_is_bounded(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    let mut sent = 0;
    let stopped = loop {
        match client.send(b"x", MSG_DONTWAIT) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    // C ends the connection at 455 messages in this window, which is less than any program may
    // count on; its window would hold this many.
    let bounded = [
        Errno(libc::EAGAIN),
        Errno(libc::EPIPE),
        Errno(libc::ECONNRESET),
    ];
    ensure!(bounded.contains(&stopped), "sending stopped with {stopped}");
    ensure!(
        (400..=DEFAULT_WINDOW).contains(&sent),
        "it took {sent} messages"
    );
    // The receiver that got too many says so.
    if stopped != Errno(libc::EAGAIN) {
        ensure_eq!(server.take_error()?, Some(Errno(libc::ENOBUFS)));
    }
    Ok(())
}

fn a_low_water_mark_does_not_keep_a_message_from_its_reader(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    server.set_low_water(1000)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| server.recv_vec(5000, 0));
        stays("the reader is blocked", || !reader.is_finished())?;
        client.send(b"short", 0)?;
        ensure_eq!(reader.join().unwrap(), Ok(b"short".to_vec()));
        anyhow::Ok(())
    })?;
    // poll() minds the mark.
    client.send(&[1; 999], 0)?;
    ensure_eq!(server.poll(POLLIN, A_WHILE)?, 0);
    client.send(&[2], 0)?;
    ensure_eq!(server.poll(POLLIN, PATIENCE)?, POLLIN);
    ensure_eq!(server.recv_vec(5000, 0), Ok(vec![1; 999]));
    ensure_eq!(server.recv_vec(5000, 0), Ok(vec![2]));
    Ok(())
}

fn a_message_waits_for_room_as_a_whole(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: usize = 100_000;
    let Pair { client, server } =
        setup.pair_with_windows(Kind::Seqpacket, WINDOW as u64, WINDOW as u64)?;
    let pattern = Pattern::new(8);
    client.send(&pattern.bytes(0, 60_000), 0)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.send(&pattern.bytes(1, 70_000), MSG_EOR));
        stays("the writer is blocked", || !writer.is_finished())?;
        pattern.check(0, &server.recv_vec(WINDOW, 0)?)?;
        let mut buffer = vec![0; WINDOW];
        ensure_eq!(
            server.recv_message(&mut buffer, 0)?,
            Received {
                len: 70_000,
                flags: MSG_EOR
            }
        );
        pattern.check(1, &buffer[..70_000])?;
        ensure_eq!(writer.join().unwrap(), Ok(70_000));
        Ok(())
    })
}

/// A connection with a message under way whose end will never come: its sender gave up.
fn pair_with_a_part(setup: &Setup) -> anyhow::Result<Pair> {
    let pair = setup.pair(Kind::Seqpacket)?;
    pair.client.send(b"whole", 0)?;
    pair.client.set_send_timeout(A_WHILE)?;
    ensure_eq!(
        pair.client.send(&vec![0; DEFAULT_WINDOW], 0),
        Err(Errno(libc::EAGAIN))
    );
    ensure_eq!(pair.server.recv_vec(10, 0), Ok(b"whole".to_vec()));
    Ok(pair)
}

fn a_part_of_a_message_does_not_make_readable(setup: &Setup) -> anyhow::Result<()> {
    let pair = pair_with_a_part(setup)?;
    ensure_eq!(
        pair.server.recv_vec(10, MSG_DONTWAIT),
        Err(Errno(libc::EAGAIN))
    );
    ensure_eq!(pair.server.poll(POLLIN, A_WHILE)?, 0);
    Ok(())
}

fn a_message_cut_short_by_its_sender_is_never_read(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = pair_with_a_part(setup)?;
    ensure_eq!(server.recv_vec(10, MSG_DONTWAIT), Err(Errno(libc::EAGAIN)));
    drop(client);
    super::ending::gone(&server)?;
    ensure_eq!(server.recv_vec(DEFAULT_WINDOW, 0), Ok(vec![]));
    Ok(())
}

fn bytes_to_be_read_are_counted_over_all_messages(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    for len in [1, 1000, 70_000] {
        client.send(&vec![0; len], 0)?;
    }
    wait_until("all is there", || server.unread() == Ok(71_001))?;
    for left in [71_000, 70_000, 0] {
        server.recv_vec(1, 0)?;
        ensure_eq!(server.unread()?, left);
    }
    Ok(())
}

fn a_buffer_that_is_not_there_loses_the_message_alone(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    client.send(&vec![1; 100_000], 0)?;
    client.send(b"next", MSG_EOR)?;
    // SAFETY: The kernel finds no memory there.
    let hole = unsafe { std::slice::from_raw_parts_mut(4096 as *mut u8, 100_000) };
    ensure_eq!(server.recv_message(hole, 0), Err(Errno(libc::EFAULT)));
    let mut buffer = [0; 10];
    ensure_eq!(
        server.recv_message(&mut buffer, 0)?,
        Received {
            len: 4,
            flags: MSG_EOR
        }
    );
    ensure_eq!(server.unread()?, 0);
    Ok(())
}

fn a_closed_peer_leaves_whole_messages_to_be_read(setup: &Setup) -> anyhow::Result<()> {
    let Pair { client, server } = setup.pair(Kind::Seqpacket)?;
    for message in [&b"first"[..], b"second"] {
        client.send(message, 0)?;
    }
    drop(client);
    super::ending::gone(&server)?;
    ensure_eq!(server.recv_vec(10, 0), Ok(b"first".to_vec()));
    ensure_eq!(server.recv_vec(10, 0), Ok(b"second".to_vec()));
    ensure_eq!(server.recv_vec(10, 0), Ok(vec![]));
    Ok(())
}

fn a_stream_cannot_connect_to_messages(setup: &Setup) -> anyhow::Result<()> {
    for (kind, other) in [
        (Kind::Stream, Kind::Seqpacket),
        (Kind::Seqpacket, Kind::Stream),
    ] {
        let listener = Socket::listening(kind)?;
        let client = Socket::new(other)?;
        client.set_connect_timeout(PATIENCE)?;
        ensure_eq!(
            client.connect(setup.address(&listener)?),
            Err(Errno(libc::ECONNRESET))
        );
        ensure_eq!(listener.poll(POLLIN, Duration::ZERO)?, 0);
    }
    Ok(())
}
