// SPDX-License-Identifier: GPL-2.0
//! The device and the program in the guest together, as tests need them.

use anyhow::{ensure, Context};
use rvsock_selftests::pattern::Pattern;

use crate::device::{kind_name, Device, Key, Lost};
use crate::header::{CREDIT_REQUEST, CREDIT_UPDATE};
use crate::puppet::{Puppet, ECHO_PORTS};

/// Rings that the device works on, which the driver takes back one by one.
const RINGS: u64 = 2;

/// A port of the kernel's choice.
const ANY_PORT: u32 = u32::MAX;

/// What a socket's window is unless somebody changes it.
pub const WINDOW: u32 = 256 * 1024;

pub struct Bench {
    pub device: Device,
    puppet: Option<Puppet>,
    next_id: u32,
    /// Bytes that were sent on the connections that send them back.
    echoed: [u64; 2],
}

/// A connection: the guest's socket, and ours.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub id: u32,
    pub key: Key,
}

impl Bench {
    pub fn new(device: Device) -> Self {
        Self {
            device,
            puppet: None,
            next_id: 0,
            echoed: [0; 2],
        }
    }

    /// Serves the guest for a moment. Its giving up the device is an end of connections only.
    pub fn idle(&mut self) -> anyhow::Result<()> {
        match self.device.idle() {
            Err(error) if error.is::<Lost>() => {
                self.start_over();
                Ok(())
            }
            result => result,
        }
    }

    /// Begins a new life of the device.
    pub fn start_over(&mut self) {
        self.device.start_over();
        self.puppet = None;
    }

