// SPDX-License-Identifier: GPL-2.0
//! The device: packets in and out of the rings, and the connections that it keeps as it should.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::backend::Backend;
use crate::header::{
    Header, CREDIT_UPDATE, END_OF_MESSAGE, HEADER_LEN, HOST, REQUEST, RESPONSE, RST, RW, SEQPACKET,
    STREAM,
};
use crate::peer::Peer;
use crate::ring::{Chain, Ring};

/// How long to sleep where no kick comes: a device that lies about notifications may miss some.
const TICK: Duration = Duration::from_millis(5);

/// Ports of ours, for connections to the guest, begin here.
const FIRST_PORT: u32 = 100_000;

/// Packets for nobody that are kept, to be looked at.
const KEPT_STRAYS: usize = 4096;

/// The driver took its rings back, because the guest gave the device up: all connections are gone.
#[derive(Debug)]
pub struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest has given the device up")
    }
}

impl std::error::Error for Lost {}

/// A packet from the guest.
#[derive(Clone, Debug)]
pub struct Packet {
    pub header: Header,
    pub payload: Vec<u8>,
    /// Descriptors it came in.
    pub pieces: usize,
}

/// Ports of a connection: ours, and the guest's.
pub type Key = (u32, u32);

pub struct Device {
    pub backend: Arc<Backend>,
    pub rx: Ring,
    pub tx: Ring,
    pub cid: u64,
    /// Emulated and debugged kernels need more of it.
    pub patience: Duration,
    epoch: u64,
    next_port: u32,
    /// Receive buffers that the driver has posted, in the order they came.
    pub buffers: VecDeque<Chain>,
    /// Packets are left in the transmit ring.
    pub silent: bool,
    /// Packets are read, and their memory is kept.
    pub keeps: bool,
    kept: Vec<Chain>,
    pub peers: HashMap<Key, Peer>,
    /// Ports at which connections are taken.
    pub services: HashSet<u32>,
    /// Packets for nobody.
    pub strays: VecDeque<Packet>,
    /// How many there were.
    pub stray_count: u64,
}

impl Device {
    pub fn new(backend: Arc<Backend>, cid: u64, patience: Duration) -> Self {
        Self {
            rx: Ring::new(backend.clone(), 0),
            tx: Ring::new(backend.clone(), 1),
            epoch: backend.epoch(),
            backend,
            cid,
            patience,
            next_port: FIRST_PORT,
            buffers: VecDeque::new(),
            silent: false,
            keeps: false,
            kept: Vec::new(),
            peers: HashMap::new(),
            services: HashSet::new(),
            strays: VecDeque::new(),
            stray_count: 0,
        }
    }

    /// Forgets everything after [`Lost`].
    pub fn start_over(&mut self) {
        self.epoch = self.backend.epoch();
        self.buffers.clear();
        self.peers.clear();
        self.strays.clear();
        self.silent = false;
        self.keeps = false;
        self.kept.clear();
    }

    /// Takes in what the guest has posted and sent. Whether there was anything.
    pub fn poll(&mut self) -> anyhow::Result<bool> {
        if self.backend.epoch() != self.epoch {
            return Err(Lost.into());
        }
        ensure!(!self.backend.is_gone(), "QEMU has closed the connection");
        let mut busy = false;
        loop {
            while let Some(chain) = self.rx.pop() {
                ensure!(
                    chain.readable.is_empty() && chain.room() >= HEADER_LEN,
                    "a receive buffer of {} bytes",
                    chain.room()
                );
                self.buffers.push_back(chain);
                busy = true;
            }
            if !self.rx.wait_for_more() {
                break;
            }
        }
        while !self.silent {
            while let Some(chain) = self.tx.pop() {
                let packet = self.take(&chain)?;
                if self.keeps {
                    self.kept.push(chain);
                } else {
                    self.tx.give_back(&chain, 0);
                }
                busy = true;
                self.handle(packet)?;
            }
            self.tx.notify();
            if !self.tx.wait_for_more() {
                break;
            }
        }
        Ok(busy)
    }

    /// Gives back what was kept.
    pub fn give_back(&mut self) {
        self.keeps = false;
        for chain in self.kept.drain(..) {
            self.tx.give_back(&chain, 0);
        }
        self.tx.notify();
    }

