// SPDX-License-Identifier: GPL-2.0
//! Conformance: what the guest's driver does when the device keeps the protocol.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context};
use rvsock_selftests::pattern::Pattern;

use crate::bench::{Bench, Pair, WINDOW};
use crate::device::Key;
use crate::header::{
    Header, CREDIT_REQUEST, CREDIT_UPDATE, END_OF_MESSAGE, END_OF_RECORD, HEADER_LEN, HOST,
    NOTHING_MORE, NO_SEND, REQUEST, RESPONSE, RST, RW, SEQPACKET, SHUTDOWN, STREAM,
};
use crate::ring::Chain;

const KINDS: [u16; 2] = [STREAM, SEQPACKET];

/// How long to watch that something does not happen.
fn a_while(bench: &Bench) -> Duration {
    bench.device.patience / 150
}

struct Case {
    name: &'static str,
    run: fn(&mut Bench) -> anyhow::Result<()>,
    differs_in_c: Option<&'static str>,
}

/// Cases named after their functions. After `=>` stands why Linux's C driver differs.
macro_rules! cases {
    ($($run:ident $(=> $reason:literal)?),+ $(,)?) => {
        const CASES: &[Case] = &[$(Case {
            name: stringify!($run),
            run: $run,
            differs_in_c: cases!(@reason $($reason)?),
        }),+];
    };
    (@reason) => { None };
    (@reason $reason:literal) => { Some($reason) };
}

cases!(
    a_request_says_who_asks_and_for_what,
    a_refused_request_resets_the_connection,
    a_request_without_an_answer_times_out,
    an_answer_that_makes_no_sense_is_a_protocol_error,
    a_listener_answers_with_its_window,
    where_nobody_listens_there_is_a_reset,
    a_listener_with_a_full_backlog_refuses,
    a_request_that_belongs_to_another_transport_takes_no_place,
    bytes_arrive_as_they_were_sent_in_packets_of_any_size,
    the_guest_sends_what_the_window_has_room_for,
    a_reader_tells_of_room_before_the_sender_is_out_of_it,
    a_credit_request_is_answered,
    a_window_that_shrinks_with_bytes_in_flight_lets_nothing_out,
    a_window_of_4_gib_is_not_believed,
    a_device_that_sleeps_is_told_of_every_packet,
    a_device_that_sleeps_is_told_of_room,
    bytes_count_as_unsent_until_the_device_has_read_them,
    a_guest_that_sends_no_more_still_receives,
    a_device_that_sends_no_more_still_receives,
    a_socket_that_is_closed_says_good_bye,
    what_was_received_before_a_reset_can_be_read,
    messages_keep_their_ends,
    a_message_in_parts_is_received_as_one,
    a_message_larger_than_the_window_is_refused,
    what_is_left_of_a_message_is_dropped,
    a_reader_who_peeks_makes_no_room_for_empty_messages,
    a_writer_goes_on_while_the_device_keeps_what_it_has_read
        => "wakes nobody while packets that were not given back take half of the send buffer",
    a_device_that_reads_nothing_is_not_answered_without_end
        => "answers to credit requests have no limit: they fill the guest's memory",
    a_packet_is_a_header_and_one_piece
        => "payload of more than 32,448 bytes is sent in several fragments",
    receive_memory_follows_the_traffic
        => "posts as many small buffers as the ring holds, whatever comes in",
    packets_of_a_page_do_not_hide_larger_ones
        => "posts as many small buffers as the ring holds, whatever comes in",
    a_packet_from_a_stranger_does_not_reach_a_connection
        => "a socket in the table of bound sockets takes packets from anybody",
);

/// Prints the names of all cases.
pub fn list() {
    for case in CASES {
        match case.differs_in_c {
            Some(reason) => println!("{}\t{reason}", case.name),
            None => println!("{}", case.name),
        }
    }
}

/// Runs a case.
pub fn run(bench: &mut Bench, name: &str) -> anyhow::Result<()> {
    let case = CASES.iter().find(|case| case.name == name);
    let case = case.with_context(|| format!("there is no case {name}"))?;
    bench.tidy()?;
    let result = (case.run)(bench);
    bench.tidy()?;
    // Whatever happened, connections beside it are as they were.
    bench.send_echoes(1000)?;
    bench.expect_echoes(1000)?;
    result
}

