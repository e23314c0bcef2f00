// SPDX-License-Identifier: GPL-2.0
//! Memory is not to be had, or the caller's is not there: who asked for something is told so, nothing
//! is lost that was sent, and nobody waits for what does not come.
//!
//! Needs a kernel that makes failures on demand. A system call fails at each place where it can, one
//! after the other; what happens elsewhere, in the workers of the module, at each call of an
//! allocator that the module has.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context};
use libc::{MSG_DONTWAIT, MSG_EOR, MSG_ZEROCOPY};

use super::credit::fill;
use super::monitor::Capture;
use super::sockmap::{self, SockMap};
use super::splice;
use crate::case::{wait_until, Setup, Skip, A_WHILE, PATIENCE};
use crate::errno::{check, Errno};
use crate::fault::StalledCall;
use crate::pattern::Pattern;
use crate::shortage::{ensure_told, Shortage, Site, Symbols};
use crate::socket::{Address, Kind, Pair, Socket, DEFAULT_WINDOW};
use crate::{cases, ensure_eq};

cases!("shortage":
    a_connect_that_fails_can_be_repeated,
    an_accept_that_fails_can_be_repeated,
    a_send_that_fails_has_sent_nothing,
    a_receive_that_fails_has_lost_nothing
        => "an update of credit that there is no memory for is lost, and the writer waits",
    a_reader_that_makes_room_lets_its_writer_go_on
        => "what there is no memory for is not sent, and nobody told",
    an_option_that_cannot_be_set_can_be_set_again,
    a_shutdown_reaches_the_peer
        => "what there is no memory for is not sent, and nobody told",
    a_close_reaches_the_peer,
    a_module_that_fails_to_load_leaves_nothing,
    no_failure_in_the_module_does_harm_to_others,
);

const KINDS: [Kind; 2] = [Kind::Stream, Kind::Seqpacket];

fn a_connect_that_fails_can_be_repeated(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for kind in KINDS {
        let listener = Socket::listening(kind)?;
        listener.set_receive_timeout(PATIENCE)?;
        let address = setup.address(&listener)?;
        shortage.every(|nth| {
            let client = Socket::new(kind)?;
            client.set_connect_timeout(PATIENCE)?;
            let ((), struck) = shortage.nth_or_again(nth, || client.connect(address))?;
            let pair = patient(client, listener.accept()?)?;
            pair.converse()?;
            Ok(struck)
        })?;
    }
    Ok(())
}

/// What does not happen must not hang the case.
fn patient(client: Socket, server: Socket) -> Result<Pair, Errno> {
    for end in [&client, &server] {
        end.set_receive_timeout(PATIENCE)?;
        end.set_send_timeout(PATIENCE)?;
    }
    Ok(Pair { client, server })
}

fn an_accept_that_fails_can_be_repeated(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for kind in KINDS {
        let listener = Socket::listening(kind)?;
        listener.set_receive_timeout(PATIENCE)?;
        shortage.each(|nth| {
            let client = setup.connected_to(&listener, kind)?;
            let (accepted, struck) = shortage.nth(nth, || listener.accept())?;
            let server = match accepted {
                Ok(server) => server,
                Err(error) => {
                    ensure_told(error)?;
                    listener.accept().context("accepting again")?
                }
            };
            patient(client, server)?.converse()?;
            Ok(struck)
        })?;
    }
    Ok(())
}

/// Ways to send.
#[derive(Clone, Copy, Debug)]
enum Way {
    Copied,
    Record,
    Referred,
    File,
}

impl Way {
    fn send(self, socket: &Socket, file: &File, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Copied => socket.send(bytes, 0),
            Self::Record => socket.send(bytes, MSG_EOR),
            Self::Referred => socket.send(bytes, MSG_ZEROCOPY),
            Self::File => splice::send_file(socket, file, 0, bytes.len()),
        }
    }
}

fn a_send_that_fails_has_sent_nothing(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for kind in KINDS {
        for (way, len) in [
            (Way::Copied, 10),
            (Way::Copied, 5000),
            (Way::Copied, 100_000),
            // Of three packets the second may fail.
            (Way::Copied, 190_000),
            (Way::Record, 70_000),
            (Way::Referred, 60_000),
            (Way::File, 40_000),
        ] {
            // The kernel cuts a file into messages as it likes.
            if kind == Kind::Stream || !matches!(way, Way::File) {
                sends(setup, &shortage, kind, way, len)
                    .with_context(|| format!("{kind:?}, {way:?}, {len} bytes"))?;
            }
        }
    }
    Ok(())
}

