// SPDX-License-Identifier: GPL-2.0
//! Hostility: steps that break the protocol, in an order that a seed determines.
//!
//! After each step the guest still has to answer on the connections that nothing was done to, and
//! what it sends back there has to be what it got. Steps that break a ring cost the device: then
//! the guest has to give it up, and all is well again when the driver has taken it up anew.

mod guest;
mod packets;
mod rings;
mod states;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{ensure, Context};
use rand::seq::IndexedRandom;
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::bench::Bench;
use crate::device::Key;
use crate::header::{RST, SEQPACKET, STREAM};

/// What one step does.
struct Action {
    name: &'static str,
    /// How often, compared to the others.
    weight: u32,
    run: fn(&mut Attack<'_>) -> anyhow::Result<()>,
}

macro_rules! actions {
    ($($module:ident :: $run:ident * $weight:literal),+ $(,)?) => {
        const ACTIONS: &[Action] = &[$(Action {
            name: stringify!($run),
            weight: $weight,
            run: $module::$run,
        }),+];
    };
}

actions!(
    guest::let_the_guest_connect * 24,
    guest::connect_to_the_guest * 24,
    guest::use_a_socket * 40,
    guest::close_a_socket * 8,
    packets::any_operation * 60,
    packets::any_header * 40,
    packets::lie_about_length * 40,
    packets::lie_about_credit * 40,
    packets::shrink_the_window * 16,
    packets::claim_4_gib * 8,
    packets::send_too_much * 4,
    packets::flood_with_bytes * 8,
    packets::flood_with_empty_messages * 8,
    packets::speak_for_others * 40,
    packets::fill_the_backlog * 6,
    packets::reset_and_go_on * 20,
    packets::change_a_header_afterwards * 20,
    packets::give_buffers_back_out_of_order * 10,
    packets::fall_silent * 8,
    rings::confuse_notifications * 10,
    rings::interrupt_for_nothing * 10,
    states::one_operation_in_one_state * 30,
    rings::use_an_id_that_is_none * 1,
    rings::use_an_id_that_was_not_posted * 1,
    rings::use_an_id_twice * 1,
    rings::jump_ahead * 1,
);

/// Sockets of the guest that things are done to.
const VICTIMS: usize = 8;

/// Listeners among them.
const LISTENERS: [u16; 3] = [STREAM, SEQPACKET, STREAM];
const BACKLOG: u32 = 8;

/// Every so many steps, bytes are on their way on the connections that are left alone.
const ECHO_EVERY: u64 = 4;
const ECHO_LEN: usize = 1500;

/// Every so many steps, the guest is asked for its use of memory.
const MEMORY_EVERY: u64 = 500;

/// What the guest may use more than in the beginning, in KiB: eight connections with all windows
/// full in both directions hold 5 MiB, and closed ones keep what they hold for 8 s.
const MEMORY_MAX: u64 = 64 * 1024;
/// The same, when all sockets are gone: caches of the kernel's allocators.
const MEMORY_LEFT: u64 = 8 * 1024;

/// A closed socket waits so long for its peer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(9);

/// A socket that things are done to.
#[derive(Clone, Copy, Debug)]
struct Victim {
    id: u32,
    key: Key,
    kind: u16,
}

/// A listening one.
#[derive(Clone, Copy, Debug)]
struct Listener {
    id: u32,
    port: u32,
    kind: u16,
}

struct Attack<'a> {
    bench: &'a mut Bench,
    rng: ChaCha8Rng,
    victims: Vec<Victim>,
    listeners: Vec<Listener>,
    /// The ring was broken: the guest has to give the device up.
    is_broken: bool,
    /// States that were tried.
    states: usize,
    /// Memory in use in the beginning, in KiB.
    memory: u64,
    /// The most that was in use, above that.
    memory_peak: u64,
    lives: u64,
    counts: BTreeMap<&'static str, u64>,
}

