// SPDX-License-Identifier: GPL-2.0
//! Sockets in a BPF sockmap: a verdict program takes received data off the transport.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;

use crate::case::{wait_until, Setup, Skip, PATIENCE};
use crate::errno::{check, Errno};
use crate::fault::HeldLock;
use crate::pattern::Pattern;
use crate::socket::{Address, Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("sockmap":
    a_batch_of_packets_reaches_the_reader_in_order,
    what_was_left_of_a_partial_read_reaches_the_reader
        => "the packet is handed over from its beginning, and read twice",
    bytes_taken_by_a_program_are_not_counted_any_more,
    a_program_gives_back_the_window,
    a_socket_can_be_closed_in_a_map,
    what_is_redirected_leaves_by_the_other_socket,
    messages_are_redirected_to_another_socket,
    what_is_redirected_reaches_the_reader_of_a_unix_socket,
    what_comes_from_a_unix_socket_leaves_by_ours,
    a_poll_reports_what_a_program_passes_on,
    a_socket_that_is_closed_gives_its_place_back,
    a_socket_that_failed_to_connect_cannot_be_inserted,
);

// linux/bpf.h
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_SKB: u32 = 14;
const BPF_SK_SKB_VERDICT: u32 = 38;

/// `r0 = SK_PASS; exit`
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// There must be no socket at the place.
const BPF_NOEXIST: u32 = 1;

/// Redirected data is received by the other socket, instead of being sent by it.
const BPF_F_INGRESS: u64 = 1;

/// A sockmap with a program for what its sockets receive.
pub struct SockMap(OwnedFd);

/// Where a program finds a socket.
const INPUT: u32 = 0;
const OUTPUT: u32 = 1;

/// Calls bpf(); `fields` are those of `union bpf_attr`, 32 bits each.
fn bpf<const N: usize>(command: i32, fields: &[u32; N]) -> Result<i32, Errno> {
    // SAFETY: Pointers among the fields lead to memory that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, fields.as_ptr(), size_of_val(fields)) };
    Ok(check(result)? as i32)
}

fn low(pointer: *const u8) -> u32 {
    pointer as usize as u32
}

fn high(pointer: *const u8) -> u32 {
    (pointer as usize as u64 >> 32) as u32
}

impl SockMap {
    /// One that passes everything on to the socket's own reader.
    pub fn new() -> anyhow::Result<Self> {
        let map = Self::empty()?;
        map.attach(&PASS)?;
        Ok(map)
    }

    /// One that hands everything to the socket at `OUTPUT`.
    fn redirecting(flags: u64) -> anyhow::Result<Self> {
        let map = Self::empty()?;
        // `return bpf_sk_redirect_map(skb, map, OUTPUT, flags)`; r1 is the sk_buff from the start.
        map.attach(&[
            0x0000_0000_0000_1218 | ((map.0.as_raw_fd() as u64) << 32),
            0,
            0x0000_0000_0000_03b7 | (u64::from(OUTPUT) << 32),
            0x0000_0000_0000_04b7 | (flags << 32),
            0x0000_0034_0000_0085,
            0x0000_0000_0000_0095,
        ])?;
        Ok(map)
    }

    fn empty() -> anyhow::Result<Self> {
        // Key and value of 4 bytes, two entries.
        let map = match bpf(BPF_MAP_CREATE, &[BPF_MAP_TYPE_SOCKMAP, 4, 4, 2, 0]) {
            Err(Errno(libc::EPERM | libc::ENOSYS)) => {
                return Err(Skip("bpf() is not allowed".into()).into())
            }
            map => map.context("a sockmap")?,
        };
        // SAFETY: The descriptor is ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(map) }))
    }

    fn attach(&self, program: &[u64]) -> anyhow::Result<()> {
        let (code, licence) = (program.as_ptr().cast(), c"GPL".as_ptr().cast());
        let fields = [
            BPF_PROG_TYPE_SK_SKB,
            program.len() as u32,
            low(code),
            high(code),
            low(licence),
            high(licence),
        ];
        let program = bpf(BPF_PROG_LOAD, &fields).context("a program")?;
        // SAFETY: The descriptor is ours; the map keeps the program.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let ends = [
            self.0.as_raw_fd() as u32,
            program.as_raw_fd() as u32,
            BPF_SK_SKB_VERDICT,
            0,
        ];
        bpf(BPF_PROG_ATTACH, &ends).context("attaching the program")?;
        Ok(())
    }

    pub fn insert(&self, socket: &Socket) -> anyhow::Result<()> {
        self.insert_at(INPUT, socket)?;
        Ok(())
    }

    fn insert_at(&self, key: u32, socket: &impl AsRawFd) -> Result<(), Errno> {
        let value = socket.as_raw_fd() as u32;
        let (key, value) = (
            std::ptr::from_ref(&key).cast(),
            std::ptr::from_ref(&value).cast(),
        );
        let map = self.0.as_raw_fd() as u32;
        let flags = BPF_NOEXIST;
        let fields = [
            map,
            0,
            low(key),
            high(key),
            low(value),
            high(value),
            flags,
            0,
        ];
        bpf(BPF_MAP_UPDATE_ELEM, &fields)?;
        Ok(())
    }
}