fn sends(
    setup: &Setup,
    shortage: &Shortage,
    kind: Kind,
    way: Way,
    len: usize,
) -> anyhow::Result<()> {
    let pattern = Pattern::new(70);
    let bytes = pattern.bytes(0, len);
    let file = splice::file(&pattern, len)?;
    let connect = || -> anyhow::Result<Pair> {
        let pair = setup.pair(kind)?;
        pair.client.set_zerocopy()?;
        Ok(pair)
    };
    let mut pair = connect()?;
    shortage.each(|nth| {
        let (sent, struck) = shortage.nth(nth, || way.send(&pair.client, &file, &bytes))?;
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                ensure_told(error)?;
                0
            }
        };
        if kind == Kind::Seqpacket && sent == 0 && has_ended(&pair.client)? {
            // A part of the message had left: a message has to be whole.
            expect_end(&pair.server, PATIENCE)?;
            pair = connect()?;
            return Ok(struck);
        }
        ensure!(
            kind == Kind::Stream || [0, len].contains(&sent),
            "{sent} bytes of a message"
        );
        pattern.check(0, &pair.server.recv_exact(sent)?)?;
        pair.converse()?;
        Ok(struck)
    })?;
    ensure_eq!(pair.server.unread()?, 0);
    wait_until("everything has left", || pair.client.unsent() == Ok(0))?;
    // Nothing that failed has used up credit.
    if setup.relay.is_none() && kind == Kind::Stream {
        ensure_eq!(fill(&pair.client, 4096)?, DEFAULT_WINDOW);
    }
    Ok(())
}

fn a_receive_that_fails_has_lost_nothing(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    streams(setup, &shortage).context("a stream")?;
    messages(setup, &shortage).context("messages")
}

/// Packets that are kept as they are, and such as are copied together.
const PACKETS: [usize; 10] = [1, 300, 4096, 9000, 20_000, 5, 700, 16_000, 2, 30_000];

fn streams(setup: &Setup, shortage: &Shortage) -> anyhow::Result<()> {
    let total: usize = PACKETS.iter().sum();
    let pattern = Pattern::new(71);
    let pair = setup.pair(Kind::Stream)?;
    let mut position = 0;
    shortage.each(|nth| {
        // What the reader has taken over, and what comes behind it.
        for unread in [total, 2 * total - 1] {
            for len in PACKETS {
                pair.client.send_all(&pattern.bytes(position, len))?;
                position += len as u64;
            }
            wait_until("it is there", || pair.server.unread() == Ok(unread))?;
            if unread == total {
                pattern.check(position - total as u64, &pair.server.recv_exact(1)?)?;
            }
        }
        let left = 2 * total - 1;
        let start = position - left as u64;
        let mut buffer = vec![0; left];
        let (got, struck) = shortage.nth(nth, || pair.server.recv(&mut buffer, 0))?;
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                ensure_told(error)?;
                0
            }
        };
        ensure_eq!(pair.server.unread()?, left - got);
        pattern.check(start, &buffer[..got])?;
        pattern.check(start + got as u64, &pair.server.recv_exact(left - got)?)?;
        Ok(struck)
    })?;
    Ok(())
}

