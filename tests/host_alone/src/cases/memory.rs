// SPDX-License-Identifier: GPL-2.0
//! A host that is out of memory.
//!
//! Needs a kernel that makes failures on demand. A system call, or what the worker of the device does
//! with a packet, fails at each place where it can, one after the other.

use std::fs;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;

use anyhow::{bail, ensure, Context};
use rvsock_selftests::case::{stays, wait_until, Setup, PATIENCE};
use rvsock_selftests::errno::{check, Errno};
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::shortage::{ensure_told, Function, Shortage, Symbols};
use rvsock_selftests::socket::{Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};

use super::lifecycle::is_free;
use super::translation::{behind_iommu, OFFSET};
use crate::device::{skip, Device, BACKEND_IOTLB_V2, RX, TX};
use crate::guest::{prepare, Connection, Guest, Options, CID, PORT, SHORT};
use crate::header::{flag, operation};
use crate::iotlb::Message;
use crate::memory::BASE;

cases!("memory":
    a_device_that_cannot_be_opened_can_be_opened_again,
    a_device_that_gets_no_worker_can_be_owned_yet,
    a_command_that_fails_can_be_given_again,
    a_cid_that_cannot_be_taken_leaves_the_guest_its_own,
    a_translation_that_cannot_be_added_can_be_added_again,
    a_connect_that_fails_can_be_repeated,
    the_end_of_a_connection_reaches_the_guest
        => "what there is no memory for is not sent, and nobody told",
    a_request_that_there_is_no_memory_for_can_be_repeated
        => "it is lost, and so is its buffer",
    bytes_that_there_is_no_memory_for_are_not_missing_in_a_connection
        => "they are lost, and so is their buffer",
    a_packet_that_there_is_no_memory_for_is_delayed
        => "it is lost, and so is its buffer",
    an_answer_needs_no_memory
        => "what there is no memory for is not sent, and nobody told",
    a_device_can_be_stopped_and_closed_while_it_waits_for_memory
        => "it does not wait",
);

const KINDS: [Kind; 2] = [Kind::Stream, Kind::Seqpacket];

fn a_device_that_cannot_be_opened_can_be_opened_again(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    shortage.every(|nth| {
        let (device, struck) = shortage.nth_or_again(nth, Device::try_open)?;
        Guest::start_on(device, &Options::default())?.exercise()?;
        Ok(struck)
    })
}

fn a_device_that_gets_no_worker_can_be_owned_yet(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    shortage.every(|nth| {
        let device = Device::open()?;
        let (_, struck) = shortage.nth_or_again(nth, || device.set_owner())?;
        Ok(struck)
    })?;
    Guest::start(&Options::default())?.exercise()
}

/// A command for a device that is set up; which one may depend on how often it is given.
type Command = fn(&Guest, u32) -> Result<(), Errno>;

const COMMANDS: [(&str, Command); 10] = [
    ("features", |guest, _| {
        guest.device.set_features(guest.options.features)
    }),
    ("backend features", |guest, _| {
        guest.device.set_backend_features(BACKEND_IOTLB_V2)
    }),
    ("memory", |guest, _| guest.device.set_memory(&guest.memory)),
    ("size of a ring", |guest, _| {
        guest.device.set_queue_size(TX, guest.tx.size.into())
    }),
    ("place in a ring", |guest, _| {
        guest.device.set_queue_base(TX, 0)
    }),
    ("addresses of a ring", |guest, _| {
        let addresses = guest.addresses(RX, &guest.rx);
        guest.device.set_queue_addresses(&addresses)
    }),
    ("kick", |guest, _| {
        guest.device.set_kick(TX, Some(&guest.tx.kick))
    }),
    ("call", |guest, _| {
        guest.device.set_call(TX, Some(&guest.tx.call))
    }),
    ("error", |guest, _| {
        guest.device.set_error(TX, Some(&guest.tx.error))
    }),
    ("run", |guest, nth| {
        guest.device.set_running((nth % 2) as i32)
    }),
];