/// Reads `len` bytes. A reader in a map may get EAGAIN for any wake-up that brings it nothing
/// (`vsock_msg_wait_data()`), be its socket blocking or not.
pub fn read(socket: &Socket, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut last = Ok(0);
    wait_until("everything arrives", || {
        let mut buffer = vec![0; len - bytes.len()];
        last = socket.recv(&mut buffer, libc::MSG_DONTWAIT);
        bytes.extend(&buffer[..last.unwrap_or(0)]);
        bytes.len() == len || !matches!(last, Ok(1..) | Err(Errno(libc::EAGAIN)))
    })
    .with_context(|| format!("{} of {len} bytes, recv() returns {last:?}", bytes.len()))?;
    ensure_eq!(bytes.len(), len);
    Ok(bytes)
}

fn a_batch_of_packets_reaches_the_reader_in_order(setup: &Setup) -> anyhow::Result<()> {
    const PACKETS: usize = 64;
    let pattern = Pattern::new(50);
    for len in [100, 1000, 4000] {
        let map = SockMap::new()?;
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        map.insert(&server)?;
        // The packets wait for the lock of their socket, and are then delivered without a pause.
        let lock = HeldLock::of(&server)?;
        for packet in 0..PACKETS {
            client.send_all(&pattern.bytes((packet * len) as u64, len))?;
        }
        lock.release()?;
        let bytes = read(&server, PACKETS * len)?;
        ensure_eq!(bytes.len(), PACKETS * len);
        pattern.check(0, &bytes)?;
    }
    Ok(())
}

fn what_was_left_of_a_partial_read_reaches_the_reader(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::new()?;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(51);
    client.send_all(&pattern.bytes(0, 1000))?;
    wait_until("it is there", || server.unread() == Ok(1000))?;
    pattern.check(0, &server.recv_exact(400)?)?;
    map.insert(&server)?;
    // The next packet wakes the program.
    client.send_all(&pattern.bytes(1000, 1000))?;
    wait_until("the program runs", || server.unread() != Ok(600))?;
    pattern.check(400, &read(&server, 1600)?)
}

fn bytes_taken_by_a_program_are_not_counted_any_more(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::new()?;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.send_all(&[0; 100])?;
    wait_until("it is there", || server.unread() == Ok(100))?;
    server.recv_exact(40)?;
    map.insert(&server)?;
    client.send_all(&[0; 100])?;
    read(&server, 160)?;
    ensure_eq!(server.unread()?, 0);
    client.send_all(&[0; 10])?;
    read(&server, 10)?;
    ensure_eq!(server.unread()?, 0);
    Ok(())
}

fn a_program_gives_back_the_window(setup: &Setup) -> anyhow::Result<()> {
    const WINDOW: usize = 20_000;
    let map = SockMap::new()?;
    let Pair { client, server } =
        setup.pair_with_windows(Kind::Stream, WINDOW as u64, WINDOW as u64)?;
    map.insert(&server)?;
    let pattern = Pattern::new(52);
    for round in 0..20 {
        let position = (round * WINDOW) as u64;
        client.send_all(&pattern.bytes(position, WINDOW))?;
        pattern.check(position, &read(&server, WINDOW)?)?;
    }
    Ok(())
}