/// The request that was sent to `port`.
fn request(bench: &mut Bench, port: u32) -> anyhow::Result<Header> {
    let wanted = |header: &Header| header.dst_port == port && header.op == REQUEST;
    Ok(bench.device.stray("a request", wanted)?.header)
}

fn a_request_says_who_asks_and_for_what(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let id = bench.socket(kind)?;
        bench.call(&format!("window {id} 12345"))?;
        let port = bench.device.fresh_port();
        bench.ask(&format!("connect {id} {port}"))?;
        let header = request(bench, port)?;
        let expected = Header {
            src_cid: bench.device.cid,
            dst_cid: HOST,
            src_port: u32::try_from(bench.number(&format!("port {id}"))?)?,
            dst_port: port,
            kind,
            op: REQUEST,
            buf_alloc: 12345,
            ..Header::default()
        };
        ensure!(header == expected, "{header:?}, not {expected:?}");
    }
    Ok(())
}

fn a_refused_request_resets_the_connection(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let (id, port) = bench.asking(kind)?;
        let header = request(bench, port)?;
        answer(bench, &header, RST)?;
        bench.expect_event(id, "out")?;
        let error = bench.call(&format!("error {id}"))?;
        ensure!(error == "ECONNRESET", "{error}");
    }
    Ok(())
}

/// Answers a packet with an operation.
fn answer(bench: &mut Bench, to: &Header, op: u16) -> anyhow::Result<()> {
    let header = Header {
        buf_alloc: WINDOW,
        ..bench.device.header((to.dst_port, to.src_port), to.kind, op)
    };
    bench.device.send(header, &[])
}

fn a_request_without_an_answer_times_out(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let id = bench.socket(kind)?;
        bench.call(&format!("connect-timeout {id} 300"))?;
        let port = bench.device.fresh_port();
        bench.ask(&format!("connect {id} {port}"))?;
        let header = request(bench, port)?;
        bench.expect_event(id, "out")?;
        let error = bench.call(&format!("error {id}"))?;
        ensure!(error == "ETIMEDOUT", "{error}");
        // The answer comes too late for anybody to want it.
        answer(bench, &header, RESPONSE)?;
        bench.device.stray("a reset", |packet| {
            packet.op == RST && packet.dst_port == port
        })?;
    }
    Ok(())
}

fn an_answer_that_makes_no_sense_is_a_protocol_error(bench: &mut Bench) -> anyhow::Result<()> {
    for op in [REQUEST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 99] {
        let (id, port) = bench.asking(STREAM)?;
        let header = request(bench, port)?;
        answer(bench, &header, op)?;
        let reset = |packet: &Header| packet.op == RST && packet.dst_port == port;
        bench.device.stray("a reset", reset)?;
        let error = bench.call(&format!("error {id}"))?;
        ensure!(error == "EPROTO", "operation {op}: {error}");
    }
    Ok(())
}

fn a_listener_answers_with_its_window(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let (listener, port) = bench.listener(kind, 1)?;
        bench.call(&format!("window {listener} 54321"))?;
        let key = bench.device.connect(kind, port, WINDOW)?;
        let window = bench.device.peers[&key].guest_buf_alloc;
        ensure!(window == 54321, "{window}");
    }
    Ok(())
}

fn where_nobody_listens_there_is_a_reset(bench: &mut Bench) -> anyhow::Result<()> {
    let (_, port) = bench.listener(STREAM, 1)?;
    for (kind, port) in [(STREAM, port + 1), (SEQPACKET, port), (7, port)] {
        let ours = bench.device.fresh_port();
        let header = bench.device.header((ours, port), kind, REQUEST);
        bench.device.send(header, &[])?;
        let expected = Header {
            src_cid: bench.device.cid,
            dst_cid: HOST,
            src_port: port,
            dst_port: ours,
            kind,
            op: RST,
            ..Header::default()
        };
        let packet = bench.device.stray("a reset", |p| p.dst_port == ours)?;
        ensure!(packet.header == expected, "{:?}", packet.header);
    }
    Ok(())
}