fn a_command_that_fails_can_be_given_again(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for options in [Options::default(), behind_iommu()] {
        let mut guest = Guest::prepare(&options)?;
        guest.device.set_cid(CID.into())?;
        let mut failures = 0;
        for (name, command) in COMMANDS {
            let each = shortage.each(|nth| {
                let (_, struck) = shortage.nth_or_again(nth, || command(&guest, nth))?;
                Ok(struck)
            });
            failures += each.with_context(|| name.to_owned())?;
            // Features that were set again come with a new IOTLB.
            guest.fill_iotlb()?;
        }
        ensure!(failures > COMMANDS.len() as u32, "{failures} failures");
        guest.device.set_running(0)?;
        guest.device.set_running(1)?;
        guest.post(32)?;
        guest.exercise()?;
    }
    Ok(())
}

fn a_cid_that_cannot_be_taken_leaves_the_guest_its_own(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let mut guest = Guest::start(&Options::default())?;
    shortage.every(|nth| {
        let (old, new) = (CID + (nth + 1) % 2, CID + nth % 2);
        let (taken, struck) = shortage.nth(nth, || guest.device.set_cid(new.into()))?;
        if let Err(error) = taken {
            ensure_told(error)?;
            ensure!(!is_free(old)? && is_free(new)?, "it has neither CID");
            guest
                .device
                .set_cid(new.into())
                .context("taking it after all")?;
        }
        ensure!(is_free(old)? && !is_free(new)?, "it has not changed");
        guest.options.cid = new;
        guest.exercise()?;
        Ok(struck)
    })
}

fn a_translation_that_cannot_be_added_can_be_added_again(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let mut guest = Guest::start(&behind_iommu())?;
    let size = guest.memory.size();
    let messages = [
        Message::invalidate(BASE + OFFSET, size),
        Message::update(BASE + OFFSET, size, guest.memory.host_address(BASE)),
    ];
    shortage.every(|nth| {
        let write = |message: &Message| {
            let written = guest.device.write_message(&message.encode());
            written.map(drop).map_err(Errno::from)
        };
        let (written, struck) = shortage.nth(nth, || messages.iter().try_for_each(write))?;
        if let Err(error) = written {
            // The vhost core says so if it cannot read a message.
            if error != Errno(libc::EINVAL) {
                ensure_told(error)?;
            }
            messages.iter().try_for_each(write).context("once more")?;
        }
        guest.exercise()?;
        Ok(struck)
    })
}

fn a_connect_that_fails_can_be_repeated(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        shortage.every(|nth| {
            let socket = Socket::new(kind)?;
            socket.set_nonblocking()?;
            let address = guest.address(PORT);
            let (result, struck) = shortage.nth(nth, || socket.connect(address))?;
            if result != Err(Errno(libc::EINPROGRESS)) {
                ensure_told(result.err().unwrap_or(Errno(0)))?;
                ensure_eq!(socket.connect(address), Err(Errno(libc::EINPROGRESS)));
            }
            let connection = guest.accept()?;
            ensure!(socket.poll(libc::POLLOUT, PATIENCE)? & libc::POLLOUT != 0);
            ensure_eq!(socket.take_error()?, None);
            drop(socket);
            guest.answer_close(&connection)?;
            Ok(struck)
        })?;
    }
    Ok(())
}

/// Ends a connection.
type End = fn(Socket) -> Result<Option<Socket>, Errno>;

const ENDS: [(End, u32); 2] = [
    (
        |socket| {
            // SAFETY: The descriptor is ours, and not used any more.
            check(unsafe { libc::close(socket.into_fd().into_raw_fd()) })?;
            Ok(None)
        },
        flag::SHUTDOWN_BOTH,
    ),
    (
        |socket| {
            // What failed can be asked for again.
            let _ = socket.shutdown(libc::SHUT_WR);
            Ok(Some(socket))
        },
        flag::SHUTDOWN_SEND,
    ),
];

fn the_end_of_a_connection_reaches_the_guest(_: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let mut guest = Guest::start(&Options::default())?;
    for kind in KINDS {
        for (end, flags) in ENDS {
            shortage.each(|nth| {
                let (socket, connection) = guest.accept_from(kind)?;
                let (left, struck) = shortage.nth(nth, || end(socket))?;
                let packet = guest.expect(operation::SHUTDOWN)?;
                ensure_eq!(packet.header.flags, flags);
                guest.send_control(&connection, operation::RESET, 0)?;
                guest.flush()?;
                drop(left?);
                Ok(struck)
            })?;
        }
    }
    Ok(())
}

