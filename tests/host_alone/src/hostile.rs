// SPDX-License-Identifier: GPL-2.0
//! A guest that breaks all rules, beside one that keeps them and must not notice.
//!
//! Every step is drawn from a seeded sequence. What the host does meanwhile is up to its scheduler,
//! so a failure may need several runs with its seed.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::{Address, Kind, Socket};

use crate::device::{feature, Device, BACKEND_IOTLB_V2, RX, TX};
use crate::guest::{Connection, Guest, Options, CID, PORT};
use crate::header::{self, Header, HOST, MAX_PAYLOAD};
use crate::iotlb::Message;
use crate::memory::{BASE, PAGE};
use crate::ring::{Descriptor, INDIRECT, NEXT, WRITE};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the sequence of steps begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many there are
    #[arg(long, default_value_t = 100_000)]
    steps: u64,
    /// Print each step before it is done
    #[arg(long)]
    verbose: bool,
}

/// Steps between two looks at the guest that behaves well, and between two thorough ones.
const LOOK: u64 = 200;
const THOROUGH: u64 = 4000;

/// The CID of the guest that behaves well.
const NEIGHBOUR: u32 = CID + 1;

/// The CID of the villain when it behaves well at last.
const REFORMED: u32 = CID + 2;

/// Steps that are told when something is wrong.
const REMEMBERED: usize = 30;

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { seed, steps, .. } = *arguments;
    println!("# seed {seed}, {steps} steps");
    let started = Instant::now();
    let mut neighbour = Neighbour::new()?;
    let mut villain = Villain::new(seed, neighbour.socket.port()?)?;
    for step in 1..=steps {
        let kind = villain.choose();
        if arguments.verbose {
            println!("# step {step}: {kind:?}");
            let _ = std::io::stdout().flush();
        }
        let result = villain.act(kind).and_then(|()| match step {
            step if step % THOROUGH == 0 => neighbour.look_closely(),
            step if step % LOOK == 0 => neighbour.look(),
            _ => Ok(()),
        });
        result.with_context(|| {
            format!(
                "seed {seed}, step {step}; the last steps: {:?}",
                villain.history
            )
        })?;
        if step % 10_000 == 0 {
            println!("# {step} steps in {:.0?}", started.elapsed());
            let _ = std::io::stdout().flush();
        }
    }
    villain
        .reform()
        .with_context(|| format!("seed {seed}, after {steps} steps"))?;
    neighbour.look_closely()?;
    println!("{}", villain.counts());
    villain.judge(steps)
}

/// The guest that behaves well.
struct Neighbour {
    guest: Guest,
    socket: Socket,
    connection: Connection,
    /// Memory that nobody may write to.
    canary: u64,
}

const CANARY: &[u8] = &[0x5a; 1 << 20];

impl Neighbour {
    fn new() -> anyhow::Result<Self> {
        let mut guest = Guest::start(&Options {
            cid: NEIGHBOUR,
            ..Options::default()
        })?;
        let (socket, connection) = guest.accept_from(Kind::Stream)?;
        let canary = guest.memory.allocate(CANARY.len() as u64, PAGE);
        guest.memory.write(canary, CANARY);
        Ok(Self {
            guest,
            socket,
            connection,
            canary,
        })
    }

    fn look(&mut self) -> anyhow::Result<()> {
        self.guest
            .converse(&self.socket, &mut self.connection)
            .context("the connection of the guest that behaves well")
    }