fn messages(setup: &Setup, shortage: &Shortage) -> anyhow::Result<()> {
    let pattern = Pattern::new(72);
    let pair = setup.pair(Kind::Seqpacket)?;
    let send_all = || -> anyhow::Result<()> {
        for len in PACKETS {
            ensure_eq!(pair.client.send(&pattern.bytes(0, len), 0), Ok(len));
        }
        Ok(())
    };
    let total: usize = PACKETS.iter().sum();
    shortage.each(|nth| {
        send_all()?;
        wait_until("it is there", || pair.server.unread() == Ok(total))?;
        // The first one is taken over with all that are there; the rest comes behind it.
        ensure_eq!(pair.server.recv_vec(10, 0)?.len(), PACKETS[0]);
        send_all()?;
        wait_until("all of it is there", || {
            pair.server.unread() == Ok(2 * total - PACKETS[0])
        })?;
        let (got, struck) = shortage.nth(nth, || pair.server.recv_vec(50_000, 0))?;
        let lens = PACKETS[1..].iter().chain(&PACKETS);
        let rest = match got {
            Ok(bytes) => {
                ensure_eq!(bytes, pattern.bytes(0, PACKETS[1]));
                1
            }
            Err(error) => {
                ensure_told(error)?;
                // A message that has met memory that is not there is lost as a whole.
                let is_lost = pair.server.unread()? < 2 * total - PACKETS[0];
                ensure!(
                    !is_lost || error == Errno(libc::EFAULT),
                    "lost with {error}"
                );
                usize::from(is_lost)
            }
        };
        for len in lens.skip(rest) {
            ensure_eq!(pair.server.recv_vec(50_000, 0)?, pattern.bytes(0, *len));
        }
        ensure_eq!(pair.server.unread()?, 0);
        Ok(struck)
    })?;
    Ok(())
}

fn a_reader_that_makes_room_lets_its_writer_go_on(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for kind in KINDS {
        shortage.each(|nth| {
            let pair = setup.pair(kind)?;
            let message = vec![1; DEFAULT_WINDOW];
            pair.client.send_all(&message)?;
            wait_until("it is there", || pair.server.unread() == Ok(DEFAULT_WINDOW))?;
            let mut buffer = vec![0; DEFAULT_WINDOW];
            let (got, struck) = shortage.nth(nth, || pair.server.recv(&mut buffer, 0))?;
            if let Err(error) = got {
                ensure_told(error)?;
            }
            let left = pair.server.unread()?;
            if left > 0 {
                ensure_eq!(pair.server.recv_exact(left)?.len(), left);
            }
            // It waits for more, and the writer has heard of room, or waits for it.
            thread::scope(|scope| {
                let reader = scope.spawn(|| pair.server.recv_exact(1000));
                pair.client.send_all(&[2; 1000]).context("the writer")?;
                ensure_eq!(reader.join().unwrap()?, [2; 1000]);
                Ok(struck)
            })
        })?;
    }
    Ok(())
}

/// Sets an option of a socket, to one value or another.
type SetOption = fn(&Socket, u32) -> Result<(), Errno>;

fn an_option_that_cannot_be_set_can_be_set_again(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for kind in KINDS {
        let pair = setup.pair(kind)?;
        let options: [SetOption; 3] = [
            |socket, nth| socket.set_window([100_000, 200_000][nth as usize % 2]),
            |socket, nth| socket.set_low_water([1, 2][nth as usize % 2]),
            |socket, _| socket.set_connect_timeout(PATIENCE),
        ];
        for set in options {
            shortage.each(|nth| {
                let (result, struck) = shortage.nth(nth, || set(&pair.server, nth))?;
                if let Err(error) = result {
                    ensure_told(error)?;
                    set(&pair.server, nth).context("setting it again")?;
                }
                pair.server.set_low_water(1)?;
                pair.converse()?;
                Ok(struck)
            })?;
        }
        // The peer knows of the window that there is now.
        pair.server.set_window(50_000)?;
        pair.server.set_window(150_000)?;
        let mut all = 0;
        while all < 1_000_000 {
            pair.client.send_all(&[3; 50_000])?;
            all += pair.server.recv_exact(50_000)?.len();
        }
    }
    Ok(())
}

fn has_ended(socket: &Socket) -> Result<bool, Errno> {
    // Not POLLERR, which completions of zero-copy sends set as well.
    Ok(socket.poll(libc::POLLRDHUP, Duration::ZERO)? & libc::POLLRDHUP != 0)
}

/// Asserts that a connection ends, with nothing to read.
fn expect_end(socket: &Socket, patience: Duration) -> anyhow::Result<()> {
    socket.set_receive_timeout(patience)?;
    match socket.recv_vec(100, 0) {
        Err(Errno(libc::ECONNRESET)) => Ok(()),
        end => {
            ensure_eq!(end?, b"");
            Ok(())
        }
    }
}

fn a_shutdown_reaches_the_peer(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    for kind in KINDS {
        shortage.each(|nth| {
            let pair = setup.pair(kind)?;
            pair.converse()?;
            let (result, struck) = shortage.nth(nth, || pair.client.shutdown(libc::SHUT_WR))?;
            if let Err(error) = result {
                ensure_told(error)?;
                pair.client.shutdown(libc::SHUT_WR)?;
            }
            expect_end(&pair.server, PATIENCE / 4)?;
            Ok(struck)
        })?;
    }
    Ok(())
}

