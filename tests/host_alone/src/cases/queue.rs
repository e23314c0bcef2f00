// SPDX-License-Identifier: GPL-2.0
//! The rings: sizes, layouts, notifications, and what a guest gets wrong.

use std::time::Duration;

use anyhow::ensure;
use rvsock_selftests::case::{stays, wait_until, Setup};
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::Kind;
use rvsock_selftests::{cases, ensure_eq};

use crate::device::feature;
use crate::guest::{Connection, Guest, Options, PORT};
use crate::header::{self, operation, Header, MAX_PAYLOAD};
use crate::memory::BASE;
use crate::ring::{Descriptor, Piece, NEXT, WRITE};

cases!("queue":
    queues_of_all_sizes_work,
    event_indices_and_indirect_descriptors_work,
    buffers_in_a_thousand_pieces_work,
    buffers_are_filled,
    the_largest_packet_is_taken,
    indices_go_around,
    small_writes_that_wait_are_sent_together
        => "each is a packet",
    messages_that_wait_stay_apart,
    who_wants_no_interrupts_gets_none,
    buffers_that_come_at_once_are_signalled_together,
    a_guest_is_signalled_while_many_packets_are_sent
        => "it is signalled when all are, and idle until then",
    a_guest_is_not_asked_about_buffers_that_nothing_waits_for
        => "it is asked to notify of each buffer",
    a_guest_that_takes_no_replies_is_not_listened_to,
    packets_that_make_no_sense_are_reported_and_skipped
        => "the buffer never comes back to the guest",
    buffers_that_make_no_sense_are_reported,
    a_descriptor_that_makes_no_sense_stops_the_queue_until_it_does,
);

const SOME: usize = 300_000;

/// Bytes in both directions, in pieces of all sizes.
fn transfer(guest: &mut Guest) -> anyhow::Result<()> {
    let pattern = Pattern::new(4);
    let bytes = pattern.bytes(0, SOME);
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    let mut at = 0;
    let mut len = 1;
    while at < SOME {
        let until = SOME.min(at + len);
        socket.send_all(&bytes[at..until])?;
        pattern.check(at as u64, &guest.receive_data(&mut connection, until - at)?)?;
        guest.send_data(&mut connection, &bytes[at..until])?;
        pattern.check(at as u64, &socket.recv_exact(until - at)?)?;
        at = until;
        len = len * 3 + 1;
    }
    drop(socket);
    guest.answer_close(&connection)
}

fn queues_of_all_sizes_work(_: &Setup) -> anyhow::Result<()> {
    for size in [1, 2, 8, 64, 256, 1024, 0x8000] {
        let mut guest = Guest::start(&Options {
            sizes: [size, size],
            buffers: usize::from(size).min(512),
            ..Options::default()
        })?;
        transfer(&mut guest)?;
        guest.exercise()?;
    }
    Ok(())
}

fn event_indices_and_indirect_descriptors_work(_: &Setup) -> anyhow::Result<()> {
    for features in [
        0,
        feature::EVENT_IDX,
        feature::INDIRECT,
        feature::EVENT_IDX | feature::INDIRECT,
        feature::EVENT_IDX | feature::NOTIFY_ON_EMPTY | feature::ANY_LAYOUT,
    ] {
        for split in [false, true] {
            let mut guest = Guest::start(&Options {
                features: Options::default().features | features,
                sizes: [64, 64],
                buffers: 32,
                split,
                memory: 32 << 20,
                ..Options::default()
            })?;
            transfer(&mut guest)?;
            guest.exercise()?;
        }
    }
    Ok(())
}

/// Pieces of a few bytes each; the header is in many of them.
fn crumbs(at: u64, len: u32, writable: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < len {
        let piece = (1 + done % 7).min(len - done);
        pieces.push(Piece {
            address: at + u64::from(done),
            len: piece,
            writable,
        });
        done += piece;
    }
    pieces
}