/// A guest whose device needs no memory but for itself.
fn resident_guest() -> anyhow::Result<Guest> {
    Guest::start(&Options {
        is_resident: true,
        ..Options::default()
    })
}

/// The worker of the only device of this process, by its directory in /proc.
fn worker() -> anyhow::Result<PathBuf> {
    let mut workers = Vec::new();
    // Those of devices that were closed may be about to end.
    wait_until("there is one worker", || {
        workers = tasks().unwrap_or_default();
        workers.len() == 1
    })?;
    workers.pop().context("there is no worker")
}

fn tasks() -> std::io::Result<Vec<PathBuf>> {
    let mut workers = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm"))?.starts_with("vhost-") {
            workers.push(path);
        }
    }
    Ok(workers)
}

/// The code of the device's module.
fn code(setup: &Setup) -> anyhow::Result<Symbols> {
    match &setup.module {
        Some(module) => Symbols::of(Some(module)),
        None => skip("needs --module"),
    }
}

/// Allocations fail in the worker of the only device of this process, where `function` is at work.
fn strike_worker(shortage: &Shortage, function: &Function) -> anyhow::Result<()> {
    fs::write(worker()?.join("make-it-fail"), "1")?;
    shortage.allocations_within(function)?;
    shortage.strike_marked()
}

fn a_request_that_there_is_no_memory_for_can_be_repeated(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    shortage.allocations_within(&code(setup)?.text()?)?;
    let mut guest = resident_guest()?;
    let worker = worker()?;
    for kind in KINDS {
        let listener = Socket::listening(kind)?;
        shortage.every(|nth| {
            let mut connection = Connection::new(&guest, kind, PORT + nth, listener.port()?);
            let (answer, struck) = shortage.nth_of(&worker, nth, || {
                guest.send_control(&connection, operation::REQUEST, 0)?;
                guest.flush()?;
                guest.receive_within(SHORT)
            })?;
            match answer?.map(|packet| packet.header) {
                Some(header) if header.operation == operation::RESPONSE => {
                    connection.peer_window = header.buf_alloc;
                }
                Some(header) if header.operation != operation::RESET => {
                    bail!("the answer is {header:?}");
                }
                answer => {
                    ensure!(struck, "the answer is {answer:?}");
                    connection = guest.connect(kind, connection.local, connection.remote)?;
                }
            }
            let socket = listener.accept()?;
            prepare(&socket)?;
            guest.converse(&socket, &mut connection)?;
            drop(socket);
            guest.answer_close(&connection)?;
            Ok(struck)
        })?;
        listener.set_nonblocking()?;
        ensure_eq!(listener.accept().err(), Some(Errno(libc::EAGAIN)));
    }
    Ok(())
}

/// Packets of which the host keeps the memory, and such as it copies.
const PACKETS: [usize; 6] = [100, 4096, 20_000, 5000, 60_000, 1];

/// Bytes up to `total`, or up to the end of the connection, and what it says of that.
fn receive_all(socket: &Socket, total: usize) -> anyhow::Result<(Vec<u8>, Option<Errno>)> {
    let mut got = Vec::new();
    while got.len() < total {
        match socket.recv_vec(total, 0) {
            Ok(bytes) if bytes.is_empty() => return Ok((got, socket.take_error()?)),
            Ok(bytes) => got.extend(bytes),
            Err(error) => return Ok((got, Some(error))),
        }
    }
    Ok((got, None))
}