/// How long a closed socket waits for an answer (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

fn a_close_reaches_the_peer(setup: &Setup) -> anyhow::Result<()> {
    let shortage = Shortage::new()?;
    let mut left = Vec::new();
    for kind in KINDS {
        shortage.each(|nth| {
            let Pair { client, server } = setup.pair(kind)?;
            let fd = client.into_fd().into_raw_fd();
            // SAFETY: The descriptor is ours, and not used any more.
            let (result, struck) = shortage.nth(nth, || check(unsafe { libc::close(fd) }))?;
            result?;
            left.push(server);
            Ok(struck)
        })?;
    }
    // A peer that cannot be told now is told at the latest when its answer is missed.
    left.iter()
        .try_for_each(|server| expect_end(server, CLOSE_TIMEOUT + PATIENCE))
}

/// Loads a module from a file; `ENOMEM` and the like if it cannot.
fn load(file: &File) -> Result<(), Errno> {
    // SAFETY: The parameters are a string.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) })?;
    Ok(())
}

fn unload(module: &str) -> anyhow::Result<()> {
    let name = std::ffi::CString::new(module)?;
    let mut last = Ok(());
    // Sockets of other cases may be closing.
    wait_until("the module is not in use", || {
        // SAFETY: The name is a string.
        let removed =
            unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
        last = check(removed).map(|_| ());
        !matches!(last, Err(Errno(libc::EAGAIN | libc::EBUSY)))
    })?;
    Ok(last?)
}

/// Binds the module's driver to the device, if it is one of a device: that may have failed when the
/// module was loaded, which does not.
fn bind(module: &str) -> anyhow::Result<()> {
    let driver = driver(module);
    if !has_driver(module) {
        return Ok(());
    }
    for device in std::fs::read_dir("/sys/bus/virtio/devices")? {
        let device = device?;
        let kind = std::fs::read_to_string(device.path().join("device"))?;
        if kind.trim() == VSOCK_DEVICE && !device.path().join("driver").exists() {
            std::fs::write(driver.join("bind"), device.file_name().as_encoded_bytes())
                .context("binding the device")?;
        }
    }
    Ok(())
}

fn driver(module: &str) -> PathBuf {
    Path::new("/sys/bus/virtio/drivers").join(module)
}

fn has_driver(module: &str) -> bool {
    driver(module).exists()
}

/// Of a socket device, in virtio's table of devices.
const VSOCK_DEVICE: &str = "0x0013";

fn a_module_that_fails_to_load_leaves_nothing(setup: &Setup) -> anyhow::Result<()> {
    let path = setup
        .reload
        .as_deref()
        .and_then(|command| command.strip_prefix("insmod "));
    let (Some(module), Some(path)) = (&setup.module, path) else {
        return Err(Skip("needs --module and --reload 'insmod FILE'".to_owned()).into());
    };
    let shortage = Shortage::new()?;
    shortage.within(&Symbols::of(None)?.function("do_one_initcall")?)?;
    let file = File::open(path).context(path.to_owned())?;
    let failures = shortage.each(|nth| {
        unload(module)?;
        let (result, struck) = shortage.nth(nth, || load(&file))?;
        if let Err(error) = result {
            ensure_told(error)?;
            ensure!(
                !Path::new("/sys/module").join(module).exists(),
                "a part of {module} is left"
            );
            load(&file).context("loading it after all")?;
        }
        bind(module)?;
        // Without a guest nobody can be reached by the host's.
        if setup.relay.is_some() || setup.cid == libc::VMADDR_CID_LOCAL {
            setup.pair(Kind::Stream)?.converse()?;
        }
        Ok(struck)
    })?;
    println!("# {failures} failures");
    Ok(())
}

/// Each is something to do with the module, for which it may allocate in places of its own.
type Scenario = fn(&Setup) -> anyhow::Result<()>;

const SCENARIOS: &[Scenario] = &[
    stream_both_ways,
    messages_both_ways,
    referred,
    refused,
    busy,
    captured,
    mapped,
    opened,
];

