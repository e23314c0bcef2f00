// SPDX-License-Identifier: GPL-2.0
//! Orders of the device: a line each, answered by a line, `ok` with a result or the name of an error.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Address, Kind, Socket};

use crate::{driver, echo};

/// The device's port for orders, and those for what is sent back.
const CONTROL_PORT: u32 = 1;
const ECHOES: [(Kind, u32); 2] = [(Kind::Stream, 2), (Kind::Seqpacket, 3)];

/// A device that gives no orders for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(600);

/// How long a device may take to answer a request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts to connect before the driver gives up the device.
const ATTEMPTS: u32 = 2;

/// Takes orders from one life of the device after the other.
pub fn obey() -> anyhow::Result<()> {
    loop {
        let control = connect()?;
        if let Err(error) = serve(&control) {
            eprintln!("rvsock-puppet: {error:#}");
        }
    }
}

/// A connection for orders; if the device does not answer, it is reset.
fn connect() -> anyhow::Result<Socket> {
    let address = Address {
        cid: libc::VMADDR_CID_HOST,
        port: CONTROL_PORT,
    };
    loop {
        for _ in 0..ATTEMPTS {
            let socket = Socket::new(Kind::Stream)?;
            socket.set_connect_timeout(CONNECT_TIMEOUT)?;
            socket.set_receive_timeout(SILENCE)?;
            match socket.connect(address) {
                Ok(()) => return Ok(socket),
                Err(Errno(libc::ENODEV)) => break,
                Err(error) => eprintln!("rvsock-puppet: {address:?}: {error}"),
            }
        }
        driver::rebind()?;
    }
}

/// Carries out orders until the device is gone. All sockets go with it.
fn serve(control: &Socket) -> anyhow::Result<()> {
    let mut sockets = Sockets::default();
    for (kind, port) in ECHOES {
        let socket = echo::connect(kind, libc::VMADDR_CID_HOST, port)?;
        sockets.watch(socket, |socket| {
            let _ = echo::send_back(socket);
        });
    }
    let mut line = Vec::new();
    loop {
        let bytes = control.recv_vec(4096, 0).context("no more orders")?;
        anyhow::ensure!(!bytes.is_empty(), "no more orders");
        for byte in bytes {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let order = String::from_utf8(std::mem::take(&mut line))?;
            let answer = match sockets.carry_out(&order) {
                Ok(result) => format!("ok {result}\n"),
                Err(error) => format!("{error:#}\n"),
            };
            control.send_all(answer.as_bytes()).context("no answer")?;
        }
    }
}

/// The sockets that orders are about, by their numbers.
#[derive(Default)]
struct Sockets {
    open: HashMap<u32, Socket>,
    /// Sockets that a thread works on, to be told when it shall end.
    watched: Vec<Socket>,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for socket in &self.watched {
            let _ = socket.shutdown(libc::SHUT_RDWR);
        }
    }
}

impl Sockets {
    /// Gives a socket to a thread.
    fn watch(&mut self, socket: Socket, work: fn(&Socket)) {
        if let Ok(copy) = socket.duplicate() {
            self.watched.push(copy);
        }
        thread::spawn(move || work(&socket));
    }

    fn carry_out(&mut self, order: &str) -> anyhow::Result<String> {
        let mut words = order.split_whitespace();
        let name = words.next().context("an empty order")?;
        let words: Vec<&str> = words.collect();
        match name {
            "hello" => return Ok(String::new()),
            "memory" => return memory(),
            "close-all" => {
                self.open.clear();
                return Ok(String::new());
            }
            _ => {}
        }
        let (id, rest) = words.split_first().context("which socket?")?;
        let id = id.parse()?;
        match (name, rest) {
            ("socket", ["stream"]) => self.make(id, Kind::Stream),
            ("socket", ["seqpacket"]) => self.make(id, Kind::Seqpacket),
            ("close", []) => {
                self.open.remove(&id);
                Ok(String::new())
            }
            ("accept", [new]) => {
                let accepted = self.find(id)?.accept()?;
                accepted.set_nonblocking()?;
                self.open.insert(new.parse()?, accepted);
                Ok(String::new())
            }
            ("drain", []) => {
                let socket = self.find(id)?.duplicate()?;
                self.watch(socket, drain);
                Ok(String::new())
            }
            _ => use_socket(self.find(id)?, name, rest),
        }
    }

    /// Makes a socket that never waits.
    fn make(&mut self, id: u32, kind: Kind) -> anyhow::Result<String> {
        let socket = Socket::new(kind)?;
        socket.set_nonblocking()?;
        self.open.insert(id, socket);
        Ok(String::new())
    }

    fn find(&self, id: u32) -> anyhow::Result<&Socket> {
        self.open
            .get(&id)
            .with_context(|| format!("no socket {id}"))
    }
}

