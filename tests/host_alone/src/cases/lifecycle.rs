// SPDX-License-Identifier: GPL-2.0
//! The end of a guest, in all the states it can be in.

use std::ffi::CString;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rvsock_selftests::case::{wait_until, Setup};
use rvsock_selftests::errno::{check, Errno};
use rvsock_selftests::socket::{Address, Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};

use crate::device::{skip, Device};
use crate::guest::{prepare, Guest, Options, CID, PORT};
use crate::header::operation;

cases!("lifecycle":
    a_module_with_an_open_device_stays,
    a_device_can_be_closed_in_every_state,
    a_guest_that_goes_resets_its_connections,
    a_guest_that_goes_leaves_those_of_others,
    a_killed_guest_resets_its_connections,
    a_device_outlives_its_owner,
    a_guest_that_comes_and_goes_under_traffic_leaves_nothing,
    a_stopped_guest_keeps_its_connections,
    connecting_in_vain_leaves_nothing,
    bytes_for_a_guest_that_goes_are_waited_for_no_longer
        => "what is dropped with the device counts as unsent for ever",
    a_guest_that_changes_its_cid_under_traffic_leaves_nothing,
);

fn a_module_with_an_open_device_stays(setup: &Setup) -> anyhow::Result<()> {
    let Some(module) = &setup.module else {
        return skip("needs --module");
    };
    let name = CString::new(module.as_str())?;
    let _device = Device::open()?;
    let (name, flags) = (name.as_ptr(), libc::O_NONBLOCK);
    // SAFETY: The name is a string.
    let removed = check(unsafe { libc::syscall(libc::SYS_delete_module, name, flags) });
    ensure_eq!(removed, Err(Errno(libc::EAGAIN)));
    Ok(())
}

pub fn is_free(cid: u32) -> anyhow::Result<bool> {
    Ok(Device::open()?.set_cid(cid.into()).is_ok())
}

fn a_device_can_be_closed_in_every_state(_: &Setup) -> anyhow::Result<()> {
    drop(Device::open()?);
    let device = Device::open()?;
    device.set_cid(CID.into())?;
    drop(device);
    let device = Device::open()?;
    device.set_owner()?;
    device.set_cid(CID.into())?;
    drop(device);
    ensure!(is_free(CID)?);
    let options = Options::default();
    drop(Guest::prepare(&options)?);
    drop(Guest::start(&options)?);
    let guest = Guest::start(&options)?;
    guest.device.set_running(0)?;
    drop(guest);
    ensure!(is_free(CID)?);

    // With a request, or the answer to one, on its way to the guest.
    for buffers in [0, 8] {
        let mut guest = Guest::start(&Options {
            buffers,
            ..options.clone()
        })?;
        let socket = Socket::new(Kind::Stream)?;
        socket.set_nonblocking()?;
        let _ = socket.connect(guest.address(PORT));
        let listener = Socket::listening(Kind::Stream)?;
        let connection = crate::guest::Connection::new(&guest, Kind::Stream, 1, listener.port()?);
        guest.send_control(&connection, operation::REQUEST, 0)?;
        drop(guest);
        ensure!(is_free(CID)?);
    }
    Ok(())
}

/// What a socket says whose guest has gone.
fn is_reset(socket: &Socket) -> anyhow::Result<()> {
    ensure!(socket.poll(libc::POLLIN, Duration::from_secs(20))? & libc::POLLERR != 0);
    ensure_eq!(socket.take_error()?, Some(Errno(libc::ECONNRESET)));
    ensure_eq!(socket.recv_vec(1, 0)?, b"");
    Ok(())
}

fn a_guest_that_goes_resets_its_connections(_: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let mut guest = Guest::start(&Options::default())?;
        let (active, _) = guest.accept_from(kind)?;
        let (passive, _) = guest.connect_pair(kind)?;
        // Everything sent is on its way, nothing taken.
        guest.reposts = false;
        active.set_nonblocking()?;
        while active.send(&[0; 10_000], 0).is_ok() {}
        drop(guest);
        is_reset(&active)?;
        is_reset(&passive)?;
    }
    Ok(())
}

fn a_guest_that_goes_leaves_those_of_others(_: &Setup) -> anyhow::Result<()> {
    let mut other = Guest::start(&Options {
        cid: CID + 256,
        ..Options::default()
    })?;
    let (socket, mut connection) = other.accept_from(Kind::Stream)?;
    let listener = Socket::listening(Kind::Stream)?;
    for _ in 0..3 {
        let mut guest = Guest::start(&Options::default())?;
        let (own, _) = guest.accept_from(Kind::Stream)?;
        drop(guest);
        is_reset(&own)?;
        other.converse(&socket, &mut connection)?;
    }
    let mut guest = Guest::start(&Options::default())?;
    guest.connect(Kind::Stream, 1, listener.port()?)?;
    listener.accept()?;
    Ok(())
}