    fn look_closely(&mut self) -> anyhow::Result<()> {
        self.look()?;
        self.guest.exercise()?;
        let canary = self.guest.memory.read(self.canary, CANARY.len());
        ensure!(
            canary == CANARY,
            "the memory of the other guest has changed"
        );
        ensure!(
            !self.guest.rx.take_error() && !self.guest.tx.take_error(),
            "the host reports errors of the guest that behaves well"
        );
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Packet,
    EdgyPacket,
    BadDescriptor,
    PostBuffers,
    BadBuffer,
    JumpIndex,
    ScribbleUsed,
    ScribbleRing,
    MemoryTable,
    Vanish,
    Command,
    Translation,
    Flood,
    Busy,
    Kick,
    HostSocket,
    Reopen,
    Reset,
}

/// What may happen, and how often of all.
const STEPS: &[(Step, u32)] = &[
    (Step::Packet, 300),
    (Step::EdgyPacket, 200),
    (Step::BadDescriptor, 30),
    (Step::PostBuffers, 120),
    (Step::BadBuffer, 30),
    (Step::JumpIndex, 10),
    (Step::ScribbleUsed, 20),
    (Step::ScribbleRing, 10),
    (Step::MemoryTable, 15),
    (Step::Vanish, 30),
    (Step::Command, 25),
    (Step::Translation, 15),
    (Step::Flood, 4),
    (Step::Busy, 1),
    (Step::Kick, 30),
    (Step::HostSocket, 200),
    (Step::Reopen, 1),
    (Step::Reset, 40),
];

/// Values at which something may change.
const EDGES: &[u32] = &[
    0,
    1,
    2,
    3,
    43,
    44,
    45,
    4095,
    4096,
    32_768,
    65_535,
    65_536,
    65_537,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
];

/// What packets are for, as often as they are: connections shall not end at once.
const OPERATIONS: &[u16] = &[1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 7];

/// Ports of the villain, few enough to meet again.
const PORTS: std::ops::Range<u32> = 1..24;

/// Sockets of the host that deal with the villain.
const SOCKETS: usize = 24;

/// Places for packets and buffers, each as long as the largest packet.
const PLACES: u64 = 32;
const PLACE: u64 = 72 * 1024;

/// Memory that comes and goes.
const HOLE: u64 = 64 * 1024;

struct Villain {
    random: ChaCha8Rng,
    guest: Guest,
    places: u64,
    hole: u64,
    next_place: u64,
    next_descriptor: u16,
    listeners: [Socket; 2],
    sockets: VecDeque<(Kind, Socket)>,
    /// The host's end of the connection to the guest that behaves well.
    neighbour: u32,
    history: VecDeque<Step>,
    done: [u64; STEPS.len()],
    reached: Reached,
}

/// How deep into the host the villain got: if it is refused at the door, nothing is shown.
#[derive(Default, Debug)]
struct Reached {
    connections: u64,
    bytes_read: u64,
    bytes_sent: u64,
    errors: u64,
    packets: u64,
}

impl Villain {
    fn new(seed: u64, neighbour: u32) -> anyhow::Result<Self> {
        let options = Options {
            features: Options::default().features | feature::INDIRECT,
            memory: 32 << 20,
            ..Options::default()
        };
        let guest = Guest::start(&options)?;
        let listeners = [
            Socket::listening(Kind::Stream)?,
            Socket::listening(Kind::Seqpacket)?,
        ];
        for listener in &listeners {
            listener.set_nonblocking()?;
        }
        Ok(Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            places: guest.memory.allocate(PLACES * PLACE, PAGE),
            hole: guest.memory.allocate(HOLE, PAGE),
            next_place: 0,
            next_descriptor: 0,
            listeners,
            sockets: VecDeque::new(),
            neighbour,
            history: VecDeque::new(),
            done: [0; STEPS.len()],
            reached: Reached::default(),
            guest,
        })
    }

    fn choose(&mut self) -> Step {
        let total: u32 = STEPS.iter().map(|(_, weight)| weight).sum();
        let mut rest = self.random.random_range(0..total);
        let mut chosen = 0;
        for (i, (_, weight)) in STEPS.iter().enumerate() {
            if rest < *weight {
                chosen = i;
                break;
            }
            rest -= weight;
        }
        self.done[chosen] += 1;
        let step = STEPS[chosen].0;
        if self.history.len() == REMEMBERED {
            self.history.pop_front();
        }
        self.history.push_back(step);
        step
    }