fn buffers_in_a_thousand_pieces_work(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(5);
    let bytes = pattern.bytes(0, 2000);
    let mut guest = Guest::start(&Options {
        sizes: [1024, 1024],
        ..Options::default()
    })?;
    let (socket, connection) = guest.connect_pair(Kind::Stream)?;

    let header = Header {
        len: 2000,
        ..connection.header(operation::READ_WRITE)
    };
    let at = guest.slot()?;
    guest.memory.write(at, &header.encode());
    guest.memory.write(at + header::LEN as u64, &bytes);
    let pieces = crumbs(at, header::LEN as u32 + 2000, false);
    ensure!(pieces.len() > 500 && pieces.len() <= 1024);
    guest.send_pieces(at, &pieces)?;
    pattern.check(0, &socket.recv_exact(2000)?)?;

    drop((guest, socket));
    // The response has taken the only buffer.
    let mut guest = Guest::prepare(&Options {
        sizes: [1024, 16],
        ..Options::default()
    })?;
    guest.reposts = false;
    guest.post(1)?;
    guest.device.set_cid(guest.options.cid.into())?;
    guest.device.set_running(1)?;
    let (socket, _connection) = guest.connect_pair(Kind::Stream)?;
    let at = guest.memory.allocate(4096, 64);
    let head = guest
        .rx
        .add(&crumbs(at, 2044, true))
        .ok_or(anyhow::anyhow!("the ring is full"))?;
    guest.rx.publish()?;
    socket.send_all(&bytes)?;
    ensure!(guest.rx.wait_used(Duration::from_secs(20))?);
    ensure_eq!(guest.rx.take_used(), Some((head, 2044)));
    let wire = guest.memory.read(at, header::LEN);
    ensure_eq!(Header::parse(&wire).len, 2000);
    pattern.check(0, &guest.memory.read(at + header::LEN as u64, 2000))?;
    drop((guest, socket));
    Ok(())
}

fn buffers_are_filled(_: &Setup) -> anyhow::Result<()> {
    for buffer_len in [45, 64, 1000, 4096, 65_580] {
        let mut guest = Guest::start(&Options {
            buffer_len,
            ..Options::default()
        })?;
        let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
        let total = 20 * (buffer_len as usize - header::LEN);
        socket.send_all(&vec![1; total.min(200_000)])?;
        let packet = guest.expect(operation::READ_WRITE)?;
        connection.handle(&packet)?;
        let room = buffer_len - header::LEN as u32;
        ensure_eq!(packet.header.len, room.min(65_536).min(total as u32));
    }
    Ok(())
}

/// Writes that wait for a guest without buffers, and what then comes of them: their bytes, and the length
/// of each packet.
fn waiting(kind: Kind, writes: &[&[u8]]) -> anyhow::Result<(Vec<u8>, Vec<u32>)> {
    let mut guest = Guest::with_buffers(1)?;
    // The response takes the one there is.
    guest.reposts = false;
    let (socket, mut connection) = guest.connect_pair(kind)?;
    for bytes in writes {
        socket.send_all(bytes)?;
    }
    let total = writes.iter().map(|bytes| bytes.len()).sum();
    ensure_eq!(socket.unsent()?, total);
    guest.reposts = true;
    guest.post(64)?;
    let (mut bytes, mut packets) = (Vec::new(), Vec::new());
    while bytes.len() < total {
        let packet = guest.expect(operation::READ_WRITE)?;
        connection.handle(&packet)?;
        packets.push(packet.header.len);
        bytes.extend(packet.payload);
    }
    wait_until("nothing is unsent", || socket.unsent() == Ok(0))?;
    drop(socket);
    guest.answer_close(&connection)?;
    Ok((bytes, packets))
}

fn small_writes_that_wait_are_sent_together(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(12).bytes(0, 6400);
    let writes: Vec<&[u8]> = pattern.chunks(64).collect();
    let (bytes, packets) = waiting(Kind::Stream, &writes)?;
    ensure!(bytes == pattern, "other bytes");
    ensure!(packets.len() <= writes.len() / 20, "{packets:?}");
    Ok(())
}

fn messages_that_wait_stay_apart(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(13).bytes(0, 640);
    let writes: Vec<&[u8]> = pattern.chunks(64).collect();
    let (bytes, packets) = waiting(Kind::Seqpacket, &writes)?;
    ensure!(bytes == pattern, "other bytes");
    ensure_eq!(packets, vec![64; writes.len()]);
    Ok(())
}

fn the_largest_packet_is_taken(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(6);
    for split in [false, true] {
        let mut guest = Guest::start(&Options {
            split,
            ..Options::default()
        })?;
        let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
        guest.send_part(&mut connection, &pattern.bytes(0, MAX_PAYLOAD), 0)?;
        pattern.check(0, &socket.recv_exact(MAX_PAYLOAD)?)?;
        // A buffer may be longer than its packet.
        let header = Header {
            len: 5,
            ..connection.header(operation::READ_WRITE)
        };
        guest.send(&header, b"fiveXXXXXXX")?;
        connection.sent += 5;
        ensure_eq!(socket.recv_exact(5)?, b"fiveX");
        guest.converse(&socket, &mut connection)?;
    }
    Ok(())
}