    fn take(&self, chain: &Chain) -> anyhow::Result<Packet> {
        let Some(mut bytes) = self.tx.read(chain) else {
            return Err(Lost.into());
        };
        ensure!(chain.writable.is_empty(), "a packet that can be written to");
        let Some(header) = Header::parse(&bytes) else {
            bail!("a packet of {} bytes", bytes.len());
        };
        let payload = bytes.split_off(HEADER_LEN);
        ensure!(
            header.len as usize == payload.len(),
            "{} bytes of payload: {header:?}",
            payload.len()
        );
        // Nobody's reset comes from where the packet went.
        ensure!(
            header.src_cid == self.cid || header.op == RST,
            "a packet from somebody else: {header:?}"
        );
        Ok(Packet {
            header,
            payload,
            pieces: chain.readable.len(),
        })
    }

    fn handle(&mut self, packet: Packet) -> anyhow::Result<()> {
        let header = packet.header;
        let key = (header.dst_port, header.src_port);
        let is_ours = header.dst_cid == HOST;
        if is_ours && header.op == REQUEST && self.services.contains(&header.dst_port) {
            self.peers.insert(key, Peer::new(&header));
            return self.reply(key, RESPONSE);
        }
        match self.peers.get_mut(&key) {
            Some(peer) if is_ours && peer.kind == header.kind => {
                let answer = peer.handle(packet)?;
                answer.map_or(Ok(()), |op| self.reply(key, op))
            }
            _ => {
                self.stray_count += 1;
                if self.strays.len() == KEPT_STRAYS {
                    self.strays.pop_front();
                }
                self.strays.push_back(packet);
                Ok(())
            }
        }
    }

    /// Lets time pass until the guest does something, or for a moment.
    pub fn idle(&mut self) -> anyhow::Result<()> {
        let kicks = self.backend.kicks();
        if !self.poll()? {
            self.backend.wait_for_kick(kicks, TICK);
        }
        Ok(())
    }

