// SPDX-License-Identifier: GPL-2.0
//! A guest that breaks all rules, beside one that keeps them and must not notice.
//!
//! Every step is drawn from a seeded sequence. What the host does meanwhile is up to its scheduler,
//! so a failure may need several runs with its seed.

mod device;
mod neighbour;
mod packet;
mod ring;
mod socket;

use std::collections::VecDeque;
use std::io::Write;
use std::time::Instant;

use anyhow::{ensure, Context};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rvsock_selftests::socket::{Kind, Socket};

use self::neighbour::Neighbour;
use crate::device::{feature, RX, TX};
use crate::guest::{Guest, Options, CID, SHORT};
use crate::memory::PAGE;

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
            self.reached.packets += u64::from(used.wrapping_sub(ring.next_used));
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
                && bytes_read >= 2 * steps
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

    /// Behaves well from now on: the device must not have suffered.
    fn reform(&mut self) -> anyhow::Result<()> {
        self.sockets.clear();
        // Nobody speaks to it who remembers the villain.
        self.guest.options.cid = REFORMED;
        self.configure()?;
        self.guest.post(32)?;
        // To the device it may be a guest that was paused, for which replies wait: as many as keep
        // it from sending if it does not take them.
        while self.guest.receive_within(SHORT)?.is_some() {}
        for _ in 0..10 {
            self.guest.exercise()?;
        }
        Ok(())
    }
}