    /// Waits for the program in the guest, unless it is there, with all its connections.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        if let Some(puppet) = &self.puppet {
            let control = self.device.peers.get(&puppet.key);
            if control.is_some_and(|peer| !peer.is_over) {
                return Ok(());
            }
        }
        self.puppet = Some(Puppet::accept(&mut self.device)?);
        self.echoed = [0; 2];
        for port in ECHO_PORTS {
            self.device.accepted(port)?;
        }
        Ok(())
    }

    /// The guest was told that all connections are over: it makes new ones.
    pub fn wait_for_reset(&mut self) -> anyhow::Result<()> {
        self.device.peers.clear();
        self.puppet = None;
        self.attach()
    }

    /// The device is of no use any more: the guest has to notice that and give it up.
    pub fn expect_loss(&mut self) -> anyhow::Result<()> {
        self.device.wait_for_stop(RINGS)?;
        self.start_over();
        self.attach()
    }

    /// Connections that nothing else happens to.
    pub fn kept(&self, key: &Key) -> bool {
        let control = self.puppet.as_ref().map(|puppet| puppet.key);
        ECHO_PORTS.contains(&key.0) || control.as_ref() == Some(key)
    }

    /// Closes all sockets and connections, but those that are always there.
    pub fn tidy(&mut self) -> anyhow::Result<()> {
        self.attach()?;
        self.device.silent = false;
        self.call("close-all")?;
        self.barrier()?;
        let keys: Vec<Key> = self.device.peers.keys().copied().collect();
        for key in keys {
            if !self.kept(&key) {
                self.device.reset(key)?;
            }
        }
        self.device.strays.clear();
        Ok(())
    }

    fn with_puppet<T>(
        &mut self,
        f: impl FnOnce(&mut Puppet, &mut Device) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let puppet = self.puppet.as_mut();
        f(
            puppet.context("the program in the guest is not there")?,
            &mut self.device,
        )
    }

    /// See [`Puppet::order`].
    pub fn order(&mut self, order: &str) -> anyhow::Result<()> {
        self.with_puppet(|puppet, device| puppet.order(device, order))
    }

    /// See [`Puppet::answer`].
    pub fn answer(&mut self) -> anyhow::Result<String> {
        self.with_puppet(Puppet::answer)
    }

    /// See [`Puppet::ask`].
    pub fn ask(&mut self, order: &str) -> anyhow::Result<String> {
        self.with_puppet(|puppet, device| puppet.ask(device, order))
    }

    /// See [`Puppet::call`].
    pub fn call(&mut self, order: &str) -> anyhow::Result<String> {
        self.with_puppet(|puppet, device| puppet.call(device, order))
    }

    /// An order that has to succeed and return a number.
    pub fn number(&mut self, order: &str) -> anyhow::Result<u64> {
        let answer = self.call(order)?;
        answer.parse().with_context(|| format!("{order}: {answer}"))
    }

    /// A number for a socket of the guest.
    pub fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// A socket of the guest.
    pub fn socket(&mut self, kind: u16) -> anyhow::Result<u32> {
        let id = self.id();
        self.call(&format!("socket {id} {}", kind_name(kind)))?;
        Ok(id)
    }

    /// A listener of the guest, and its port.
    pub fn listener(&mut self, kind: u16, backlog: u32) -> anyhow::Result<(u32, u32)> {
        let id = self.socket(kind)?;
        self.call(&format!("bind {id} {ANY_PORT}"))?;
        self.call(&format!("listen {id} {backlog}"))?;
        let port = self.number(&format!("port {id}"))?;
        Ok((id, u32::try_from(port)?))
    }

    /// A socket of the guest that asks for a connection, and the port it asks.
    pub fn asking(&mut self, kind: u16) -> anyhow::Result<(u32, u32)> {
        let id = self.socket(kind)?;
        let port = self.device.fresh_port();
        let answer = self.ask(&format!("connect {id} {port}"))?;
        ensure!(answer == "EINPROGRESS", "connect: {answer}");
        Ok((id, port))
    }

    /// A connection that the guest has asked for.
    pub fn made_by_guest(&mut self, kind: u16) -> anyhow::Result<Pair> {
        let port = self.device.fresh_port() + 1;
        self.device.services.insert(port);
        let (id, port) = self.asking(kind)?;
        let key = self.device.accepted(port)?;
        self.device.services.remove(&port);
        self.expect_event(id, "out")?;
        Ok(Pair { id, key })
    }

    /// A connection that the device has asked for, with a window of `window` bytes on its side.
    pub fn made_by_device(&mut self, kind: u16, window: u32) -> anyhow::Result<Pair> {
        let (listener, port) = self.listener(kind, 1)?;
        let key = self.device.connect(kind, port, window)?;
        self.expect_event(listener, "in")?;
        let id = self.id();
        self.call(&format!("accept {listener} {id}"))?;
        self.call(&format!("close {listener}"))?;
        Ok(Pair { id, key })
    }

    /// Waits for an event of a socket.
    pub fn expect_event(&mut self, id: u32, event: &str) -> anyhow::Result<()> {
        let milliseconds = self.device.patience.as_millis() / 2;
        let found = self.call(&format!("wait {id} {event} {milliseconds}"))?;
        ensure!(
            found.split(' ').any(|word| word == event),
            "socket {id}: {found:?}, not {event}"
        );
        Ok(())
    }

    /// Asserts what `recv()` returns: these bytes, with these flags.
    pub fn expect_bytes(&mut self, id: u32, bytes: &[u8], flags: &str) -> anyhow::Result<()> {
        let answer = self.call(&format!("recv {id} {}", bytes.len().max(1)))?;
        let expected = format!("{} {:08x} {flags}", bytes.len(), crc32fast::hash(bytes));
        ensure!(
            answer == expected.trim(),
            "recv: {answer:?}, not {:?}",
            expected.trim()
        );
        Ok(())
    }

    /// Asserts that an order fails.
    pub fn expect_error(&mut self, order: &str, error: &str) -> anyhow::Result<()> {
        let answer = self.ask(order)?;
        ensure!(answer == error, "{order}: {answer}, not {error}");
        Ok(())
    }

    /// Waits until the guest has dealt with everything that was sent to it.
    pub fn barrier(&mut self) -> anyhow::Result<()> {
        let key = self.with_puppet(|puppet, _| Ok(puppet.key))?;
        let updates = |device: &Device| {
            let peer = device.peers.get(&key)?;
            let count = peer.controls.iter().filter(|op| **op == CREDIT_UPDATE);
            (!peer.is_over).then_some(count.count())
        };
        // Those that the guest sends by itself would be taken for the answer.
        self.device.poll()?;
        let before = updates(&self.device).context("the connection for orders has ended")?;
        self.device.reply(key, CREDIT_REQUEST)?;
        self.device
            .wait("an answer to a credit request", |device| {
                updates(device).is_none_or(|now| now > before).then_some(())
            })?;
        updates(&self.device).context("the connection for orders has ended")?;
        let peer = self.device.peers.get_mut(&key);
        peer.context("no connection for orders")?.controls.clear();
        Ok(())
    }

    /// Sends a message of `len` bytes on each connection that sends them back.
    pub fn send_echoes(&mut self, len: usize) -> anyhow::Result<()> {
        for (port, sent) in ECHO_PORTS.into_iter().zip(self.echoed) {
            let key = self.device.accepted(port)?;
            let bytes = Pattern::new(port.into()).bytes(sent, len);
            self.device.write(key, &bytes, usize::MAX)?;
        }
        Ok(())
    }

    /// Asserts that they come back as they were.
    pub fn expect_echoes(&mut self, len: usize) -> anyhow::Result<()> {
        for (at, port) in ECHO_PORTS.into_iter().enumerate() {
            let key = self.device.accepted(port)?;
            let bytes = self
                .device
                .read_exact(key, len)
                .with_context(|| format!("the connection to port {port}, which is left alone"))?;
            Pattern::new(port.into()).check(self.echoed[at], &bytes)?;
            self.echoed[at] += len as u64;
        }
        Ok(())
    }
}
