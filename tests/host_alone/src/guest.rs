// SPDX-License-Identifier: GPL-2.0
//! A guest: its monitor and its driver, in this process.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context};
use rvsock_selftests::case::PATIENCE;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::{Address, Kind, Socket};
use vhost::vhost_kern::vhost_binding::vhost_vring_addr;

use crate::device::{feature, Device, BACKEND_IOTLB_V2, RX, TX};
use crate::header::{self, flag, operation, Header, Packet, HOST, MAX_PAYLOAD, SEQPACKET, STREAM};
use crate::iotlb;
use crate::memory::{Memory, BASE};
use crate::ring::{Piece, Ring};

/// What a guest is like.
#[derive(Clone)]
pub struct Options {
    pub cid: u32,
    pub features: u64,
    /// Descriptors of its queues.
    pub sizes: [u16; 2],
    /// Buffers that it posts, and how long they are.
    pub buffers: usize,
    pub buffer_len: u32,
    /// Its window.
    pub window: u32,
    /// Headers and payload have descriptors of their own.
    pub split: bool,
    /// What is between its addresses and those of the rings: an IOMMU, with an IOTLB that knows
    /// everything.
    pub iommu: Option<u64>,
    pub memory: u64,
    /// Its memory is there from the beginning: the host needs none to write to it.
    pub is_resident: bool,
}

/// The CID that guests have who do not care.
pub const CID: u32 = 4711;

/// Ports of guests.
pub const PORT: u32 = 1234;

/// How long to wait for what is there at once, in cases where it is not there.
pub const SHORT: Duration = Duration::from_millis(300);

/// How long an answer may take that other implementations do not give: far longer than it does.
pub const SOON: Duration = Duration::from_secs(4);

impl Default for Options {
    fn default() -> Self {
        Self {
            cid: CID,
            features: feature::VERSION_1 | feature::SEQPACKET,
            sizes: [128, 128],
            buffers: 64,
            buffer_len: 4096,
            window: 256 * 1024,
            split: false,
            iommu: None,
            memory: 16 << 20,
            is_resident: false,
        }
    }
}

pub struct Guest {
    pub device: Device,
    pub memory: Memory,
    pub rx: Ring,
    pub tx: Ring,
    pub options: Options,
    /// Receive buffers that were read and not posted again.
    spare: Vec<u64>,
    /// By the head of its chain: where a receive buffer begins.
    buffers: Vec<Option<u64>>,
    /// Where packets to send can be put.
    slots: Vec<u64>,
    sending: Vec<Option<u64>>,
    inbox: VecDeque<Packet>,
    /// Buffers are posted again when they were read.
    pub reposts: bool,
}