fn no_failure_in_the_module_does_harm_to_others(setup: &Setup) -> anyhow::Result<()> {
    let (Some(module), Some(list)) = (&setup.module, &setup.sites) else {
        return Err(Skip("needs --module and --sites".to_owned()).into());
    };
    let shortage = Shortage::new()?;
    let mut bystander = setup.pair(Kind::Stream)?;
    for site in Symbols::of(Some(module))?.sites(list)? {
        let what = || site.name.clone();
        let mut struck = false;
        for scenario in SCENARIOS {
            struck = strike(setup, &shortage, &site, *scenario).with_context(what)?;
            bystander
                .converse()
                .context("a bystander")
                .with_context(what)?;
            if struck {
                break;
            }
        }
        if !struck && has_driver(module) {
            drop(bystander);
            struck = strike(setup, &shortage, &site, bound_again).with_context(what)?;
            bind(module)?;
            bystander = setup.pair(Kind::Stream)?;
        }
        println!(
            "# {} {}",
            if struck { "struck" } else { "not struck" },
            site.name
        );
    }
    Ok(())
}

/// Lets the allocation at a site fail once in a scenario; if it comes to that, then always in another
/// go. Whether it came to that.
fn strike(
    setup: &Setup,
    shortage: &Shortage,
    site: &Site,
    scenario: Scenario,
) -> anyhow::Result<bool> {
    for times in [Some(1), None] {
        shortage.strike(site, times)?;
        let result = scenario(setup);
        let struck = times.is_none() || shortage.has_struck()?;
        shortage.relent()?;
        let often = if times.is_none() { "each time" } else { "once" };
        // Packets between machines may wait for memory.
        let may_wait = times.is_none() && setup.relay.is_some();
        tolerate(result, may_wait).context(often)?;
        if !struck {
            return Ok(false);
        }
        // Whoever comes next finds everything in order.
        if scenario as usize != bound_again as usize {
            let next = || setup.pair(Kind::Seqpacket)?.converse();
            next().with_context(|| format!("after {often}"))?;
        }
    }
    Ok(true)
}

/// A connection may fail, or end, but may not hang, unless it `may_wait` for memory that does not come,
/// nor lose bytes without a word.
fn tolerate(result: anyhow::Result<()>, may_wait: bool) -> anyhow::Result<()> {
    let Err(error) = result else {
        return Ok(());
    };
    let tolerable = [
        libc::ENOMEM,
        libc::ENOBUFS,
        libc::ECONNRESET,
        libc::EPIPE,
        libc::ENOTCONN,
        libc::ETIMEDOUT,
    ];
    match error.root_cause().downcast_ref() {
        Some(Errno(number)) if tolerable.contains(number) => Ok(()),
        Some(Errno(libc::EAGAIN)) if may_wait => Ok(()),
        _ => Err(error),
    }
}

/// Far longer than any step of a scenario takes.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(10);

/// A connection, for which nobody waits long.
fn connection(setup: &Setup, kind: Kind) -> anyhow::Result<Pair> {
    let listener = Socket::listening(kind)?;
    listener.set_receive_timeout(SCENARIO_PATIENCE)?;
    let client = Socket::new(kind)?;
    // By default.
    client.set_connect_timeout(Duration::from_secs(2))?;
    if let Err(error) = client.connect(setup.address(&listener)?) {
        drop(client);
        // Nobody is there who could speak to a server that was made for it.
        listener.set_nonblocking()?;
        while let Ok(server) = listener.accept() {
            expect_end(&server, SCENARIO_PATIENCE).context("a server without a client")?;
        }
        return Err(error.into());
    }
    let server = match listener.accept() {
        // A relay can but end a connection that is refused to it.
        Err(Errno(libc::EAGAIN)) if setup.relay.is_some() => {
            expect_end(&client, SCENARIO_PATIENCE).context("a client without a server")?;
            return Err(Errno(libc::ECONNRESET).into());
        }
        result => result?,
    };
    let pair = Pair { client, server };
    for end in [&pair.client, &pair.server] {
        end.set_receive_timeout(SCENARIO_PATIENCE)?;
        end.set_send_timeout(SCENARIO_PATIENCE)?;
    }
    Ok(pair)
}