fn a_listener_with_a_full_backlog_refuses(bench: &mut Bench) -> anyhow::Result<()> {
    const BACKLOG: usize = 2;
    let (listener, port) = bench.listener(STREAM, BACKLOG as u32)?;
    let connect = |bench: &mut Bench| bench.device.connect(STREAM, port, WINDOW);
    // One more than the backlog, as everywhere in Linux.
    for _ in 0..=BACKLOG {
        connect(bench)?;
    }
    ensure!(connect(bench).is_err(), "a request too many was accepted");
    let id = bench.id();
    bench.call(&format!("accept {listener} {id}"))?;
    connect(bench).context("after one was accepted")?;
    Ok(())
}

/// `VMADDR_CID_LOCAL`: who is there is reached by the loopback transport, if that is loaded.
const LOCAL: u64 = 1;

fn a_request_that_belongs_to_another_transport_takes_no_place(
    bench: &mut Bench,
) -> anyhow::Result<()> {
    let (_, port) = bench.listener(STREAM, 1)?;
    for _ in 0..10 {
        let ours = bench.device.fresh_port();
        let header = Header {
            src_cid: LOCAL,
            ..bench.device.header((ours, port), STREAM, REQUEST)
        };
        bench.device.send(header, &[])?;
        let packet = bench.device.stray("a reset", |p| p.dst_port == ours)?;
        ensure!(packet.header.op == RST, "{:?}", packet.header);
    }
    for _ in 0..2 {
        bench.device.connect(STREAM, port, WINDOW)?;
    }
    Ok(())
}

/// Sizes around the edges of what drivers post and copy.
const SIZES: [usize; 12] = [
    1, 2, 128, 129, 3072, 3732, 3733, 4096, 4097, 32768, 32769, 65536,
];

fn bytes_arrive_as_they_were_sent_in_packets_of_any_size(bench: &mut Bench) -> anyhow::Result<()> {
    let pair = bench.made_by_guest(STREAM)?;
    for size in SIZES {
        let bytes = Pattern::new(size as u64).bytes(0, size * 3);
        bench.device.write(pair.key, &bytes, size)?;
        bench.barrier()?;
        bench.expect_bytes(pair.id, &bytes, "")?;
    }
    for size in SIZES {
        bench.call(&format!("send {} {size} {size}", pair.id))?;
        let bytes = bench.device.read_exact(pair.key, size)?;
        Pattern::new(size as u64).check(0, &bytes)?;
    }
    Ok(())
}

fn the_guest_sends_what_the_window_has_room_for(bench: &mut Bench) -> anyhow::Result<()> {
    let pair = bench.made_by_device(STREAM, 10_000)?;
    let sent = bench.number(&format!("send {} 25000 1", pair.id))?;
    ensure!(sent == 10_000, "{sent} bytes were sent");
    bench.expect_error(&format!("send {} 1 1", pair.id), "EAGAIN")?;
    let bytes = bench.device.read_exact(pair.key, 10_000)?;
    Pattern::new(1).check(0, &bytes)?;
    bench.expect_event(pair.id, "out")?;
    let sent = bench.number(&format!("send {} 25000 1", pair.id))?;
    ensure!(sent == 10_000, "{sent} bytes were sent then");
    Ok(())
}

fn a_reader_tells_of_room_before_the_sender_is_out_of_it(bench: &mut Bench) -> anyhow::Result<()> {
    let pair = bench.made_by_device(STREAM, WINDOW)?;
    let bytes = Pattern::new(1).bytes(0, WINDOW as usize);
    bench.device.write(pair.key, &bytes, 65536)?;
    let room = |bench: &Bench| bench.device.peers[&pair.key].room();
    ensure!(room(bench) == 0, "{} bytes of room", room(bench));
    bench.call(&format!("recv {} {}", pair.id, WINDOW - 1))?;
    bench.barrier()?;
    // C tells once less than 64 KiB of the window are free, as far as the sender knows.
    ensure!(room(bench) > 0, "no news of {} free bytes", WINDOW - 1);
    Ok(())
}