impl Guest {
    /// A guest that runs.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        Self::start_on(Device::open()?, options)
    }

    /// As [`Guest::start`], on a device that nobody owns.
    pub fn start_on(device: Device, options: &Options) -> anyhow::Result<Self> {
        let mut guest = Self::prepare_on(device, options)?;
        guest.post(options.buffers)?;
        guest.device.set_cid(options.cid.into())?;
        guest.device.set_running(1).context("starting a guest")?;
        Ok(guest)
    }

    /// A guest that runs, with so many buffers.
    pub fn with_buffers(buffers: usize) -> anyhow::Result<Self> {
        Self::start(&Options {
            buffers,
            ..Options::default()
        })
    }

    /// A guest that was set up, but for its CID, and does not run.
    pub fn prepare(options: &Options) -> anyhow::Result<Self> {
        Self::prepare_on(Device::open()?, options)
    }

    /// As [`Guest::prepare`], on a device that nobody owns.
    pub fn prepare_on(device: Device, options: &Options) -> anyhow::Result<Self> {
        device.set_owner().context("VHOST_SET_OWNER")?;
        let memory = Memory::new(options.memory)?;
        if options.is_resident {
            memory.touch();
        }
        let offset = options.iommu.unwrap_or(0);
        let [rx, tx] = options.sizes;
        let slots = 64.min(tx);
        let rx = Ring::new(&memory, rx, options.features, offset)?;
        let tx = Ring::new(&memory, tx, options.features, offset)?;
        let guest = Self {
            buffers: vec![None; rx.size.into()],
            sending: vec![None; tx.size.into()],
            slots: (0..slots)
                .map(|_| memory.allocate((header::LEN + MAX_PAYLOAD) as u64, 8))
                .collect(),
            spare: Vec::new(),
            inbox: VecDeque::new(),
            reposts: true,
            options: options.clone(),
            device,
            memory,
            rx,
            tx,
        };
        guest.configure().context("setting up a guest")?;
        Ok(guest)
    }

    fn configure(&self) -> anyhow::Result<()> {
        if self.options.iommu.is_some() {
            self.device.set_backend_features(BACKEND_IOTLB_V2)?;
        }
        self.device.set_features(self.options.features)?;
        self.device.set_memory(&self.memory)?;
        self.fill_iotlb()?;
        for (number, ring) in [(RX, &self.rx), (TX, &self.tx)] {
            self.configure_queue(number, ring)?;
        }
        Ok(())
    }

    /// Tells the device where all the memory is, if there is an IOMMU in between.
    pub fn fill_iotlb(&self) -> anyhow::Result<()> {
        if let Some(offset) = self.options.iommu {
            let (size, host) = (self.memory.size(), self.memory.host_address(BASE));
            let everything = iotlb::Message::update(BASE + offset, size, host);
            self.device.write_message(&everything.encode())?;
        }
        Ok(())
    }

    pub fn configure_queue(&self, number: u32, ring: &Ring) -> anyhow::Result<()> {
        self.device.set_queue_size(number, ring.size.into())?;
        self.device.set_queue_base(number, 0)?;
        self.device
            .set_queue_addresses(&self.addresses(number, ring))?;
        self.device.set_kick(number, Some(&ring.kick))?;
        self.device.set_call(number, Some(&ring.call))?;
        self.device.set_error(number, Some(&ring.error))?;
        Ok(())
    }

    /// Where a ring is, as the device wants to know it.
    pub fn addresses(&self, number: u32, ring: &Ring) -> vhost_vring_addr {
        let place = |address| match self.options.iommu {
            Some(offset) => address + offset,
            None => self.memory.host_address(address),
        };
        vhost_vring_addr {
            index: number,
            desc_user_addr: place(ring.descriptors),
            avail_user_addr: place(ring.available),
            used_user_addr: place(ring.used),
            ..Default::default()
        }
    }

    pub fn kind_of(kind: Kind) -> u16 {
        match kind {
            Kind::Stream => STREAM,
            Kind::Seqpacket => SEQPACKET,
        }
    }

    fn pieces(&self, at: u64, payload: u32, writable: bool) -> Vec<Piece> {
        let piece = |address, len| Piece {
            address,
            len,
            writable,
        };
        let header = header::LEN as u32;
        if self.options.split && payload > 0 {
            return vec![piece(at, header), piece(at + u64::from(header), payload)];
        }
        vec![piece(at, header + payload)]
    }

    /// Posts up to `count` buffers that are not posted, as far as there are descriptors.
    pub fn post(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let at = match self.spare.pop() {
                Some(at) => at,
                None => self.memory.allocate(self.options.buffer_len.into(), 64),
            };
            if !self.post_at(at) {
                self.spare.push(at);
                break;
            }
        }
        self.rx.publish()
    }

    fn post_at(&mut self, at: u64) -> bool {
        let payload = self.options.buffer_len - header::LEN as u32;
        let pieces = self.pieces(at, payload, true);
        match self.rx.add(&pieces) {
            Some(head) => {
                self.buffers[usize::from(head)] = Some(at);
                true
            }
            None => false,
        }
    }

    /// A packet that is there.
    pub fn try_receive(&mut self) -> anyhow::Result<Option<Packet>> {
        if let Some(packet) = self.inbox.pop_front() {
            return Ok(Some(packet));
        }
        let Some((head, written)) = self.rx.take_used() else {
            return Ok(None);
        };
        let at = self
            .buffers
            .get_mut(usize::from(head))
            .and_then(Option::take)
            .with_context(|| format!("the host used buffer {head}, which it did not have"))?;
        let wire = self.memory.read(at, header::LEN);
        let header = Header::parse(&wire);
        ensure!(
            written == header.len + header::LEN as u32 && written <= self.options.buffer_len,
            "the host wrote {written} bytes: {header:?}"
        );
        let payload = self
            .memory
            .read(at + header::LEN as u64, header.len as usize);
        if self.reposts {
            self.post_at(at);
            self.rx.publish()?;
        } else {
            self.spare.push(at);
        }
        Ok(Some(Packet { header, payload }))
    }

    /// The next packet, if one comes in time.
    pub fn receive_within(&mut self, timeout: Duration) -> anyhow::Result<Option<Packet>> {
        if let Some(packet) = self.try_receive()? {
            return Ok(Some(packet));
        }
        if self.rx.wait_used(timeout)? {
            return self.try_receive();
        }
        Ok(None)
    }

    /// The next packet.
    pub fn receive(&mut self) -> anyhow::Result<Packet> {
        self.receive_within(PATIENCE)?
            .context("the host sends nothing")
    }

    /// Puts a packet back, to be received next.
    pub fn put_back(&mut self, packet: Packet) {
        self.inbox.push_front(packet);
    }

    /// Asserts that the host sends nothing.
    pub fn expect_silence(&mut self) -> anyhow::Result<()> {
        match self.receive_within(SHORT)? {
            None => Ok(()),
            Some(packet) => bail!("the host sends {:?}", packet.header),
        }
    }

    /// The next packet, which has to be of this operation; updates of credit are skipped.
    pub fn expect(&mut self, operation: u16) -> anyhow::Result<Packet> {
        loop {
            let packet = self
                .receive()
                .with_context(|| format!("waiting for operation {operation}"))?;
            if packet.header.operation == operation {
                return Ok(packet);
            }
            ensure!(
                packet.header.operation == operation::CREDIT_UPDATE,
                "not operation {operation}: {:?}",
                packet.header
            );
        }
    }

    /// Sends a packet as it is, header and payload.
    pub fn send(&mut self, header: &Header, payload: &[u8]) -> anyhow::Result<()> {
        let at = self.slot()?;
        self.memory.write(at, &header.encode());
        self.memory.write(at + header::LEN as u64, payload);
        let pieces = self.pieces(at, payload.len() as u32, false);
        self.send_pieces(at, &pieces)
    }

    /// Sends what is in `pieces`, which begin at a slot.
    pub fn send_pieces(&mut self, at: u64, pieces: &[Piece]) -> anyhow::Result<()> {
        loop {
            if let Some(head) = self.tx.add(pieces) {
                self.sending[usize::from(head)] = Some(at);
                return self.tx.publish();
            }
            self.reclaim(PATIENCE)?;
        }
    }

    /// A place for a packet; waits until the host is through with one if need be.
    pub fn slot(&mut self) -> anyhow::Result<u64> {
        self.reclaim(Duration::ZERO).ok();
        while self.slots.is_empty() {
            self.reclaim(PATIENCE)?;
        }
        self.slots.pop().context("no slot")
    }

    /// Takes back what the host has read; fails if there is nothing in time.
    fn reclaim(&mut self, timeout: Duration) -> anyhow::Result<()> {
        ensure!(
            self.tx.wait_used(timeout)?,
            "the host does not take packets"
        );
        while let Some((head, written)) = self.tx.take_used() {
            ensure!(written == 0, "the host wrote {written} bytes to a packet");
            let slot = self
                .sending
                .get_mut(usize::from(head))
                .and_then(Option::take)
                .with_context(|| format!("the host used packet {head}, which it did not have"))?;
            self.slots.push(slot);
        }
        Ok(())
    }

    /// Waits until the host has taken everything that was sent.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        while self.sending.iter().any(Option::is_some) {
            self.reclaim(PATIENCE)?;
        }
        Ok(())
    }

    /// Connects to a port of the host.
    pub fn connect(&mut self, kind: Kind, local: u32, port: u32) -> anyhow::Result<Connection> {
        let mut connection = Connection::new(self, kind, local, port);
        let request = connection.header(operation::REQUEST);
        self.send(&request, &[])?;
        loop {
            let packet = self.receive().context("waiting for a response")?;
            // Connections that were closed before may have something to say yet.
            if packet.header.source_port == port {
                connection.handle(&packet)?;
                let operation = packet.header.operation;
                ensure!(operation == operation::RESPONSE, "{:?}", packet.header);
                return Ok(connection);
            }
        }
    }

    /// Takes a connection of the host's.
    pub fn accept(&mut self) -> anyhow::Result<Connection> {
        let header = loop {
            let header = self.receive().context("waiting for a request")?.header;
            match header.operation {
                operation::REQUEST => break header,
                // Connections that were closed before may have something to say yet.
                operation::RESET | operation::CREDIT_UPDATE => {}
                _ => bail!("not a request: {header:?}"),
            }
        };
        let kind = match header.kind {
            STREAM => Kind::Stream,
            _ => Kind::Seqpacket,
        };
        let mut connection =
            Connection::new(self, kind, header.destination_port, header.source_port);
        connection.peer_window = header.buf_alloc;
        let response = connection.header(operation::RESPONSE);
        self.send(&response, &[])?;
        Ok(connection)
    }

    /// Where the host reaches `port`.
    pub fn address(&self, port: u32) -> Address {
        Address {
            cid: self.options.cid,
            port,
        }
    }

    /// A connection that the host has made, both its ends.
    pub fn accept_from(&mut self, kind: Kind) -> anyhow::Result<(Socket, Connection)> {
        let socket = Socket::new(kind)?;
        self.accept_socket(socket)
    }

    /// As [`Guest::accept_from`], with a socket of the caller's.
    pub fn accept_socket(&mut self, socket: Socket) -> anyhow::Result<(Socket, Connection)> {
        prepare(&socket)?;
        let address = self.address(PORT);
        let connecting = thread::spawn(move || socket.connect(address).map(|()| socket));
        let connection = self.accept()?;
        let socket = connecting.join().unwrap()?;
        Ok((socket, connection))
    }

    /// A connection that this has made to the host, both its ends.
    pub fn connect_pair(&mut self, kind: Kind) -> anyhow::Result<(Socket, Connection)> {
        let listener = Socket::listening(kind)?;
        let connection = self.connect(kind, PORT, listener.port()?)?;
        let socket = listener.accept()?;
        prepare(&socket)?;
        Ok((socket, connection))
    }

    /// Sends data, as far as the host's window goes.
    pub fn send_data(&mut self, connection: &mut Connection, bytes: &[u8]) -> anyhow::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            while connection.room() == 0 {
                let packet = self.receive().context("waiting for credit")?;
                connection.handle(&packet)?;
            }
            let len = rest.len().min(connection.room() as usize).min(MAX_PAYLOAD);
            let (now, later) = rest.split_at(len);
            let last = later.is_empty() && connection.kind == Kind::Seqpacket;
            self.send_part(connection, now, if last { flag::END_OF_MESSAGE } else { 0 })?;
            rest = later;
        }
        Ok(())
    }

    /// Sends one packet of data, credit or not.
    pub fn send_part(
        &mut self,
        connection: &mut Connection,
        bytes: &[u8],
        flags: u32,
    ) -> anyhow::Result<()> {
        let header = Header {
            len: bytes.len() as u32,
            flags,
            ..connection.header(operation::READ_WRITE)
        };
        connection.sent = connection.sent.wrapping_add(bytes.len() as u32);
        self.send(&header, bytes)
    }

    /// Sends a packet without payload.
    pub fn send_control(
        &mut self,
        connection: &Connection,
        operation: u16,
        flags: u32,
    ) -> anyhow::Result<()> {
        let header = Header {
            flags,
            ..connection.header(operation)
        };
        self.send(&header, &[])
    }

    /// Receives `len` bytes of a connection, and gives the credit for them back.
    pub fn receive_data(
        &mut self,
        connection: &mut Connection,
        len: usize,
    ) -> anyhow::Result<Vec<u8>> {
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let packet = self
                .receive()
                .with_context(|| format!("{} of {len} bytes", data.len()))?;
            connection.handle(&packet)?;
            data.extend(packet.payload);
            if connection.owes_credit() {
                self.give_credit(connection)?;
            }
        }
        ensure!(data.len() == len, "{} bytes, not {len}", data.len());
        Ok(data)
    }

    /// Tells the host that everything was read.
    pub fn give_credit(&mut self, connection: &mut Connection) -> anyhow::Result<()> {
        connection.told = connection.received;
        self.send_control(connection, operation::CREDIT_UPDATE, 0)
    }

    /// Ends a connection that the host has closed: says so.
    pub fn answer_close(&mut self, connection: &Connection) -> anyhow::Result<()> {
        let packet = self.expect(operation::SHUTDOWN)?;
        ensure!(packet.header.flags == flag::SHUTDOWN_BOTH);
        self.send_control(connection, operation::RESET, 0)?;
        self.flush()
    }

    /// A question and its answer, to see that a connection works.
    pub fn converse(&mut self, socket: &Socket, connection: &mut Connection) -> anyhow::Result<()> {
        socket.send_all(b"question")?;
        ensure!(self.receive_data(connection, 8)? == b"question");
        self.send_data(connection, b"answer")?;
        ensure!(socket.recv_exact(6)? == b"answer");
        Ok(())
    }

    /// Connects, exchanges a few bytes and closes: whether this guest can still do that.
    pub fn exercise(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut work = || {
            let (socket, mut connection) = self.accept_from(Kind::Stream)?;
            self.converse(&socket, &mut connection)?;
            drop(socket);
            self.answer_close(&connection)
        };
        work().with_context(|| format!("a guest that behaves well, after {:?}", started.elapsed()))
    }
}