/// Waits until so many bytes can be read, or the connection has failed.
fn arrive(socket: &Socket, len: usize) -> anyhow::Result<()> {
    let failed = || {
        socket
            .poll(0, Duration::ZERO)
            .is_ok_and(|events| events != 0)
    };
    wait_until("it is there", || socket.unread() == Ok(len) || failed())?;
    if let Some(error) = socket.take_error()? {
        return Err(error.into());
    }
    ensure!(socket.unread()? == len, Errno(libc::ECONNRESET));
    Ok(())
}

/// Bytes of a stream, all of them: it may end early with an error only.
fn receive(setup: &Setup, socket: &Socket, len: usize) -> anyhow::Result<Vec<u8>> {
    let bytes = socket.recv_exact(len)?;
    if bytes.len() < len {
        early_end(setup, socket)
            .with_context(|| format!("after {} of {len} bytes", bytes.len()))?;
    }
    Ok(bytes)
}

/// The next message, likewise.
fn receive_message(setup: &Setup, socket: &Socket) -> anyhow::Result<Vec<u8>> {
    let message = socket.recv_vec(50_000, 0)?;
    if message.is_empty() {
        early_end(setup, socket)?;
    }
    Ok(message)
}

/// The error of a connection that ended early. From a relay it is not to be had: that cannot but end
/// the other connection in order.
fn early_end(setup: &Setup, socket: &Socket) -> anyhow::Result<()> {
    // Said to who asks for it.
    match socket.take_error()? {
        Some(error) => Err(error.into()),
        None if setup.relay.is_some() => Err(Errno(libc::ECONNRESET).into()),
        None => anyhow::bail!("the connection ends early, without an error"),
    }
}

fn stream_both_ways(setup: &Setup) -> anyhow::Result<()> {
    let pair = connection(setup, Kind::Stream)?;
    let pattern = Pattern::new(73);
    for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
        let mut position = 0;
        for round in 0..3 {
            for len in PACKETS {
                from.send_all(&pattern.bytes(position, len))?;
                position += len as u64;
            }
            if round == 0 {
                // What the reader has taken over, and what comes behind it.
                pattern.check(0, &receive(setup, to, 1)?)?;
            }
            to.set_window([DEFAULT_WINDOW as u64, 250_000, 260_000][round])?;
        }
        pattern.check(1, &receive(setup, to, position as usize - 1)?)?;
    }
    pair.client.shutdown(libc::SHUT_WR)?;
    expect_end(&pair.server, SCENARIO_PATIENCE)
}

fn messages_both_ways(setup: &Setup) -> anyhow::Result<()> {
    let pair = connection(setup, Kind::Seqpacket)?;
    let pattern = Pattern::new(74);
    for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
        for round in 0..3 {
            for len in PACKETS {
                ensure_eq!(from.send(&pattern.bytes(0, len), MSG_EOR)?, len);
            }
            if round == 0 {
                ensure_eq!(receive_message(setup, to)?.len(), PACKETS[0]);
            }
        }
        for len in PACKETS.iter().cycle().take(3 * PACKETS.len()).skip(1) {
            let message = receive_message(setup, to)?;
            ensure_eq!(message, pattern.bytes(0, *len));
        }
    }
    drop(pair.client);
    expect_end(&pair.server, SCENARIO_PATIENCE)
}

/// Pages that are not copied by the sender.
fn referred(setup: &Setup) -> anyhow::Result<()> {
    let pair = connection(setup, Kind::Stream)?;
    let pattern = Pattern::new(75);
    pair.client.set_zerocopy()?;
    let bytes = pattern.bytes(0, 60_000);
    for flags in [MSG_ZEROCOPY, 0] {
        let sent = pair.client.send(&bytes, flags)?;
        pattern.check(0, &receive(setup, &pair.server, sent)?)?;
    }
    // More than the window is copied.
    let more = pattern.bytes(0, DEFAULT_WINDOW + 5000);
    let sent = pair.client.send(&more, MSG_ZEROCOPY | MSG_DONTWAIT)?;
    pattern.check(0, &receive(setup, &pair.server, sent)?)?;
    let file = splice::file(&pattern, 100_000)?;
    for offset in [0, 2047] {
        let sent = splice::send_file(&pair.client, &file, offset, 70_000)?;
        pattern.check(offset as u64, &receive(setup, &pair.server, sent)?)?;
    }
    Ok(())
}

/// A port at which nobody listens.
const NOBODY: u32 = 1;