/// Does `steps` steps; what there was to see.
pub fn run(bench: &mut Bench, seed: u64, steps: u64, only: Option<&str>) -> anyhow::Result<String> {
    let actions: Vec<&Action> = ACTIONS
        .iter()
        .filter(|action| only.is_none_or(|only| action.name == only))
        .collect();
    ensure!(!actions.is_empty(), "there is no such action");
    bench.tidy()?;
    let memory = bench.number("memory")?;
    let mut attack = Attack {
        bench,
        rng: ChaCha8Rng::seed_from_u64(seed),
        victims: Vec::new(),
        listeners: Vec::new(),
        is_broken: false,
        states: 0,
        memory,
        memory_peak: 0,
        lives: 1,
        counts: BTreeMap::new(),
    };
    attack.set_up()?;
    for step in 0..steps {
        // Each step has its own numbers, however many the ones before it took.
        attack.rng = ChaCha8Rng::seed_from_u64(seed);
        attack.rng.set_stream(step + 1);
        let action = actions
            .choose_weighted(&mut attack.rng, |action| action.weight)
            .context("no action")?;
        let result = attack.step(step, action);
        result.with_context(|| format!("seed {seed}, step {step}, {}", action.name))?;
    }
    attack.finish()
}

impl Attack<'_> {
    /// Everything that each life of the device begins with.
    fn set_up(&mut self) -> anyhow::Result<()> {
        self.bench.attach()?;
        self.victims.clear();
        self.listeners.clear();
        for kind in LISTENERS {
            let (id, port) = self.bench.listener(kind, BACKLOG)?;
            self.listeners.push(Listener { id, port, kind });
        }
        Ok(())
    }

    fn step(&mut self, step: u64, action: &Action) -> anyhow::Result<()> {
        *self.counts.entry(action.name).or_default() += 1;
        let echoes = step % ECHO_EVERY == 0;
        if echoes {
            self.bench.send_echoes(ECHO_LEN)?;
        }
        (action.run)(self)?;
        if self.is_broken {
            return self.begin_another_life();
        }
        self.bench.barrier()?;
        if echoes {
            self.bench.expect_echoes(ECHO_LEN)?;
        }
        while self.victims.len() > VICTIMS {
            let victim = self.victims.remove(0);
            self.give_up(victim)?;
        }
        if step % MEMORY_EVERY == 0 {
            self.check_memory(MEMORY_MAX)?;
        }
        Ok(())
    }

    fn begin_another_life(&mut self) -> anyhow::Result<()> {
        self.bench.expect_loss()?;
        self.is_broken = false;
        self.lives += 1;
        self.set_up()
    }

    /// Closes a socket; its peer mostly agrees.
    fn give_up(&mut self, victim: Victim) -> anyhow::Result<()> {
        self.bench.ask(&format!("close {}", victim.id))?;
        if self.rng.random_bool(0.75) {
            let header = self.bench.device.header(victim.key, victim.kind, RST);
            self.bench.device.send(header, &[])?;
        }
        Ok(())
    }

    fn check_memory(&mut self, most: u64) -> anyhow::Result<()> {
        let now = self.bench.number("memory")?;
        let more = now.saturating_sub(self.memory);
        self.memory_peak = self.memory_peak.max(more);
        ensure!(more <= most, "the guest uses {more} KiB more than before");
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<String> {
        self.bench.tidy()?;
        self.bench.device.pass(CLOSE_TIMEOUT)?;
        self.bench.barrier()?;
        let peak = self.memory_peak;
        self.check_memory(MEMORY_LEFT)
            .context("after all sockets were closed")?;
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        Ok(format!(
            "{} lives, at most {peak} KiB more memory; {}",
            self.lives,
            counts.join(", ")
        ))
    }

    /// One of the sockets that things are done to.
    fn victim(&mut self) -> Option<Victim> {
        self.victims.choose(&mut self.rng).copied()
    }

    fn kind(&mut self) -> u16 {
        if self.rng.random() {
            STREAM
        } else {
            SEQPACKET
        }
    }

    fn listener(&mut self) -> anyhow::Result<Listener> {
        let listener = self.listeners.choose(&mut self.rng).copied();
        listener.context("there is no listener")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    /// A number at some edge, or any.
    fn edge(&mut self) -> u32 {
        const EDGES: [u32; 24] = [
            0,
            1,
            2,
            43,
            44,
            45,
            127,
            128,
            129,
            3731,
            3732,
            4095,
            4096,
            4097,
            0xffff,
            0x1_0000,
            0x1_0001,
            0x4_0000,
            0x4_0001,
            0x7fff_ffff,
            0x8000_0000,
            0x8000_0001,
            0xffff_fffe,
            0xffff_ffff,
        ];
        match self.rng.random_range(0..EDGES.len() + 4) {
            at if at < EDGES.len() => EDGES[at],
            _ => self.rng.random(),
        }
    }
}