fn a_credit_request_is_answered(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let pair = bench.made_by_guest(kind)?;
        bench.device.reply(pair.key, CREDIT_REQUEST)?;
        bench.device.wait("a credit update", |device| {
            let controls = &device.peers.get(&pair.key)?.controls;
            controls.contains(&CREDIT_UPDATE).then_some(())
        })?;
    }
    Ok(())
}

/// Tells the guest of a window.
fn tell_window(bench: &mut Bench, key: Key, buf_alloc: u32) -> anyhow::Result<()> {
    let peer = bench.device.peers.get_mut(&key);
    let peer = peer.context("the connection has ended")?;
    peer.allow(buf_alloc.min(WINDOW));
    let kind = peer.kind;
    let header = Header {
        buf_alloc,
        ..bench.device.header(key, kind, CREDIT_UPDATE)
    };
    bench.device.send(header, &[])?;
    bench.barrier()
}

fn a_window_that_shrinks_with_bytes_in_flight_lets_nothing_out(
    bench: &mut Bench,
) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_device(STREAM, 10_000)?;
    bench.call(&format!("send {id} 10000 1"))?;
    for window in [9_999, 1, 0] {
        tell_window(bench, key, window)?;
        bench.expect_error(&format!("send {id} 1 1"), "EAGAIN")?;
    }
    tell_window(bench, key, 10_001)?;
    let sent = bench.number(&format!("send {id} 100 1"))?;
    ensure!(sent == 1, "{sent} bytes were sent");
    Ok(())
}

fn a_window_of_4_gib_is_not_believed(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    tell_window(bench, key, u32::MAX)?;
    let mut sent = 0;
    for _ in 0..16 {
        match bench
            .ask(&format!("send {id} 65536 1"))?
            .strip_prefix("ok ")
        {
            Some(number) => sent += number.parse::<u32>()?,
            None => break,
        }
    }
    ensure!(sent == WINDOW, "{sent} bytes are in flight");
    Ok(())
}

/// And soon, however many packets the driver tells of together. A device that looks by itself would
/// not notice.
fn a_device_that_sleeps_is_told_of_every_packet(bench: &mut Bench) -> anyhow::Result<()> {
    const ROUNDS: usize = 15;
    /// Of single bytes. Enough for a stream, and too few to be worth a kick for their number.
    const COUNT: usize = 120;
    // 100 ms: more than a driver may let the device sleep, and less than what else wakes it.
    let soon = bench.device.patience / 300;
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    let mut sleeps = Vec::new();
    for _ in 0..ROUNDS {
        // What the driver put off in the round before is done then.
        std::thread::sleep(Duration::from_millis(100));
        bench.order(&format!("trickle {id} {COUNT}"))?;
        let (mut found, mut longest) = (0, Duration::ZERO);
        loop {
            let kicks = bench.device.backend.kicks();
            bench.device.poll()?;
            let peer = bench.device.peers.get_mut(&key);
            found += peer.context("the connection is gone")?.take(COUNT).len();
            if found == COUNT {
                break;
            }
            let asleep = Instant::now();
            let patience = bench.device.patience;
            ensure!(
                bench.device.backend.wait_for_kick(kicks, patience),
                "the device was told of {found} bytes of {COUNT}"
            );
            if found > 0 {
                longest = longest.max(asleep.elapsed());
            }
        }
        sleeps.push(longest);
        bench.answer()?;
    }
    sleeps.sort();
    // Some it slept through because it looked late itself, or the machine had no time for it.
    ensure!(
        sleeps[ROUNDS * 4 / 5] < soon,
        "the device slept for {sleeps:?}"
    );
    Ok(())
}

/// Also of a little that it does not need: a program may want to write as much as its peer has ever
/// offered.
fn a_device_that_sleeps_is_told_of_room(bench: &mut Bench) -> anyhow::Result<()> {
    const LITTLE: usize = 1000;
    let Pair { id, key } = bench.made_by_device(STREAM, WINDOW)?;
    bench.device.write(key, &[0; LITTLE], LITTLE)?;
    bench.order(&format!("recv {id} {LITTLE}"))?;
    loop {
        let kicks = bench.device.backend.kicks();
        bench.device.poll()?;
        let peer = bench.device.peers.get(&key);
        let room = peer.context("the connection is gone")?.room();
        if room == WINDOW {
            break;
        }
        ensure!(
            bench
                .device
                .backend
                .wait_for_kick(kicks, bench.device.patience),
            "the device was told of {room} bytes of room"
        );
    }
    bench.answer()?;
    Ok(())
}