/// Sockets that were closed before their guest have it wait for their answer, up to 8 s.
impl Drop for Guest {
    fn drop(&mut self) {
        let started = Instant::now();
        while started.elapsed() < SHORT {
            let Ok(Some(Packet { header, .. })) = self.receive_within(SHORT / 10) else {
                return;
            };
            if header.operation == operation::SHUTDOWN {
                let _ = self.send(&header.answer(operation::RESET), &[]);
            }
        }
    }
}

/// What does not happen must not hang the case.
pub fn prepare(socket: &Socket) -> Result<(), Errno> {
    socket.set_connect_timeout(PATIENCE)?;
    socket.set_receive_timeout(PATIENCE)?;
    socket.set_send_timeout(PATIENCE)
}

/// The guest's end of a connection.
pub struct Connection {
    cid: u32,
    pub kind: Kind,
    pub local: u32,
    pub remote: u32,
    pub window: u32,
    /// Bytes sent and received.
    pub sent: u32,
    pub received: u32,
    /// What the host knows of the latter.
    pub told: u32,
    /// What the host has read, and its window.
    pub peer_read: u32,
    pub peer_window: u32,
}

impl Connection {
    pub fn new(guest: &Guest, kind: Kind, local: u32, remote: u32) -> Self {
        Self {
            cid: guest.options.cid,
            kind,
            local,
            remote,
            window: guest.options.window,
            sent: 0,
            received: 0,
            told: 0,
            peer_read: 0,
            peer_window: 0,
        }
    }