    fn counts(&self) -> String {
        let counts = STEPS.iter().zip(self.done);
        let words = counts.map(|((step, _), count)| format!("{step:?} {count}"));
        let words = words.collect::<Vec<_>>().join(", ");
        format!("# {words}\n# {:?}", self.reached)
    }

    /// Looks what the host has made of it.
    fn take_stock(&mut self) {
        let Guest { rx, tx, .. } = &self.guest;
        self.reached.errors += u64::from(rx.take_error()) + u64::from(tx.take_error());
        for ring in [rx, tx] {
            let used: u16 = self.guest.memory.load(ring.used + 2);
            self.reached.packets += u64::from(used);
        }
    }

    /// Whether so many steps went as deep as they should.
    fn judge(&self, steps: u64) -> anyhow::Result<()> {
        let Reached {
            connections,
            bytes_read,
            bytes_sent,
            errors,
            packets,
        } = self.reached;
        ensure!(
            connections >= steps / 500
                && bytes_read >= 5 * steps
                && bytes_sent >= 10 * steps
                && errors >= steps / 500
                && packets >= steps / 10,
            "the steps lead nowhere: {:?}",
            self.reached
        );
        Ok(())
    }

    fn act(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Packet => self.packet(false),
            Step::EdgyPacket => self.packet(true),
            Step::BadDescriptor => self.bad_descriptor(TX),
            Step::PostBuffers => self.post_buffers(),
            Step::BadBuffer => self.bad_descriptor(RX),
            Step::JumpIndex => self.jump_index(),
            Step::ScribbleUsed => self.scribble(false),
            Step::ScribbleRing => self.scribble(true),
            Step::MemoryTable => self.memory_table(),
            Step::Vanish => self.vanish(),
            Step::Command => self.command(),
            Step::Translation => self.translation(),
            Step::Flood => self.flood(),
            Step::Busy => self.busy(),
            Step::Kick => self.kick(),
            Step::HostSocket => return self.host_socket(),
            Step::Reopen => return self.reopen(),
            Step::Reset => return self.reset(),
        }
        Ok(())
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.random.random_range(0..values.len())]
    }

    /// A value at an edge, or beside one, or anywhere.
    fn edge(&mut self) -> u32 {
        match self.random.random_range(0..8) {
            0 => self.random.random(),
            _ => self.one_of(EDGES),
        }
    }

    fn place(&mut self) -> u64 {
        self.next_place = (self.next_place + 1) % PLACES;
        self.places + self.next_place * PLACE
    }

    /// A port of the host that somebody may have.
    fn host_port(&mut self) -> u32 {
        let count = self.sockets.len() + self.listeners.len();
        let number = self.random.random_range(0..count + 1);
        let socket = match number.checked_sub(self.listeners.len()) {
            None => self.listeners.get(number),
            Some(number) => self.sockets.get(number).map(|(_, socket)| socket),
        };
        match socket.map(Socket::port) {
            Some(Ok(port)) => port,
            _ => self.edge(),
        }
    }

    fn header(&mut self, edgy: bool) -> Header {
        let mut header = Header {
            source_cid: self.guest.options.cid.into(),
            destination_cid: HOST,
            source_port: self.random.random_range(PORTS),
            destination_port: self.host_port(),
            len: 0,
            kind: self.random.random_range(1..=2),
            operation: self.one_of(OPERATIONS),
            flags: self.random.random_range(0..4),
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        };
        if self.random.random_bool(0.6) {
            self.aim(&mut header);
        }
        if !edgy {
            return header;
        }
        for _ in 0..self.random.random_range(1..4) {
            match self.random.random_range(0..9) {
                0 => header.source_cid = self.wide(),
                1 => header.destination_cid = self.wide(),
                2 => header.source_port = self.edge(),
                3 => header.destination_port = self.edge(),
                4 => header.kind = self.edge() as u16,
                5 => header.operation = self.edge() as u16,
                6 => header.flags = self.edge(),
                7 => header.buf_alloc = self.edge(),
                _ => header.fwd_cnt = self.edge(),
            }
        }
        header
    }

    /// At a connection that there is.
    fn aim(&mut self, header: &mut Header) {
        if self.random.random_bool(0.05) {
            let own = self.guest.options.cid;
            header.source_cid = self.one_of(&[own, NEIGHBOUR]).into();
            header.source_port = PORT;
            header.destination_port = self.neighbour;
            return;
        }
        let number = self.random.random_range(0..SOCKETS);
        let Some((kind, socket)) = self.sockets.get(number % self.sockets.len().max(1)) else {
            return;
        };
        if let (Ok(port), Ok(peer)) = (socket.port(), socket.peer()) {
            header.kind = Guest::kind_of(*kind);
            header.source_port = peer.port;
            header.destination_port = port;
        }
    }

    fn wide(&mut self) -> u64 {
        let low = u64::from(self.edge());
        let own = u64::from(self.guest.options.cid);
        self.one_of(&[
            own,
            HOST,
            low,
            (low << 32) | own,
            (low << 32) | HOST,
            u64::MAX,
        ])
    }

    /// A packet that is well-formed, but for its header.
    fn packet(&mut self, edgy: bool) {
        let mut header = self.header(edgy);
        let len = match self.random.random_range(0..10) {
            0 => self.edge().min(MAX_PAYLOAD as u32),
            1..=3 => self.random.random_range(0..9000),
            _ => self.random.random_range(0..100),
        };
        // C calls its own mistakes what has payload and is no data.
        let len = if header.operation == 5 { len } else { 0 };
        header.len = len;
        if edgy && self.random.random_bool(0.2) {
            header.len = self.edge();
        }
        let at = self.place();
        self.guest.memory.write(at, &header.encode());
        let whole = header::LEN as u32 + len;
        let cut = match self.random.random_range(0..4) {
            0 => header::LEN as u32,
            1 => self.random.random_range(1..whole.max(2)),
            _ => whole,
        };
        self.chain(
            TX,
            &[
                (at, cut, 0),
                (at + u64::from(cut), whole - cut.min(whole), 0),
            ],
        );
    }

    /// Offers a chain of descriptors: address, length and flags but for `NEXT`.
    fn chain(&mut self, queue: u32, pieces: &[(u64, u32, u16)]) {
        let pieces: Vec<_> = pieces.iter().filter(|(_, len, _)| *len > 0).collect();
        let ring = match queue {
            RX => &mut self.guest.rx,
            _ => &mut self.guest.tx,
        };
        let head = self.next_descriptor % ring.size;
        for (i, (address, len, flags)) in pieces.iter().enumerate() {
            let number = self.next_descriptor % ring.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let descriptor = Descriptor {
                address: *address,
                len: *len,
                flags: flags | if i + 1 < pieces.len() { NEXT } else { 0 },
                next: self.next_descriptor % ring.size,
            };
            ring.write_descriptor(number, descriptor);
        }
        ring.offer(head);
        let _ = ring.publish();
    }

    fn address(&mut self) -> u64 {
        let end = BASE + self.guest.memory.size();
        let place = self.place();
        let values = [
            0,
            BASE - 1,
            BASE - 20,
            BASE,
            end - 1,
            end - 44,
            end,
            end + PAGE,
            u64::MAX,
            u64::MAX - 43,
            place,
            place + 1,
            self.hole,
            self.hole + HOLE - 20,
            self.hole - 20,
            self.guest.rx.used,
            self.guest.tx.available,
            self.guest.tx.descriptors,
            // Where this process has it, which is no address of the guest.
            self.guest.memory.host_address(BASE),
        ];
        self.one_of(&values)
    }

    fn bad_descriptor(&mut self, queue: u32) {
        let size = self.guest.tx.size;
        let header = self.header(true);
        for _ in 0..self.random.random_range(1..6) {
            let descriptor = Descriptor {
                address: self.address(),
                len: self.edge(),
                flags: self.one_of(&[0, 0, NEXT, WRITE, WRITE | NEXT, INDIRECT, 7, 0xffff]),
                next: self.random.random_range(0..2 * size),
            };
            let number = self.next_descriptor % size;
            // A header in front now and then, so that more than the ring looks at the rest.
            let ring = match queue {
                RX => &self.guest.rx,
                _ => &self.guest.tx,
            };
            ring.write_descriptor(number, descriptor);
            if descriptor.flags & INDIRECT != 0 {
                let table = self.places;
                ring.write_descriptor_at(
                    table,
                    0,
                    Descriptor {
                        flags: descriptor.flags & !INDIRECT,
                        ..descriptor
                    },
                );
            }
        }
        let at = self.place();
        self.guest.memory.write(at, &header.encode());
        let (address, len) = (self.address(), self.edge());
        let write = if queue == RX { WRITE } else { 0 };
        let pieces = match self.random.random_range(0..5) {
            0 => vec![(at, 44, write), (address, len, write)],
            1 => vec![(at, 44, write), (address, len, WRITE)],
            2 => vec![(self.places, 16 * len.min(70_000), INDIRECT)],
            3 => vec![(address, 44, write)],
            _ => vec![(address, len, write), (at, 44, 0)],
        };
        self.chain(queue, &pieces);
        if self.random.random_bool(0.1) {
            let ring = match queue {
                RX => &mut self.guest.rx,
                _ => &mut self.guest.tx,
            };
            ring.offer(len as u16);
            let _ = ring.publish();
        }
    }

    fn post_buffers(&mut self) {
        for _ in 0..self.random.random_range(1..12) {
            let at = self.place();
            let len = self.one_of(&[44, 45, 100, 1000, 4096, 4096, 4096, 65_580]);
            self.chain(RX, &[(at, 44, WRITE), (at + 44, len - 44, WRITE)]);
        }
    }

    fn jump_index(&mut self) {
        let by = self.edge() as u16;
        let queue = self.random.random_bool(0.5);
        let ring = if queue {
            &mut self.guest.rx
        } else {
            &mut self.guest.tx
        };
        let index = ring.next_available.wrapping_add(by);
        self.guest.memory.store(ring.available + 2, index);
        let _ = ring.kick.write(1);
    }

    /// Writes anything into a used ring, or all over the rings.
    fn scribble(&mut self, everything: bool) {
        let ring = if self.random.random_bool(0.5) {
            &self.guest.rx
        } else {
            &self.guest.tx
        };
        let places: &[(u64, u64)] = if everything {
            &[
                (ring.used, 1030),
                (ring.available, 260),
                (ring.descriptors, 2048),
            ]
        } else {
            &[(ring.used, 1030)]
        };
        for (place, len) in places {
            for _ in 0..8 {
                let at = place + self.random.random_range(0..*len);
                self.guest.memory.write(at, &[self.random.random()]);
            }
        }
        let _ = ring.kick.write(1);
    }

    fn memory_table(&mut self) {
        let size = self.guest.memory.size();
        let host = self.guest.memory.host_address(BASE);
        let half = size / 2;
        let table: &[(u64, u64, u64)] = match self.random.random_range(0..8) {
            0 => &[],
            1 => &[(BASE, half, host)],
            2 => &[(BASE + half, half, host + half), (BASE, half, host)],
            3 => &[(BASE, size, host), (BASE, size, host)],
            4 => &[(0, u64::MAX, 0)],
            5 => &[(BASE, size, u64::MAX - PAGE)],
            6 => &[(BASE, PAGE, host), (BASE + PAGE, size - PAGE, host + PAGE)],
            _ => &[(BASE, size, host)],
        };
        let _ = self.guest.device.set_memory_table(table);
    }

    /// Takes memory away that descriptors point to, or gives it back.
    fn vanish(&mut self) {
        let host = self.guest.memory.host_address(self.hole) as *mut libc::c_void;
        let choice = self.random.random_range(0..4);
        // SAFETY: Nobody in this process uses this part of its memory.
        unsafe {
            match choice {
                0 => libc::mprotect(host, HOLE as usize, libc::PROT_NONE),
                1 => libc::mprotect(host, HOLE as usize, libc::PROT_READ),
                2 => libc::madvise(host, HOLE as usize, libc::MADV_DONTNEED),
                _ => libc::mprotect(host, HOLE as usize, libc::PROT_READ | libc::PROT_WRITE),
            };
        }
        let (hole, len) = (self.hole, self.edge().min(HOLE as u32));
        let at = self.place();
        let header = self.header(false);
        self.guest.memory.write(at, &header.encode());
        self.chain(TX, &[(at, 44, 0), (hole, len, 0)]);
        self.chain(RX, &[(at, 44, WRITE), (hole, len, WRITE)]);
    }

    fn command(&mut self) {
        let queue = self.random.random_range(0..3);
        let value = self.edge();
        let wide = self.wide();
        let address = self.address();
        let features = self.one_of(&[
            self.guest.options.features,
            self.guest.options.features | feature::EVENT_IDX,
            self.guest.options.features | feature::LOG_ALL,
            self.guest.options.features | feature::ACCESS_PLATFORM,
            0,
            u64::MAX,
            wide,
        ]);
        let choice = self.random.random_range(0..14);
        let device = &self.guest.device;
        // Each may fail; whatever it does, the next reset puts things right.
        let _ = match choice {
            0 => device.set_running(0),
            1 => device.set_running(1),
            2 => device.set_cid(wide),
            3 => device.set_features(features),
            4 => device.set_queue_size(queue, value),
            5 => device.set_queue_base(queue, value),
            6 => {
                let mut addresses = self.guest.addresses(queue, &self.guest.tx);
                addresses.used_user_addr = address;
                device.set_queue_addresses(&addresses)
            }
            7 => device.set_kick(queue, None),
            8 => device.set_call(queue, Some(&self.guest.rx.kick)),
            9 => device.set_error(queue, None),
            10 => device.set_owner(),
            11 => device.set_backend_features(wide),
            12 => device.queue_base(queue).map(|_| ()),
            _ => device.reset_owner(),
        };
    }

    fn translation(&mut self) {
        let features = self.guest.options.features | feature::ACCESS_PLATFORM;
        let host = self.guest.memory.host_address(BASE);
        let (address, len) = (self.address(), u64::from(self.edge()));
        let kind = self.random.random_range(0..6);
        let choice = self.random.random_range(0..6);
        let device = &self.guest.device;
        let message = match choice {
            0 => Message::update(BASE, self.guest.memory.size(), host),
            1 => Message::update(host, self.guest.memory.size(), host),
            2 => Message::invalidate(0, u64::MAX),
            3 => Message {
                kind,
                ..Message::update(address, len, host)
            },
            4 => Message::update(address, len, address),
            _ => {
                let _ = device.set_backend_features(BACKEND_IOTLB_V2);
                let _ = device.set_features(features);
                return;
            }
        };
        let _ = device.write_message(&message.encode());
        // Questions pile up otherwise.
        if device.poll(libc::POLLIN, Duration::ZERO).unwrap_or(0) != 0 {
            let _ = Message::read(device);
        }
    }

    /// Packets that each cause a reply, which nobody takes.
    fn flood(&mut self) {
        for _ in 0..200 {
            self.packet(false);
        }
    }

    /// A ring that is never empty, for a while.
    fn busy(&mut self) {
        let stop = AtomicBool::new(false);
        let memory = self.guest.memory.clone();
        let index = self.guest.tx.available + 2;
        let start = self.guest.tx.next_available;
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = start;
                while !stop.load(Ordering::Relaxed) {
                    next = next.wrapping_add(1);
                    memory.store(index, next);
                }
            });
            for _ in 0..20 {
                let _ = self.guest.tx.kick.write(1);
                thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    fn kick(&mut self) {
        for _ in 0..self.random.random_range(1..20) {
            let _ = self.guest.tx.kick.write(1);
            let _ = self.guest.rx.kick.write(1);
        }
    }

    /// What programs of the host do meanwhile.
    fn host_socket(&mut self) -> anyhow::Result<()> {
        let number = self.random.random_range(0..self.sockets.len().max(1));
        let len = self.random.random_range(0..70_000);
        match self.random.random_range(0..10) {
            0..=2 => {
                let (listener, kind) = self.one_of(&[(0, Kind::Stream), (1, Kind::Seqpacket)]);
                if let Ok(socket) = self.listeners[listener].accept() {
                    self.keep(kind, socket)?;
                }
            }
            3 => {
                let kind = self.one_of(&[Kind::Stream, Kind::Seqpacket]);
                let socket = Socket::new(kind)?;
                socket.set_nonblocking()?;
                let address = Address {
                    cid: self.guest.options.cid,
                    port: self.random.random_range(PORTS),
                };
                match socket.connect(address) {
                    Err(Errno(libc::EINPROGRESS)) => self.keep(kind, socket)?,
                    Ok(()) => anyhow::bail!("connected at once"),
                    Err(_) => {}
                }
            }
            4 => {
                self.sockets.remove(number);
            }
            choice => {
                if let Some((_, socket)) = self.sockets.get(number) {
                    // All may fail: the peer is not to be relied on.
                    let count = |result: Result<usize, Errno>| result.unwrap_or(0) as u64;
                    match choice {
                        5 | 6 => {
                            let data = socket.recv_vec(len, 0).map(|data| data.len());
                            self.reached.bytes_read += count(data);
                        }
                        7 => self.reached.bytes_sent += count(socket.send(&vec![0; len], 0)),
                        8 if len % 8 == 0 => drop(socket.shutdown((len % 3) as i32)),
                        8 => drop(socket.set_window(len as u64)),
                        _ => drop(socket.recv_vec(len, libc::MSG_PEEK)),
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, kind: Kind, socket: Socket) -> anyhow::Result<()> {
        socket.set_nonblocking()?;
        self.reached.connections += 1;
        if self.sockets.len() == SOCKETS {
            self.sockets.pop_front();
        }
        self.sockets.push_back((kind, socket));
        Ok(())
    }

    /// Another device, in the place of the one that is closed.
    fn reopen(&mut self) -> anyhow::Result<()> {
        self.guest.device = Device::open()?;
        self.guest.device.set_owner()?;
        self.reset()
    }

    /// Sets the device up anew: what was broken works again.
    fn reset(&mut self) -> anyhow::Result<()> {
        self.take_stock();
        self.configure()?;
        self.post_buffers();
        self.post_buffers();
        Ok(())
    }

    fn configure(&mut self) -> anyhow::Result<()> {
        let guest = &mut self.guest;
        let _ = guest.device.set_running(0);
        guest.rx.clear();
        guest.tx.clear();
        self.next_descriptor = 0;
        let guest = &self.guest;
        guest.device.set_features(guest.options.features)?;
        guest.device.set_memory(&guest.memory)?;
        guest.configure_queue(RX, &guest.rx)?;
        guest.configure_queue(TX, &guest.tx)?;
        guest.device.set_cid(guest.options.cid.into())?;
        guest.device.set_running(1).context("after a reset")
    }

    /// Behaves well from now on: the device must not have suffered.
    fn reform(&mut self) -> anyhow::Result<()> {
        self.sockets.clear();
        // Nobody speaks to it who remembers the villain.
        self.guest.options.cid = REFORMED;
        self.configure()?;
        self.guest.post(32)?;
        for _ in 0..10 {
            self.guest.exercise()?;
        }
        Ok(())
    }
}