fn a_writer_goes_on_while_the_device_keeps_what_it_has_read(
    bench: &mut Bench,
) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    bench.device.keeps = true;
    let sent = bench.number(&format!("send {id} {WINDOW} 1"))?;
    ensure!(sent == u64::from(WINDOW), "{sent} bytes were sent");
    let patience = bench.device.patience / 3;
    bench.order(&format!("wait {id} out {}", patience.as_millis()))?;
    bench.device.pass(a_while(bench))?;
    let peer = bench.device.peers.get_mut(&key);
    peer.context("the connection is gone")?
        .take(WINDOW as usize);
    let started = Instant::now();
    bench.device.reply(key, CREDIT_UPDATE)?;
    bench.answer()?;
    let waited = started.elapsed();
    bench.device.give_back();
    ensure!(waited < patience / 2, "the writer waited for {waited:?}");
    Ok(())
}

fn bytes_count_as_unsent_until_the_device_has_read_them(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    let unsent = |bench: &mut Bench| bench.number(&format!("unsent {id}"));
    bench.order(&format!("send {id} 5000 1"))?;
    bench.answer()?;
    bench.device.read_exact(key, 5000)?;
    for _ in 0..100 {
        if unsent(bench)? == 0 {
            return Ok(());
        }
        bench.device.pass(a_while(bench) / 10)?;
    }
    anyhow::bail!("{} bytes are unsent", unsent(bench)?)
}

fn a_guest_that_sends_no_more_still_receives(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let Pair { id, key } = bench.made_by_guest(kind)?;
        bench.call(&format!("shutdown {id} write"))?;
        bench.device.wait("a shutdown", |device| {
            (device.peers.get(&key)?.guest_shut == NO_SEND).then_some(())
        })?;
        bench.expect_error(&format!("send {id} 1 1"), "EPIPE")?;
        bench.device.write(key, b"still here", 100)?;
        bench.expect_event(id, "in")?;
        bench.expect_bytes(id, b"still here", "")?;
    }
    Ok(())
}

fn a_device_that_sends_no_more_still_receives(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let Pair { id, key } = bench.made_by_guest(kind)?;
        bench.device.write(key, b"the last words", 100)?;
        bench.device.control(key, SHUTDOWN, NO_SEND)?;
        bench.expect_event(id, "end")?;
        bench.expect_bytes(id, b"the last words", "")?;
        bench.expect_bytes(id, b"", "")?;
        bench.call(&format!("send {id} 100 1"))?;
        bench.device.read_exact(key, 100)?;
    }
    Ok(())
}

fn a_socket_that_is_closed_says_good_bye(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let Pair { id, key } = bench.made_by_guest(kind)?;
        bench.call(&format!("close {id}"))?;
        bench.device.wait("a shutdown", |device| {
            (device.peers.get(&key)?.guest_shut == NOTHING_MORE).then_some(())
        })?;
        // Our reset was the answer; there is nobody any more.
        bench.barrier()?;
        let header = bench.device.header(key, kind, RW);
        bench.device.peers.remove(&key);
        bench.device.send(header, b"hello?")?;
        let reset = |packet: &Header| packet.op == RST && packet.dst_port == key.0;
        bench.device.stray("a reset", reset)?;
    }
    Ok(())
}

fn what_was_received_before_a_reset_can_be_read(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    bench.device.write(key, b"the last words", 100)?;
    bench.device.reset(key)?;
    bench.barrier()?;
    bench.expect_bytes(id, b"the last words", "")?;
    bench.expect_bytes(id, b"", "")?;
    Ok(())
}