    /// A header from this end, without payload.
    pub fn header(&self, operation: u16) -> Header {
        Header {
            source_cid: self.cid.into(),
            destination_cid: HOST,
            source_port: self.local,
            destination_port: self.remote,
            len: 0,
            kind: Guest::kind_of(self.kind),
            operation,
            flags: 0,
            buf_alloc: self.window,
            fwd_cnt: self.told,
        }
    }

    /// Takes in a packet for this end.
    pub fn handle(&mut self, packet: &Packet) -> anyhow::Result<()> {
        let header = &packet.header;
        ensure!(
            header.source_cid == HOST
                && header.destination_cid == u64::from(self.cid)
                && header.source_port == self.remote
                && header.destination_port == self.local
                && header.kind == Guest::kind_of(self.kind),
            "not for port {}, from {}: {header:?}",
            self.local,
            self.remote
        );
        self.peer_window = header.buf_alloc;
        self.peer_read = header.fwd_cnt;
        self.received = self.received.wrapping_add(header.len);
        ensure!(
            self.received.wrapping_sub(self.told) <= self.window,
            "the host exceeds the window of {} bytes",
            self.window
        );
        Ok(())
    }

    /// Bytes that the host has room for.
    pub fn room(&self) -> u32 {
        let underway = self.sent.wrapping_sub(self.peer_read);
        self.peer_window.saturating_sub(underway)
    }

    fn owes_credit(&self) -> bool {
        self.received.wrapping_sub(self.told) > self.window / 2
    }
}