/// A guest in a process of its own, which ends as `end` says; it has connected to `port`.
fn guest_elsewhere(port: u32, end: fn()) -> anyhow::Result<libc::pid_t> {
    // SAFETY: There are no other threads.
    let child = check(unsafe { libc::fork() })?;
    if child != 0 {
        return Ok(child);
    }
    let guest = Guest::start(&Options::default()).and_then(|mut guest| {
        guest.connect(Kind::Stream, PORT, port)?;
        Ok(guest)
    });
    if guest.is_ok() {
        end();
    }
    // SAFETY: The guest is neither dropped nor closed: that is what the kernel has to do.
    unsafe { libc::_exit(1) };
}

fn a_killed_guest_resets_its_connections(_: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    prepare(&listener)?;
    let pause: fn() = || loop {
        thread::sleep(Duration::from_secs(1));
    };
    let ends: [fn(); 2] = [pause, || {}];
    for (round, end) in ends.into_iter().cycle().take(6).enumerate() {
        let child = guest_elsewhere(listener.port()?, end)?;
        let socket = listener.accept()?;
        socket.set_nonblocking()?;
        while socket.send(&[0; 10_000], 0).is_ok() {}
        if round % 2 == 0 {
            // SAFETY: The child is ours and was not waited for.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        // SAFETY: The child is ours.
        check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) })?;
        is_reset(&socket)?;
        wait_until("the CID is free", || is_free(CID).unwrap_or(false))?;
    }
    Ok(())
}

fn a_device_outlives_its_owner(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    // SAFETY: There are no other threads.
    let child = check(unsafe { libc::fork() })?;
    if child == 0 {
        let owner = device.duplicate().and_then(|own| {
            let guest = Guest::prepare_on(own, &Options::default())?;
            guest.device.set_cid(CID.into())?;
            guest.device.set_running(1)?;
            Ok(guest)
        });
        // SAFETY: The kernel cleans up.
        unsafe { libc::_exit(i32::from(owner.is_err())) };
    }
    let mut status = 0;
    // SAFETY: The child is ours.
    check(unsafe { libc::waitpid(child, &mut status, 0) })?;
    ensure_eq!(status, 0);
    // It still runs, for all that anybody knows, but has no worker and no memory.
    let socket = Socket::new(Kind::Stream)?;
    socket.set_connect_timeout(Duration::from_millis(300))?;
    let address = Address {
        cid: CID,
        port: PORT,
    };
    ensure_eq!(socket.connect(address), Err(Errno(libc::ETIMEDOUT)));
    ensure_eq!(device.set_running(0), Err(Errno(libc::EPERM)));
    ensure_eq!(device.set_owner(), Err(Errno(libc::EBUSY)));
    ensure!(!is_free(CID)?);
    drop(device);
    ensure!(is_free(CID)?);
    Ok(())
}

/// Connects and sends for ever.
fn disturb(stop: &AtomicBool, kind: Kind, done: &AtomicUsize) -> anyhow::Result<()> {
    let address = Address {
        cid: CID,
        port: PORT,
    };
    while !stop.load(Ordering::Relaxed) {
        let socket = Socket::new(kind)?;
        socket.set_connect_timeout(Duration::from_millis(50))?;
        socket.set_send_timeout(Duration::from_millis(50))?;
        if socket.connect(address).is_ok() {
            done.fetch_add(1, Ordering::Relaxed);
            while socket.send(&[1; 5000], 0).is_ok() {}
        }
    }
    Ok(())
}

fn a_guest_that_comes_and_goes_under_traffic_leaves_nothing(setup: &Setup) -> anyhow::Result<()> {
    let rounds = if setup.long { 300 } else { 30 };
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| -> anyhow::Result<()> {
        let threads: Vec<_> = [Kind::Stream, Kind::Seqpacket]
            .map(|kind| {
                scope.spawn({
                    let (stop, done) = (&stop, &done);
                    move || disturb(stop, kind, done)
                })
            })
            .into();
        let work = || -> anyhow::Result<()> {
            for round in 0..rounds {
                let mut guest = Guest::start(&Options::default())?;
                let mut accepted = 0;
                while accepted < 2 {
                    let packet = guest.receive()?;
                    if packet.header.operation == operation::REQUEST {
                        guest.put_back(packet);
                        guest.accept()?;
                        accepted += 1;
                    }
                }
                if round % 3 == 1 {
                    guest.device.set_running(0)?;
                }
                if round % 3 == 2 {
                    guest.device.set_cid(u64::from(CID) + 1)?;
                }
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap()?;
        }
        result
    })?;
    ensure!(done.into_inner() > 0, "nobody has ever connected");
    Ok(())
}