fn bytes_that_there_is_no_memory_for_are_not_missing_in_a_connection(
    setup: &Setup,
) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    shortage.allocations_within(&code(setup)?.text()?)?;
    let total = PACKETS.iter().sum();
    let pattern = Pattern::new(9);
    let mut guest = resident_guest()?;
    let worker = worker()?;
    for kind in KINDS {
        shortage.every(|nth| {
            let (socket, mut connection) = guest.connect_pair(kind)?;
            let (sent, struck) = shortage.nth_of(&worker, nth, || {
                let mut position = 0;
                for len in PACKETS {
                    let bytes = pattern.bytes(position, len);
                    guest.send_part(&mut connection, &bytes, flag::END_OF_MESSAGE)?;
                    position += len as u64;
                }
                guest.flush()
            })?;
            sent?;
            let (got, error) = receive_all(&socket, total)?;
            pattern.check(0, &got)?;
            if got.len() < total {
                ensure!(struck, "{} of {total} bytes", got.len());
                // Who reads is told so, and who writes.
                ensure_eq!(error, Some(Errno(libc::ENOBUFS)));
                guest.expect(operation::RESET)?;
            } else {
                drop(socket);
                guest.answer_close(&connection)?;
            }
            Ok(struck)
        })?;
    }
    Ok(())
}

/// Where a guest's packet is read. Other places of the Rust module may end a connection; C's has no
/// other.
fn reading(setup: &Setup) -> anyhow::Result<Function> {
    let code = code(setup)?;
    match code.containing("3Run7copy_of") {
        Some(function) => Ok(function),
        None => code.text(),
    }
}

fn a_packet_that_there_is_no_memory_for_is_delayed(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let reading = reading(setup)?;
    let pattern = Pattern::new(10);
    let mut guest = resident_guest()?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    let mut position = 0;
    for len in PACKETS {
        let start = position;
        strike_worker(&shortage, &reading)?;
        for len in [len, 10, 5000] {
            guest.send_part(&mut connection, &pattern.bytes(position, len), 0)?;
            position += len as u64;
        }
        stays("the packet waits", || socket.unread() == Ok(0))?;
        ensure!(shortage.strikes()? > 0, "nothing fails");
        // The other way is free.
        socket.send_all(b"meanwhile")?;
        ensure_eq!(guest.receive_data(&mut connection, 9)?, b"meanwhile");
        shortage.relent()?;
        let got = socket.recv_exact((position - start) as usize)?;
        ensure_eq!(got.len() as u64, position - start);
        pattern.check(start, &got)?;
    }
    guest.flush()
}

fn an_answer_needs_no_memory(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let code = code(setup)?.text()?;
    let mut guest = resident_guest()?;
    for kind in KINDS {
        let listener = Socket::listening(kind)?;
        let mut pairs = Vec::new();
        for port in 0..8 {
            let connection = guest.connect(kind, PORT + port, listener.port()?)?;
            pairs.push((listener.accept()?, connection));
        }
        strike_worker(&shortage, &code)?;
        for operations in [
            (operation::CREDIT_REQUEST, 0, operation::CREDIT_UPDATE),
            (operation::SHUTDOWN, flag::SHUTDOWN_BOTH, operation::RESET),
        ] {
            let (question, flags, answer) = operations;
            for (_, connection) in &pairs {
                guest.send_control(connection, question, flags)?;
            }
            for _ in &pairs {
                let packet = guest.receive();
                let header = packet
                    .with_context(|| format!("an answer to {question}"))?
                    .header;
                ensure_eq!(header.operation, answer);
            }
        }
        ensure!(shortage.strikes()? > 0, "nothing fails");
        shortage.relent()?;
        for (socket, _) in &pairs {
            ensure_eq!(socket.recv_vec(1, 0)?, b"");
        }
    }
    guest.exercise()
}

fn a_device_can_be_stopped_and_closed_while_it_waits_for_memory(
    setup: &Setup,
) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let reading = reading(setup)?;
    for _ in 0..10 {
        let mut guest = resident_guest()?;
        let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
        strike_worker(&shortage, &reading)?;
        guest.send_data(&mut connection, &[1; 4000])?;
        stays("the packet waits", || socket.unread() == Ok(0))?;
        guest.device.set_running(0)?;
        ensure!(shortage.strikes()? > 0, "nothing fails");
        shortage.relent()?;
        // What waited is looked at when the device starts.
        guest.device.set_running(1)?;
        ensure_eq!(socket.recv_exact(4000)?.len(), 4000);

        strike_worker(&shortage, &reading)?;
        guest.send_data(&mut connection, &[2; 4000])?;
        stays("the packet waits", || socket.unread() == Ok(0))?;
        drop(guest);
        shortage.relent()?;
    }
    Ok(())
}