/// What an order does that concerns one socket.
fn use_socket(socket: &Socket, name: &str, words: &[&str]) -> anyhow::Result<String> {
    let done = String::new;
    match (name, words) {
        ("window", [bytes]) => Ok(socket.set_window(bytes.parse()?).map(|()| done())?),
        ("low-water", [bytes]) => Ok(socket.set_low_water(bytes.parse()?).map(|()| done())?),
        ("linger", [seconds]) => Ok(socket.set_linger(seconds.parse()?).map(|()| done())?),
        ("connect-timeout", [milliseconds]) => {
            let timeout = Duration::from_millis(milliseconds.parse()?);
            Ok(socket.set_connect_timeout(timeout).map(|()| done())?)
        }
        ("connect", [port]) => {
            let cid = libc::VMADDR_CID_HOST;
            let port = port.parse()?;
            Ok(socket.connect(Address { cid, port }).map(|()| done())?)
        }
        ("bind", [port]) => {
            let cid = libc::VMADDR_CID_ANY;
            let port = port.parse()?;
            Ok(socket.bind(Address { cid, port }).map(|()| done())?)
        }
        ("listen", [backlog]) => Ok(socket.listen(backlog.parse()?).map(|()| done())?),
        ("send", [len, seed, flags @ ..]) => send(socket, len.parse()?, seed.parse()?, flags),
        ("trickle", [count]) => trickle(socket, count.parse()?),
        ("recv", [len, flags @ ..]) => receive(socket, len.parse()?, flags),
        ("shutdown", ["read"]) => Ok(socket.shutdown(libc::SHUT_RD).map(|()| done())?),
        ("shutdown", ["write"]) => Ok(socket.shutdown(libc::SHUT_WR).map(|()| done())?),
        ("shutdown", ["both"]) => Ok(socket.shutdown(libc::SHUT_RDWR).map(|()| done())?),
        ("error", []) => Ok(match socket.take_error()? {
            Some(error) => error.to_string(),
            None => done(),
        }),
        ("wait", [event, milliseconds]) => wait(socket, event, milliseconds.parse()?),
        ("unread", []) => Ok(socket.unread()?.to_string()),
        ("unsent", []) => Ok(socket.unsent()?.to_string()),
        ("port", []) => Ok(socket.port()?.to_string()),
        _ => anyhow::bail!("no such order: {name} {words:?}"),
    }
}

/// Sends `len` bytes of a pattern; how many went.
fn send(socket: &Socket, len: usize, seed: u64, flags: &[&str]) -> anyhow::Result<String> {
    let eor = flags.contains(&"eor");
    let bytes = Pattern::new(seed).bytes(0, len);
    let sent = socket.send(&bytes, if eor { libc::MSG_EOR } else { 0 })?;
    Ok(sent.to_string())
}

/// Sends `count` bytes, each by itself.
fn trickle(socket: &Socket, count: usize) -> anyhow::Result<String> {
    for _ in 0..count {
        socket.send(b"!", 0)?;
    }
    // The answer would wake the device, too.
    thread::sleep(Duration::from_millis(200));
    Ok(String::new())
}

/// Receives up to `len` bytes; how many, their checksum, and what `recvmsg()` says of them.
fn receive(socket: &Socket, len: usize, flags: &[&str]) -> anyhow::Result<String> {
    let mut bytes = vec![0; len];
    let peek = if flags.contains(&"peek") {
        libc::MSG_PEEK
    } else {
        0
    };
    let received = socket.recv_message(&mut bytes, peek)?;
    let sum = crc32fast::hash(&bytes[..received.len.min(len)]);
    let names = [(libc::MSG_EOR, "eor"), (libc::MSG_TRUNC, "truncated")];
    let flags: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| received.flags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    Ok(format!("{} {sum:08x} {}", received.len, flags.join(" ")))
}

/// Reads until there is an end, or an error.
fn drain(socket: &Socket) {
    // The socket itself must not wait: it is the one that other orders are about.
    while socket.poll(libc::POLLIN, SILENCE).is_ok() {
        match socket.recv_vec(16 * 1024, 0) {
            Ok(bytes) if !bytes.is_empty() => {}
            Err(Errno(libc::EAGAIN)) => {}
            _ => return,
        }
    }
}

/// Waits for an event; which of all events there are.
fn wait(socket: &Socket, event: &str, milliseconds: u64) -> anyhow::Result<String> {
    let wanted = match event {
        "in" => libc::POLLIN,
        "out" => libc::POLLOUT,
        "end" => libc::POLLRDHUP,
        _ => anyhow::bail!("no such event: {event}"),
    };
    let found = socket.poll(wanted, Duration::from_millis(milliseconds))?;
    let names = [
        (libc::POLLIN, "in"),
        (libc::POLLOUT, "out"),
        (libc::POLLERR, "error"),
        (libc::POLLHUP, "hangup"),
        (libc::POLLRDHUP, "end"),
    ];
    let words: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| found & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    Ok(words.join(" "))
}

/// Memory of the machine that is not free, in KiB. What the kernel could give away at once counts
/// as free.
fn memory() -> anyhow::Result<String> {
    // Adds up the counters of the CPUs first.
    fs::read_to_string("/proc/sys/vm/stat_refresh")?;
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| name.to_owned())?.parse()?)
    };
    let free = field("MemFree:")? + field("Buffers:")? + field("Cached:")?;
    Ok((field("MemTotal:")? - free).to_string())
}