fn a_stopped_guest_keeps_its_connections(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    for _ in 0..5 {
        guest.device.set_running(0)?;
        ensure_eq!(socket.poll(libc::POLLIN, Duration::ZERO)?, 0);
        ensure_eq!(socket.take_error()?, None);
        guest.device.set_running(1)?;
        guest.converse(&socket, &mut connection)?;
    }
    Ok(())
}

/// Objects of the sizes that queued packets and what belongs to them have.
fn small_objects() -> anyhow::Result<usize> {
    let mut count = 0;
    for line in fs::read_to_string("/proc/slabinfo")?.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(active)) = (words.next(), words.next()) else {
            continue;
        };
        let is_small = ["-96", "-128", "-192", "-256"]
            .iter()
            .any(|size| name.ends_with(size));
        if name.starts_with("kmalloc-") && is_small {
            count += active.parse::<usize>()?;
        }
    }
    Ok(count)
}

/// Connects often to a guest that takes nothing, and gives up at once.
fn connecting_in_vain_leaves_nothing(_: &Setup) -> anyhow::Result<()> {
    const TIMES: usize = 4000;
    const THREADS: usize = 8;
    let guest = Guest::with_buffers(0)?;
    // It is the first in the queue.
    let waiting = Socket::new(Kind::Stream)?;
    waiting.set_nonblocking()?;
    let _ = waiting.connect(guest.address(PORT));
    let attempts = |count: usize| -> anyhow::Result<()> {
        for _ in 0..count {
            let socket = Socket::new(Kind::Stream)?;
            socket.set_connect_timeout(Duration::from_millis(1))?;
            ensure_eq!(
                socket.connect(guest.address(PORT)),
                Err(Errno(libc::ETIMEDOUT))
            );
        }
        Ok(())
    };
    attempts(100)?;
    let before = small_objects()?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| attempts(TIMES / THREADS)))
            .collect();
        for thread in threads {
            thread.join().unwrap()?;
        }
        Ok(())
    })?;
    let after = small_objects()?;
    ensure!(
        after < before + TIMES / 2,
        "{before} objects became {after} after {TIMES} attempts"
    );
    Ok(())
}

fn bytes_for_a_guest_that_goes_are_waited_for_no_longer(_: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        // It takes the request, and nothing after that.
        let mut guest = Guest::with_buffers(1)?;
        guest.reposts = false;
        let (socket, _) = guest.accept_from(kind)?;
        socket.send_all(&[1; 50_000])?;
        ensure_eq!(socket.unsent()?, 50_000);
        socket.set_linger(20)?;
        let lingering = socket.duplicate()?;
        thread::scope(|scope| {
            // The end of the guest comes while close() waits for bytes to leave, or just before.
            drop(socket);
            let closing = scope.spawn(move || {
                let started = Instant::now();
                drop(lingering);
                started.elapsed()
            });
            thread::sleep(Duration::from_millis(100));
            ensure!(!closing.is_finished(), "close() does not wait");
            drop(guest);
            let took = closing.join().unwrap();
            ensure!(took < Duration::from_secs(10), "close() took {took:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Answered under one CID before it changes.
const REQUESTS_MAX: usize = 20;

fn a_guest_that_changes_its_cid_under_traffic_leaves_nothing(setup: &Setup) -> anyhow::Result<()> {
    let rounds = if setup.long { 20_000 } else { 200 };
    let mut guest = Guest::start(&Options::default())?;
    let done = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for offset in 0..2 {
            let (done, answered) = (&done, &answered);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let Ok(socket) = Socket::new(Kind::Stream) else {
                        continue;
                    };
                    let _ = socket.set_connect_timeout(Duration::from_millis(20));
                    let address = Address::new(CID + offset, PORT);
                    if matches!(socket.connect(address), Err(Errno(libc::ECONNRESET))) {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut work = || -> anyhow::Result<()> {
            for round in 0..rounds {
                let cid = CID + round % 2;
                guest.device.set_cid(cid.into())?;
                // Who is answered asks again at once.
                for _ in 0..REQUESTS_MAX {
                    let Some(packet) = guest.receive_within(Duration::from_millis(2))? else {
                        break;
                    };
                    let header = packet.header;
                    if header.operation != operation::REQUEST {
                        continue;
                    }
                    // From the CID that was asked for: the host takes that only if it is the guest's yet.
                    guest.send(&header.answer(operation::RESET), &[])?;
                }
            }
            Ok(())
        };
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })?;
    ensure!(answered.load(Ordering::Relaxed) > 0, "nobody was answered");
    guest.device.set_cid(CID.into())?;
    while guest.receive_within(Duration::from_millis(200))?.is_some() {}
    guest.exercise()
}