fn a_socket_can_be_closed_in_a_map(setup: &Setup) -> anyhow::Result<()> {
    for round in 0..50 {
        let map = SockMap::new()?;
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        map.insert(&server)?;
        client.send_all(&[1; 5000])?;
        if round % 2 == 0 {
            drop((server, client));
        } else {
            // Not the map yet: what its program has passed on goes with it.
            drop(client);
            ensure_eq!(read(&server, 5000)?.len(), 5000);
        }
    }
    Ok(())
}

/// Two connections: what is sent to the server of the first is redirected to the client of the
/// second.
fn redirected(setup: &Setup, kind: Kind) -> anyhow::Result<(SockMap, Pair, Pair)> {
    let map = SockMap::redirecting(0)?;
    let (from, to) = (setup.pair(kind)?, setup.pair(kind)?);
    map.insert_at(INPUT, &from.server)?;
    map.insert_at(OUTPUT, &to.server)?;
    Ok((map, from, to))
}

fn what_is_redirected_leaves_by_the_other_socket(setup: &Setup) -> anyhow::Result<()> {
    let (_map, from, to) = redirected(setup, Kind::Stream)?;
    let pattern = Pattern::new(53);
    let mut position = 0;
    for len in [1, 100, 4000, 60_000] {
        from.client.send_all(&pattern.bytes(position, len))?;
        pattern.check(position, &to.client.recv_exact(len)?)?;
        position += len as u64;
    }
    ensure_eq!(from.server.unread()?, 0);
    Ok(())
}

fn messages_are_redirected_to_another_socket(setup: &Setup) -> anyhow::Result<()> {
    let (_map, from, to) = redirected(setup, Kind::Seqpacket)?;
    for message in [&b"one"[..], b"another"] {
        from.client.send(message, 0)?;
        ensure_eq!(to.client.recv_vec(100, 0)?, message);
    }
    Ok(())
}

fn what_is_redirected_reaches_the_reader_of_a_unix_socket(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::redirecting(BPF_F_INGRESS)?;
    let from = setup.pair(Kind::Stream)?;
    let (mut reader, _writer) = UnixStream::pair()?;
    reader.set_read_timeout(Some(PATIENCE))?;
    map.insert_at(INPUT, &from.server)?;
    map.insert_at(OUTPUT, &reader)?;
    from.client.send_all(b"over to the other family")?;
    let mut bytes = [0; 24];
    // What arrives just before it would sleep makes it return EAGAIN (`unix_msg_wait_data()`).
    wait_until("something to read", || {
        reader.read_exact(&mut bytes).is_ok()
    })?;
    ensure_eq!(&bytes, b"over to the other family");
    Ok(())
}

fn what_comes_from_a_unix_socket_leaves_by_ours(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::redirecting(0)?;
    let to = setup.pair(Kind::Stream)?;
    let (reader, mut writer) = UnixStream::pair()?;
    map.insert_at(INPUT, &reader)?;
    map.insert_at(OUTPUT, &to.server)?;
    writer.write_all(b"out of the other family")?;
    ensure_eq!(to.client.recv_exact(23)?, b"out of the other family");
    Ok(())
}

fn a_poll_reports_what_a_program_passes_on(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::new()?;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    map.insert(&server)?;
    client.send_all(b"x")?;
    ensure_eq!(server.poll(libc::POLLIN, PATIENCE)?, libc::POLLIN);
    ensure_eq!(server.recv_vec(10, libc::MSG_DONTWAIT)?, b"x");
    Ok(())
}

fn a_socket_that_is_closed_gives_its_place_back(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::new()?;
    let first = setup.pair(Kind::Stream)?;
    map.insert(&first.client)?;
    drop(first);
    let second = setup.pair(Kind::Stream)?;
    map.insert(&second.client)
}

fn a_socket_that_failed_to_connect_cannot_be_inserted(setup: &Setup) -> anyhow::Result<()> {
    let map = SockMap::new()?;
    let nobody = Socket::new(Kind::Stream)?;
    nobody.bind(Address::ANY)?;
    let socket = Socket::new(Kind::Stream)?;
    ensure_eq!(
        socket.connect(setup.address(&nobody)?),
        Err(Errno(libc::ECONNRESET))
    );
    ensure_eq!(map.insert_at(INPUT, &socket), Err(Errno(libc::EOPNOTSUPP)));
    Ok(())
}