fn messages_keep_their_ends(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(SEQPACKET)?;
    for (len, flags) in [
        (1, 0),
        (70_000, END_OF_RECORD),
        (4096, 0),
        (3, END_OF_RECORD),
    ] {
        let bytes = Pattern::new(len).bytes(0, len as usize);
        bench
            .device
            .write_packet(key, &bytes, END_OF_MESSAGE | flags)?;
        bench.barrier()?;
        let name = if flags == 0 { "" } else { "eor" };
        bench.expect_bytes(id, &bytes, name)?;
        bench.call(&format!("send {id} {len} {len} {name}"))?;
        let received = bench.device.read_exact(key, len as usize)?;
        Pattern::new(len).check(0, &received)?;
    }
    Ok(())
}

fn a_message_in_parts_is_received_as_one(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(SEQPACKET)?;
    for part in ["in ", "three "] {
        bench.device.write_packet(key, part.as_bytes(), 0)?;
        bench.barrier()?;
        bench.expect_error(&format!("recv {id} 100"), "EAGAIN")?;
    }
    bench.device.write_packet(key, b"parts", END_OF_MESSAGE)?;
    bench.barrier()?;
    bench.expect_bytes(id, b"in three parts", "")
}

fn a_message_larger_than_the_window_is_refused(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_device(SEQPACKET, 10_000)?;
    bench.expect_error(&format!("send {id} 10001 1"), "EMSGSIZE")?;
    let sent = bench.number(&format!("send {id} 10000 1"))?;
    ensure!(sent == 10_000, "{sent} bytes were sent");
    bench.device.read_exact(key, 10_000)?;
    Ok(())
}

fn what_is_left_of_a_message_is_dropped(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(SEQPACKET)?;
    bench.device.write(key, b"much too long", 100)?;
    bench.device.write(key, b"next", 100)?;
    bench.barrier()?;
    let answer = bench.call(&format!("recv {id} 4"))?;
    ensure!(
        answer.starts_with("4 ") && answer.ends_with(" truncated"),
        "{answer}"
    );
    bench.expect_bytes(id, b"next", "")
}

fn a_reader_who_peeks_makes_no_room_for_empty_messages(bench: &mut Bench) -> anyhow::Result<()> {
    // One for each 64 bytes of a window, the bound that is documented; C has fewer.
    const MOST: u32 = WINDOW / 64;
    let Pair { id, key } = bench.made_by_guest(SEQPACKET)?;
    for sent in 0..2 * MOST {
        if bench.device.peers[&key].is_over {
            return Ok(());
        }
        if sent % 1000 == 0 {
            bench.ask(&format!("recv {id} 100 peek"))?;
        }
        bench.device.write_packet(key, b"", END_OF_MESSAGE)?;
    }
    bench.barrier()?;
    ensure!(
        bench.device.peers[&key].is_over,
        "{} messages wait for a reader",
        2 * MOST
    );
    Ok(())
}

/// A buffer to write to, if one is posted. A guest that waits for its CPU is not one that posts none.
fn next_buffer_before_long(bench: &mut Bench) -> anyhow::Result<Option<Chain>> {
    let (started, long) = (Instant::now(), 10 * a_while(bench));
    while bench.device.buffers.is_empty() && started.elapsed() < long {
        bench.device.idle()?;
    }
    Ok(bench.device.buffers.pop_front())
}

fn a_device_that_reads_nothing_is_not_answered_without_end(
    bench: &mut Bench,
) -> anyhow::Result<()> {
    // The transmit ring, as many answers that wait for it, and the receive ring: 1,024 each.
    const MOST: usize = 5000;
    let Pair { key, .. } = bench.made_by_guest(STREAM)?;
    let nobody = (key.0 + 1, key.1 + 1);
    for header in [
        bench.device.header(nobody, STREAM, RW),
        Header {
            buf_alloc: WINDOW,
            ..bench.device.header(key, STREAM, CREDIT_REQUEST)
        },
    ] {
        bench.device.silent = true;
        let mut taken = 0;
        loop {
            bench.device.poll()?;
            let Some(chain) = next_buffer_before_long(bench)? else {
                break;
            };
            let written = HEADER_LEN as u32;
            bench.device.fill(&chain, &header, &[], written)?;
            bench.device.rx.notify();
            taken += 1;
            ensure!(
                taken < MOST,
                "{taken} packets are to be answered: {header:?}"
            );
        }
        bench.device.silent = false;
        bench.barrier()?;
    }
    Ok(())
}

