// SPDX-License-Identifier: GPL-2.0
//! What a guest must not notice: that it ran before, and that others change their CIDs.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context};
use rvsock_selftests::case::Setup;
use rvsock_selftests::errno::{check, Errno};
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Address, Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};

use crate::device::{Device, RX, TX};
use crate::guest::{prepare, Connection, Guest, Options, CID, PORT, SHORT, SOON};
use crate::header::operation;
use crate::ring::Ring;

cases!("restart":
    what_waits_for_a_guest_does_not_reach_its_next_boot
        => "packets stay in the queue of the device when it is stopped",
    nothing_gets_in_while_a_guest_is_stopped
        => "packets stay in the queue of the device when it is stopped",
    a_paused_guest_gets_what_waited_for_it,
    what_nobody_is_asked_to_send_again_waits_for_a_paused_guest
        => "it is lost",
    a_reboot_resets_connections
        => "they hang until something is sent",
    a_guest_that_rang_before_it_ran_is_heard
        => "only the queue for the guest is looked at when it starts",
    a_connect_that_was_reset_before_it_returned_can_be_repeated
        => "a socket whose connection is over takes no packets, not even the answer",
    a_guest_is_found_while_others_change_their_cids
        => "a reader of the table follows the guest that moves into another bucket",
);

/// Stops a guest and starts it with new rings, as a reboot does.
fn reboot(guest: &mut Guest) -> anyhow::Result<()> {
    let options = guest.options.clone();
    guest.rx = Ring::new(&guest.memory, options.sizes[0], options.features, 0)?;
    guest.tx = Ring::new(&guest.memory, options.sizes[1], options.features, 0)?;
    guest.configure_queue(RX, &guest.rx)?;
    guest.configure_queue(TX, &guest.tx)?;
    guest.device.set_running(1)?;
    guest.post(32)
}

fn what_waits_for_a_guest_does_not_reach_its_next_boot(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (established, _) = guest.accept_from(Kind::Stream)?;
    established.set_nonblocking()?;
    guest.reposts = false;
    while established.send(&[7; 10_000], 0).is_ok() {}
    let asking = Socket::new(Kind::Stream)?;
    asking.set_nonblocking()?;
    ensure_eq!(
        asking.connect(guest.address(PORT)),
        Err(Errno(libc::EINPROGRESS))
    );

    guest.device.set_running(0)?;
    reboot(&mut guest)?;
    guest.expect_silence()?;
    // Nor is it counted as on its way any more.
    ensure_eq!(established.unsent()?, 0);
    Ok(())
}

fn nothing_gets_in_while_a_guest_is_stopped(setup: &Setup) -> anyhow::Result<()> {
    let rounds = if setup.long { 1000 } else { 100 };
    for _ in 0..rounds {
        let mut guest = Guest::start(&Options {
            memory: 8 << 20,
            ..Options::default()
        })?;
        let (socket, _) = guest.accept_from(Kind::Stream)?;
        guest.reposts = false;
        socket.set_nonblocking()?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| -> anyhow::Result<()> {
            let sender = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match socket.send(b"!", 0) {
                        Ok(_) | Err(Errno(libc::EAGAIN)) => {}
                        Err(Errno(libc::EHOSTUNREACH)) => return Ok(()),
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            });
            while guest.rx.take_used().is_none() {}
            guest.device.set_running(0)?;
            stop.store(true, Ordering::Relaxed);
            Ok(sender.join().unwrap()?)
        })?;
        reboot(&mut guest)?;
        let late = guest.receive_within(Duration::from_millis(20))?;
        ensure!(late.is_none(), "after the reboot comes {late:?}");
        // Closed the other way around, the socket would wait for an answer.
        drop(guest);
        drop(socket);
    }
    Ok(())
}

fn a_paused_guest_gets_what_waited_for_it(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::with_buffers(4)?;
    let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
    let pattern = Pattern::new(11);
    let bytes = pattern.bytes(0, 100_000);
    socket.send_all(&bytes)?;
    for _ in 0..3 {
        guest.device.set_running(0)?;
        guest.device.set_running(1)?;
    }
    let got = guest.receive_data(&mut connection, bytes.len())?;
    pattern.check(0, &got)
}

fn what_nobody_is_asked_to_send_again_waits_for_a_paused_guest(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, connection) = guest.accept_from(Kind::Stream)?;
    guest.device.set_running(0)?;
    let _ = socket.shutdown(libc::SHUT_WR);
    guest.device.set_running(1)?;
    guest.expect(operation::SHUTDOWN)?;
    drop(socket);
    guest.answer_close(&connection)
}

fn a_reboot_resets_connections(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let mut neighbour = Guest::start(&Options {
        cid: CID + 1,
        ..Options::default()
    })?;
    let (neighbours, mut to_neighbour) = neighbour.connect_pair(Kind::Stream)?;
    let (socket, _) = guest.accept_from(Kind::Stream)?;
    guest.device.set_running(0)?;
    ensure_eq!(socket.take_error()?, None);
    reboot(&mut guest)?;
    ensure_eq!(socket.take_error()?, Some(Errno(libc::ECONNRESET)));
    ensure_eq!(socket.recv_vec(1, 0)?, b"");
    drop(socket);
    guest.expect_silence()?;

    let (fresh, mut connection) = guest.accept_from(Kind::Stream)?;
    guest.converse(&fresh, &mut connection)?;
    neighbour.converse(&neighbours, &mut to_neighbour)
}