/// A connection that nobody takes.
fn refused(setup: &Setup) -> anyhow::Result<()> {
    let client = Socket::new(Kind::Stream)?;
    client.set_connect_timeout(Duration::from_secs(2))?;
    Ok(client.connect(Address::new(setup.cid, NOBODY))?)
}

/// A peer that ends a connection, and one that writes to it, while its reader waits for memory.
fn busy(setup: &Setup) -> anyhow::Result<()> {
    for closes in [false, true] {
        let pair = connection(setup, Kind::Stream)?;
        pair.client.send_all(&[1; 100])?;
        arrive(&pair.server, 100)?;
        let stalled = StalledCall::reader(&pair.server)?;
        pair.client.send_all(&[2; 20_000])?;
        if closes {
            drop(pair.client);
        } else {
            pair.client.shutdown(libc::SHUT_WR)?;
        }
        thread::sleep(A_WHILE);
        let mut len = stalled.release()?.len();
        len += receive(setup, &pair.server, 20_100 - len)?.len();
        ensure_eq!(len, 20_100);
        expect_end(&pair.server, SCENARIO_PATIENCE)?;
    }
    Ok(())
}

/// A capture may miss packets, and nobody else does.
fn captured(setup: &Setup) -> anyhow::Result<()> {
    let Ok(_capture) = Capture::new() else {
        return Ok(());
    };
    stream_both_ways(setup)
}

/// A program takes what is received: copies, and what is left of a large packet.
fn mapped(setup: &Setup) -> anyhow::Result<()> {
    for (kind, first) in [
        (Kind::Stream, 1000),
        (Kind::Stream, 30_000),
        (Kind::Seqpacket, 1000),
    ] {
        let Ok(map) = SockMap::new() else {
            return Ok(());
        };
        let pair = connection(setup, kind)?;
        let pattern = Pattern::new(76);
        pair.client.send_all(&pattern.bytes(0, first))?;
        arrive(&pair.server, first)?;
        let mut read = 0;
        if kind == Kind::Stream {
            // More than fits the head of an sk_buff.
            read = pair.server.recv_exact(first / 10)?.len();
        }
        map.insert(&pair.server)?;
        let mut position = first;
        for _ in 0..40 {
            pair.client.send_all(&pattern.bytes(position as u64, 100))?;
            position += 100;
        }
        let rest = sockmap::read(&pair.server, position - read);
        if let Some(error) = pair.server.take_error()? {
            return Err(error.into());
        }
        pattern.check(read as u64, &rest?)?;
    }
    Ok(())
}

/// `VHOST_SET_FEATURES`, and features of a device behind an IOMMU: of version 1, and
/// `VIRTIO_F_ACCESS_PLATFORM`.
const SET_FEATURES: libc::c_ulong = 0x4008_af00;
const FEATURES: u64 = (1 << 32) | (1 << 33);

/// `VHOST_VSOCK_SET_GUEST_CID`
const SET_GUEST_CID: libc::c_ulong = 0x4008_af60;

/// Where the host's device is: it is opened, gets an IOTLB, and takes a CID, then another.
fn opened(_: &Setup) -> anyhow::Result<()> {
    let device = match File::open("/dev/vhost-vsock") {
        Ok(device) => device,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Errno::from(error).into()),
    };
    let command = |number: libc::c_ulong, value: u64| {
        // SAFETY: The command reads a number.
        check(unsafe { libc::ioctl(device.as_raw_fd(), number as _, &value) })
    };
    // It says so if there is no memory for an IOTLB.
    let no_iotlb = Errno(libc::EFAULT);
    if let Err(error) = command(SET_FEATURES, FEATURES) {
        let is_known = error == no_iotlb;
        return Err(if is_known { Errno(libc::ENOMEM) } else { error }.into());
    }
    for cid in [9001, 9002] {
        command(SET_GUEST_CID, cid)?;
    }
    Ok(())
}

/// The driver leaves its device, and comes back.
fn bound_again(setup: &Setup) -> anyhow::Result<()> {
    let module = setup.module.as_deref().unwrap_or_default();
    for entry in std::fs::read_dir(driver(module))? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("virtio") {
            std::fs::write(driver(module).join("unbind"), name.as_encoded_bytes())?;
        }
    }
    // What the driver says is in the kernel's log.
    let _ = bind(module);
    Ok(())
}