    /// Serves the guest until `condition` has something; fails with `what` if that takes too long.
    pub fn wait<T>(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Option<T>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = condition(self) {
                return Ok(value);
            }
            ensure!(
                started.elapsed() < self.patience,
                "not within {:?}: {what}",
                self.patience
            );
            self.idle()?;
        }
    }

    /// Serves the guest for a while, come what may.
    pub fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < time {
            self.idle()?;
        }
        Ok(())
    }

    /// Waits until the driver has taken so many rings back. They are not looked at meanwhile: after a
    /// lie, what was posted may be anybody's memory.
    pub fn wait_for_stop(&mut self, rings: u64) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.backend.epoch() < self.epoch + rings {
            ensure!(
                started.elapsed() < self.patience,
                "not within {:?}: the guest gives the device up",
                self.patience
            );
            ensure!(!self.backend.is_gone(), "QEMU has closed the connection");
            self.backend.wait_for_kick(self.backend.kicks(), TICK);
        }
        Ok(())
    }

    /// The next buffer to write to; waits for one.
    pub fn buffer(&mut self) -> anyhow::Result<Chain> {
        self.wait("a receive buffer", |device| device.buffers.pop_front())
    }

    /// A header from `port` of ours to `guest_port`.
    pub fn header(&self, key: Key, kind: u16, op: u16) -> Header {
        Header {
            src_cid: HOST,
            dst_cid: self.cid,
            src_port: key.0,
            dst_port: key.1,
            kind,
            op,
            ..Header::default()
        }
    }

    /// Sends a packet as it should be, in as many parts as buffers take.
    pub fn send(&mut self, header: Header, payload: &[u8]) -> anyhow::Result<()> {
        let mut rest = payload;
        loop {
            let chain = self.buffer()?;
            let (now, later) = rest.split_at(rest.len().min(chain.room() - HEADER_LEN));
            let flags = if later.is_empty() { header.flags } else { 0 };
            let part = Header {
                len: now.len() as u32,
                flags,
                ..header
            };
            self.fill(&chain, &part, now, (HEADER_LEN + now.len()) as u32)?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.rx.notify();
        Ok(())
    }

    /// Puts a header and payload into a buffer, and says that it holds `written` bytes.
    pub fn fill(
        &mut self,
        chain: &Chain,
        header: &Header,
        payload: &[u8],
        written: u32,
    ) -> anyhow::Result<()> {
        let bytes = [&header.encode(), payload].concat();
        let done = self.rx.write(chain, &bytes);
        let done = done.and_then(|_| self.rx.give_back(chain, written));
        done.ok_or(Lost.into())
    }

    /// Sends a packet without payload on a connection.
    pub fn reply(&mut self, key: Key, op: u16) -> anyhow::Result<()> {
        self.control(key, op, 0)
    }

    pub fn control(&mut self, key: Key, op: u16, flags: u32) -> anyhow::Result<()> {
        let Some(peer) = self.peers.get_mut(&key) else {
            bail!("there is no connection {key:?}");
        };
        let (kind, buf_alloc, fwd_cnt) = peer.advertise();
        let header = Header {
            flags,
            buf_alloc,
            fwd_cnt,
            ..self.header(key, kind, op)
        };
        self.send(header, &[])
    }

    /// Sends bytes on a connection, as the guest has room for them.
    pub fn write(&mut self, key: Key, bytes: &[u8], packet: usize) -> anyhow::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.wait("room in the guest's window", |device| {
                let peer = device.peers.get(&key)?;
                (peer.room() > 0 || peer.is_over).then(|| peer.room())
            })?;
            ensure!(room > 0, "the guest has ended connection {key:?}");
            let (now, later) = rest.split_at(rest.len().min(packet).min(room as usize));
            let flags = if later.is_empty() { END_OF_MESSAGE } else { 0 };
            self.write_packet(key, now, flags)?;
            rest = later;
        }
        Ok(())
    }

    /// Sends one packet of data, whether there is room or not. A stream has no flags.
    pub fn write_packet(&mut self, key: Key, bytes: &[u8], flags: u32) -> anyhow::Result<()> {
        let Some(peer) = self.peers.get_mut(&key) else {
            bail!("there is no connection {key:?}");
        };
        peer.count_sent(bytes.len() as u32);
        let (kind, buf_alloc, fwd_cnt) = peer.advertise();
        let header = Header {
            flags: if kind == SEQPACKET { flags } else { 0 },
            buf_alloc,
            fwd_cnt,
            ..self.header(key, kind, RW)
        };
        self.send(header, bytes)
    }

    /// Takes up to `len` bytes that have arrived, and tells the guest of the room.
    pub fn read(&mut self, key: Key, len: usize) -> anyhow::Result<Vec<u8>> {
        let bytes = self.wait("bytes of the guest", |device| {
            let peer = device.peers.get_mut(&key)?;
            let bytes = peer.take(len);
            (!bytes.is_empty() || peer.is_over || peer.guest_shut & 2 != 0).then_some(bytes)
        })?;
        if !bytes.is_empty() && self.peers.get(&key).is_some_and(Peer::has_news) {
            self.reply(key, CREDIT_UPDATE)?;
        }
        Ok(bytes)
    }

    /// Exactly `len` bytes.
    pub fn read_exact(&mut self, key: Key, len: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let more = self.read(key, len - bytes.len())?;
            ensure!(!more.is_empty(), "{} of {len} bytes came", bytes.len());
            bytes.extend(more);
        }
        Ok(bytes)
    }

    /// A port of ours that was not used before.
    pub fn fresh_port(&mut self) -> u32 {
        self.next_port += 1;
        self.next_port
    }

    /// Connects to a port of the guest, with a window of our own.
    pub fn connect(&mut self, kind: u16, guest_port: u32, window: u32) -> anyhow::Result<Key> {
        let key = (self.fresh_port(), guest_port);
        self.peers.insert(key, Peer::connecting(kind, window));
        self.reply(key, REQUEST)?;
        let accepted = self.wait("an answer to a request", |device| {
            let peer = device.peers.get(&key)?;
            (peer.is_connected || peer.is_over).then_some(peer.is_connected)
        })?;
        ensure!(accepted, "port {guest_port} of the guest refuses");
        Ok(key)
    }

    /// The first packet for nobody that `wanted` wants.
    pub fn stray(
        &mut self,
        what: &str,
        wanted: impl Fn(&Header) -> bool,
    ) -> anyhow::Result<Packet> {
        self.wait(what, |device| {
            let at = device.strays.iter().position(|p| wanted(&p.header))?;
            device.strays.remove(at)
        })
    }

    /// The connection of the guest to `port`; waits for it.
    pub fn accepted(&mut self, port: u32) -> anyhow::Result<Key> {
        self.wait(&format!("a connection to port {port}"), |device| {
            device.peers.keys().find(|key| key.0 == port).copied()
        })
    }

    /// Ends a connection on both sides.
    pub fn reset(&mut self, key: Key) -> anyhow::Result<()> {
        if self.peers.get(&key).is_some_and(|peer| !peer.is_over) {
            self.reply(key, RST)?;
        }
        self.peers.remove(&key);
        Ok(())
    }

    /// Bytes of all receive buffers that the driver has posted.
    pub fn posted(&self) -> usize {
        self.buffers.iter().map(Chain::room).sum()
    }
}

/// The name of a kind in the language of the guest's program.
pub fn kind_name(kind: u16) -> &'static str {
    match kind {
        STREAM => "stream",
        _ => "seqpacket",
    }
}