fn a_packet_is_a_header_and_one_piece(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    for size in [1, 4096, 32_449, 65_536, 100_000] {
        let sent = bench.number(&format!("send {id} {size} 1"))?;
        bench.device.read_exact(key, sent as usize)?;
    }
    let pieces = bench.device.peers[&key].pieces;
    ensure!(pieces <= 2, "a packet came in {pieces} descriptors");
    Ok(())
}

/// Bytes of all receive buffers, once they are all there.
fn posted(bench: &mut Bench) -> anyhow::Result<usize> {
    bench.barrier()?;
    bench.device.pass(a_while(bench))?;
    Ok(bench.device.posted())
}

/// Bytes of posted runs, for small packets and for large ones.
const POSTED_SMALL: usize = 512 * 1024;
const POSTED_LARGE: usize = 2 * 1024 * 1024;

fn expect_posted(bench: &mut Bench, budget: usize, when: &str) -> anyhow::Result<()> {
    // Headers are beside the runs, a buffer is a whole one, and there may be a large one among small ones.
    let slack = 64 * 1024;
    let found = posted(bench)?;
    ensure!(
        (budget - slack..=budget + slack).contains(&found),
        "{found} bytes are posted {when}, not {budget}"
    );
    Ok(())
}

fn receive_memory_follows_the_traffic(bench: &mut Bench) -> anyhow::Result<()> {
    let Pair { id, key } = bench.made_by_guest(STREAM)?;
    let trickle = |bench: &mut Bench| {
        for _ in 0..600 {
            bench.device.write(key, b"!", 1)?;
        }
        bench.call(&format!("recv {id} 1000"))
    };
    trickle(bench)?;
    expect_posted(bench, POSTED_SMALL, "when packets are small")?;
    write_packets(bench, Pair { id, key }, 8, 65_536)?;
    expect_posted(bench, POSTED_LARGE, "when packets are large")?;
    for _ in 0..4 {
        trickle(bench)?;
    }
    expect_posted(bench, POSTED_SMALL, "when packets are small again")
}

/// Packets of up to `len` bytes, `rounds` times 200,000 bytes of them.
fn write_packets(bench: &mut Bench, pair: Pair, rounds: u32, len: usize) -> anyhow::Result<()> {
    let bytes = vec![0; 200_000];
    for _ in 0..rounds {
        bench.device.write(pair.key, &bytes, len)?;
        bench.barrier()?;
        bench.call(&format!("recv {} 200000", pair.id))?;
    }
    Ok(())
}

fn packets_of_a_page_do_not_hide_larger_ones(bench: &mut Bench) -> anyhow::Result<()> {
    let pair = bench.made_by_guest(STREAM)?;
    write_packets(bench, pair, 50, 4096)?;
    let when = "when packets are as large as a small buffer";
    expect_posted(bench, POSTED_SMALL, when)?;
    write_packets(bench, pair, 30, 65_536)?;
    expect_posted(bench, POSTED_LARGE, "when packets are large")
}

fn a_packet_from_a_stranger_does_not_reach_a_connection(bench: &mut Bench) -> anyhow::Result<()> {
    for kind in KINDS {
        let Pair { id, key } = bench.made_by_guest(kind)?;
        let stranger = Header {
            flags: NOTHING_MORE,
            buf_alloc: WINDOW,
            ..bench.device.header((key.0 + 1, key.1), kind, RW)
        };
        let other_cid = Header {
            src_cid: 77,
            src_port: key.0,
            ..stranger
        };
        for source in [stranger, other_cid] {
            for op in [RW, SHUTDOWN, CREDIT_REQUEST, RST] {
                bench.device.send(Header { op, ..source }, b"EVIL")?;
            }
        }
        bench.barrier()?;
        bench.device.write(key, b"good", 100)?;
        bench.expect_event(id, "in")?;
        bench.expect_bytes(id, b"good", "")?;
        bench.call(&format!("send {id} 100 1"))?;
        bench.device.read_exact(key, 100)?;
    }
    Ok(())
}