fn a_guest_that_rang_before_it_ran_is_heard(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::prepare(&Options::default())?;
    guest.device.set_cid(CID.into())?;
    guest.post(8)?;
    let stray = Connection::new(&guest, Kind::Stream, PORT, 99);
    guest.send_control(&stray, operation::CREDIT_REQUEST, 0)?;
    // The kick arrives, and finds nobody.
    thread::sleep(SHORT);
    guest.device.set_running(1)?;
    let answer = guest.receive_within(SOON)?.context("it was not heard")?;
    ensure_eq!(answer.header.operation, operation::RESET);
    Ok(())
}

/// Keeps everybody but interrupts from a CPU, for as long as it is there.
struct Occupied {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The scheduler would take the CPU away after 0.95 s in each second.
const OCCUPIED_AT_MOST: Duration = Duration::from_millis(800);

impl Occupied {
    fn new(cpu: usize) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = stop.clone();
        let (sender, ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _ = sender.send(run_on(cpu).and_then(|()| run_before_all_others()));
            let started = Instant::now();
            while !is_stopped.load(Ordering::Relaxed) && started.elapsed() < OCCUPIED_AT_MOST {}
        });
        ready.recv()??;
        let thread = Some(thread);
        Ok(Self { stop, thread })
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Lets the calling thread run on this CPU only.
fn run_on(cpu: usize) -> Result<(), Errno> {
    // SAFETY: A set of CPUs is bits.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: The set is ours; the macro looks after its bounds.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: The set is of the size that is given.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) }).map(drop)
}

fn run_before_all_others() -> Result<(), Errno> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: The parameter is valid.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameter) }).map(drop)
}

/// Connects a socket to a guest that answers, and is gone before `connect()` has returned.
fn connect_to_a_guest_that_goes(socket: Socket) -> anyhow::Result<(Socket, Result<(), Errno>)> {
    let mut guest = Guest::start(&Options::default())?;
    let address = guest.address(PORT);
    let connecting = thread::spawn(move || {
        let result = run_on(1).and_then(|()| socket.connect(address));
        (socket, result)
    });
    let request = guest.expect(operation::REQUEST)?.header;
    // It sleeps by now, and does not find out before the CPU is free.
    thread::sleep(SHORT / 10);
    run_on(0)?;
    let occupied = Occupied::new(1)?;
    guest.send(&request.answer(operation::RESPONSE), &[])?;
    guest.flush()?;
    drop(guest);
    drop(occupied);
    Ok(connecting.join().unwrap())
}

fn a_connect_that_was_reset_before_it_returned_can_be_repeated(_: &Setup) -> anyhow::Result<()> {
    let socket = Socket::new(Kind::Stream)?;
    prepare(&socket)?;
    let (socket, result) = connect_to_a_guest_that_goes(socket)?;
    ensure_eq!(result, Err(Errno(libc::ECONNRESET)));
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.accept_socket(socket)?;
    guest.converse(&socket, &mut connection)?;
    drop(socket);
    guest.answer_close(&connection)?;
    guest.exercise()
}

/// The bucket of a CID in C's table of 256: `hash_32(cid, 8)`.
fn bucket(cid: u32) -> u32 {
    cid.wrapping_mul(0x61c8_8647) >> 24
}

/// The other devices of the bucket.
const OTHERS: usize = 40;

fn a_guest_is_found_while_others_change_their_cids(setup: &Setup) -> anyhow::Result<()> {
    let patience = Duration::from_secs(if setup.long { 120 } else { 8 });
    let searched = Device::open()?;
    searched.set_cid(CID.into())?;
    let mut same = (CID + 1..).filter(|cid| bucket(*cid) == bucket(CID));
    let mut different = (CID + 1..).filter(|cid| bucket(*cid) == bucket(CID) ^ 1);
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        let device = Device::open()?;
        let cids = (same.next().unwrap_or(0), different.next().unwrap_or(0));
        device.set_cid(cids.0.into())?;
        others.push((device, cids));
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> anyhow::Result<()> {
        let mover = scope.spawn(|| -> Result<u64, Errno> {
            let mut moves = 0;
            while !stop.load(Ordering::Relaxed) {
                for (device, (here, there)) in &others {
                    device.set_cid((*there).into())?;
                    device.set_cid((*here).into())?;
                    moves += 2;
                }
            }
            Ok(moves)
        });
        let started = Instant::now();
        let address = Address {
            cid: CID,
            port: PORT,
        };
        let mut lookups = 0;
        let mut found = Err(Errno(libc::EHOSTUNREACH));
        let socket = Socket::new(Kind::Stream)?;
        // A guest that does not run: it is found or not, and nothing is sent.
        while found == Err(Errno(libc::EHOSTUNREACH)) && started.elapsed() < patience {
            found = socket.connect(address);
            lookups += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let moves = mover.join().unwrap()?;
        ensure_eq!(
            found,
            Err(Errno(libc::EHOSTUNREACH)),
            "lookup {lookups}, with {moves} moves"
        );
        ensure!(
            moves > 20 && lookups > 100,
            "{moves} moves, {lookups} lookups"
        );
        Ok(())
    })
}