/// The indices of the rings have 16 bits.
fn indices_go_around(_: &Setup) -> anyhow::Result<()> {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::prepare(&Options {
            features: Options::default().features | features,
            sizes: [4, 4],
            ..Options::default()
        })?;
        // Shortly before they go around.
        let start: u16 = 0xfffa;
        for (number, ring) in [(0, &mut guest.rx), (1, &mut guest.tx)] {
            ring.start_at(start);
            guest.device.set_queue_base(number, start.into())?;
        }
        guest.post(4)?;
        guest.device.set_cid(guest.options.cid.into())?;
        guest.device.set_running(1)?;
        for _ in 0..10 {
            guest.exercise()?;
        }
        ensure!(guest.rx.next_used < start && guest.tx.next_used < start);
    }
    Ok(())
}

fn who_wants_no_interrupts_gets_none(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, _connection) = guest.connect_pair(Kind::Stream)?;
    guest.flush()?;
    // VRING_AVAIL_F_NO_INTERRUPT
    guest.memory.store(guest.rx.available, 1u16);
    guest.rx.take_calls();
    socket.send_all(b"quiet")?;
    wait_until("the bytes arrive", || {
        guest.memory.load::<u16>(guest.rx.used + 2) != guest.rx.next_used
    })?;
    stays("no interrupt", || guest.rx.take_calls() == 0)?;
    guest.memory.store(guest.rx.available, 0u16);
    socket.send_all(b"loud")?;
    wait_until("an interrupt", || guest.rx.take_calls() > 0)
}

/// Signals for that many small messages that wait for buffers, which come at once.
fn signals_for(packets: usize) -> anyhow::Result<u64> {
    let mut guest = Guest::with_buffers(1)?;
    let (socket, mut connection) = guest.connect_pair(Kind::Seqpacket)?;
    guest.reposts = false;
    for _ in 0..=packets {
        socket.send_all(b"packet")?;
    }
    ensure_eq!(guest.receive()?.payload, b"packet");
    guest.expect_silence()?;
    guest.rx.take_calls();
    guest.post(packets)?;
    let last = guest.rx.next_used.wrapping_add(packets as u16);
    let mut signals = 0;
    wait_until("the packets arrive", || {
        signals += guest.rx.take_calls();
        guest.memory.load::<u16>(guest.rx.used + 2) == last
    })?;
    std::thread::sleep(Duration::from_millis(50));
    signals += guest.rx.take_calls();
    for _ in 0..packets {
        connection.handle(&guest.receive()?)?;
    }
    Ok(signals)
}

fn buffers_that_come_at_once_are_signalled_together(_: &Setup) -> anyhow::Result<()> {
    ensure_eq!(signals_for(12)?, 1);
    Ok(())
}

fn a_guest_is_signalled_while_many_packets_are_sent(_: &Setup) -> anyhow::Result<()> {
    ensure_eq!(signals_for(48)?, 3);
    Ok(())
}

fn a_guest_is_not_asked_about_buffers_that_nothing_waits_for(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    guest.exercise()?;
    // VRING_USED_F_NO_NOTIFY
    let (memory, flags) = (guest.memory.clone(), guest.rx.used);
    stays("the guest need not kick", || memory.load::<u16>(flags) == 1)?;
    guest.exercise()
}

fn a_guest_that_takes_no_replies_is_not_listened_to(_: &Setup) -> anyhow::Result<()> {
    const SIZE: u16 = 32;
    let mut guest = Guest::start(&Options {
        sizes: [128, SIZE],
        buffers: 0,
        ..Options::default()
    })?;
    let stray = Connection::new(&guest, Kind::Stream, PORT, 99);
    let index = guest.tx.used + 2;
    for round in [1, 2] {
        for _ in 0..SIZE {
            guest.send_control(&stray, operation::CREDIT_REQUEST, 0)?;
        }
        let memory = guest.memory.clone();
        wait_until("the host takes a ring full of packets", || {
            memory.load::<u16>(index) == SIZE
        })?;
        if round == 2 {
            stays("the host takes no more", || {
                memory.load::<u16>(index) == SIZE
            })?;
        }
    }
    guest.post(64)?;
    for _ in 0..2 * SIZE {
        guest.expect(operation::RESET)?;
    }
    guest.flush()?;
    guest.exercise()
}

fn packets_that_make_no_sense_are_reported_and_skipped(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    guest.flush()?;
    let good = connection.header(operation::READ_WRITE);
    let piece = |address, len, writable| Piece {
        address,
        len,
        writable,
    };
    let whole = |len| Header { len, ..good };
    let header = header::LEN as u32;
    for (what, sent, pieces) in [
        (
            "shorter than a header",
            whole(0),
            vec![(0, header - 1, false)],
        ),
        (
            "longer than it is",
            whole(101),
            vec![(0, header + 100, false)],
        ),
        (
            "4 GiB long",
            whole(u32::MAX),
            vec![(0, header + 100, false)],
        ),
        (
            "longer than a packet may be",
            whole(0),
            vec![(0, header + 65_536, false), (header, 1, false)],
        ),
        (
            "writable",
            whole(0),
            vec![(0, header, false), (header, 64, true)],
        ),
        ("nothing but writable", whole(0), vec![(0, header, true)]),
    ] {
        let at = guest.slot()?;
        guest.memory.write(at, &sent.encode());
        let pieces: Vec<Piece> = pieces
            .into_iter()
            .map(|(offset, len, writable)| piece(at + u64::from(offset), len, writable))
            .collect();
        guest.send_pieces(at, &pieces)?;
        wait_until(what, || guest.tx.take_error())?;
        guest.converse(&socket, &mut connection)?;
    }
    guest.flush()
}

fn buffers_that_make_no_sense_are_reported(_: &Setup) -> anyhow::Result<()> {
    for (len, writable) in [(header::LEN as u32 - 1, true), (1000, false)] {
        let mut guest = Guest::with_buffers(1)?;
        let (socket, _connection) = guest.connect_pair(Kind::Stream)?;
        // The response took the only buffer, and this gets into its place.
        guest.flush()?;
        guest.reposts = false;
        socket.send_all(b"one")?;
        guest.expect(operation::READ_WRITE)?;
        let at = guest.memory.allocate(4096, 64);
        let piece = Piece {
            address: at,
            len,
            writable,
        };
        guest.rx.add(&[piece]);
        guest.rx.publish()?;
        socket.send_all(b"two")?;
        wait_until("an error is reported", || guest.rx.take_error())?;
        drop(socket);
        guest.post(16)?;
        let packet = guest.expect(operation::SHUTDOWN)?;
        // It is answered when the guest goes.
        guest.put_back(packet);
    }
    Ok(())
}

fn a_descriptor_that_makes_no_sense_stops_the_queue_until_it_does(_: &Setup) -> anyhow::Result<()> {
    let size = 128;
    let end = BASE + Options::default().memory;
    let one = |address, len, flags, next| Descriptor {
        address,
        len,
        flags,
        next,
    };
    for (what, bad) in [
        ("outside of memory", one(end, 44, 0, 0)),
        ("partly outside of memory", one(end - 8, 44, 0, 0)),
        ("at the end of the world", one(u64::MAX - 8, 44, 0, 0)),
        ("longer than everything", one(BASE, u32::MAX, 0, 0)),
        ("a chain that leaves the ring", one(BASE, 44, NEXT, size)),
        ("a loop", one(BASE, 1, NEXT, 7)),
        ("an indirect table of odd length", one(BASE, 17, 4, 0)),
        ("an empty indirect table", one(BASE, 0, 4, 0)),
        (
            "an indirect table in the middle of a chain",
            one(BASE, 32, 4 | NEXT, 8),
        ),
        ("readable after writable", one(BASE, 44, WRITE | NEXT, 8)),
    ] {
        let mut guest = Guest::start(&Options {
            features: Options::default().features | feature::INDIRECT,
            sizes: [128, size],
            memory: Options::default().memory + (2 << 20),
            ..Options::default()
        })?;
        let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
        guest.flush()?;
        guest.device.set_memory_table(&[(
            BASE,
            Options::default().memory,
            guest.memory.host_address(BASE),
        )])?;
        guest.tx.write_descriptor(7, bad);
        guest.tx.write_descriptor(8, one(BASE, 44, 0, 0));
        let slot = guest.tx.next_available;
        guest.tx.offer(7);
        guest.tx.publish()?;
        wait_until(what, || guest.tx.take_error())?;
        let good = connection.header(operation::CREDIT_REQUEST);
        let at = guest.memory.allocate(64, 64);
        guest.memory.write(at, &good.encode());
        guest.tx.write_descriptor(7, one(at, 44, 0, 0));
        ensure_eq!(guest.tx.next_available, slot.wrapping_add(1));
        guest.tx.kick.write(1)?;
        let packet = guest.expect(operation::CREDIT_UPDATE)?;
        connection.handle(&packet)?;
        wait_until("the buffer comes back", || {
            matches!(guest.tx.take_used(), Some((7, 0)))
        })?;
        guest.converse(&socket, &mut connection)?;
    }
    Ok(())
}
