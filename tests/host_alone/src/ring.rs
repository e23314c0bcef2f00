// SPDX-License-Identifier: GPL-2.0
//! A split virtqueue, from the side of a driver (section 2.7 of the virtio specification).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC, EFD_NONBLOCK};

use crate::device::{feature, poll};
use crate::memory::{Memory, PAGE};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// In `flags` of the used ring: do not kick.
const NO_NOTIFY: u16 = 1;

/// Most descriptors of an indirect table that [`Ring::add`] makes.
const TABLE: u64 = 1024;

/// A piece of memory that a descriptor stands for.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// A descriptor, as it stands in memory.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

pub struct Ring {
    memory: Memory,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// What the device adds to addresses of the guest to find memory.
    offset: u64,
    event_index: bool,
    /// A table for each descriptor, if indirect ones were agreed upon.
    tables: Option<u64>,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    pub next_available: u16,
    /// Buffers that the device was told of.
    published: u16,
    pub next_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    /// Signals that were taken and not told of.
    calls: u64,
}

impl Ring {
    pub fn new(memory: &Memory, size: u16, features: u64, offset: u64) -> anyhow::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("eventfd");
        let count = u64::from(size);
        let indirect = features & feature::INDIRECT != 0;
        Ok(Self {
            memory: memory.clone(),
            size,
            descriptors: memory.allocate(16 * count, PAGE),
            available: memory.allocate(6 + 2 * count, PAGE),
            used: memory.allocate(6 + 8 * count, PAGE),
            offset,
            event_index: features & feature::EVENT_IDX != 0,
            tables: indirect.then(|| memory.allocate(16 * TABLE * count.min(64), PAGE)),
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            next_available: 0,
            published: 0,
            next_used: 0,
            kick: event()?,
            call: event()?,
            error: event()?,
            calls: 0,
        })
    }

    /// As new: empty, and nothing known to the device.
    pub fn clear(&mut self) {
        let count = u64::from(self.size);
        for (place, len) in [
            (self.descriptors, 16 * count),
            (self.available, 6 + 2 * count),
            (self.used, 6 + 8 * count),
        ] {
            self.memory.write(place, &vec![0; len as usize]);
        }
        self.free = (0..self.size).rev().collect();
        self.chains.clear();
        self.start_at(0);
    }

    /// All indices begin here, before the device runs.
    pub fn start_at(&mut self, index: u16) {
        let event = self.used + 4 + 8 * u64::from(self.size);
        self.memory.store(event, index);
        self.next_available = index;
        self.published = index;
        self.next_used = index;
        self.memory.store(self.available + 2, index);
        self.memory.store(self.used + 2, index);
    }

    pub fn write_descriptor_at(&self, table: u64, number: u16, descriptor: Descriptor) {
        let at = table + 16 * u64::from(number);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory.write(at, &bytes);
    }

    pub fn write_descriptor(&self, number: u16, descriptor: Descriptor) {
        self.write_descriptor_at(self.descriptors, number, descriptor);
    }

    /// Makes a buffer of `pieces`, which the device does not know of before [`Ring::publish`].
    /// None if there are not enough descriptors.
    pub fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        let table = self.tables.filter(|_| pieces.len() > 1 && self.size <= 64);
        let chain: Vec<u16> = match table {
            Some(_) => vec![self.free.pop()?],
            None if self.free.len() < pieces.len() => return None,
            None => self.free.split_off(self.free.len() - pieces.len()),
        };
        let head = *chain.first()?;
        match table {
            Some(tables) => {
                let table = tables + 16 * TABLE * u64::from(head);
                let numbers: Vec<u16> = (0..pieces.len() as u16).collect();
                self.link(table, &numbers, pieces);
                self.write_descriptor(
                    head,
                    Descriptor {
                        address: table + self.offset,
                        len: 16 * pieces.len() as u32,
                        flags: INDIRECT,
                        next: 0,
                    },
                );
            }
            None => self.link(self.descriptors, &chain, pieces),
        }
        self.chains.insert(head, chain);
        self.offer(head);
        Some(head)
    }

    fn link(&self, table: u64, numbers: &[u16], pieces: &[Piece]) {
        for (i, (number, piece)) in numbers.iter().zip(pieces).enumerate() {
            let next = numbers.get(i + 1).copied();
            let descriptor = Descriptor {
                address: piece.address + self.offset,
                len: piece.len,
                flags: next.map_or(0, |_| NEXT) | if piece.writable { WRITE } else { 0 },
                next: next.unwrap_or(0),
            };
            self.write_descriptor_at(table, *number, descriptor);
        }
    }

    /// Puts `head` into the next slot of the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.memory.store(self.available + 4 + 2 * slot, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Tells the device of the buffers that were added, and kicks it if it wants that.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        let (old, new) = (self.published, self.next_available);
        self.memory.store(self.available + 2, new);
        self.published = new;
        if self.wants_kick(old, new) {
            self.kick.write(1).context("a kick")?;
        }
        Ok(())
    }

    fn wants_kick(&self, old: u16, new: u16) -> bool {
        if self.event_index {
            let event: u16 = self.memory.load(self.used + 4 + 8 * u64::from(self.size));
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        let flags: u16 = self.memory.load(self.used);
        flags & NO_NOTIFY == 0
    }

    /// A buffer that the device is through with, and how much it says it wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.load(self.used + 2);
        if index == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let at = self.used + 4 + 8 * slot;
        let (head, written): (u32, u32) = (self.memory.get(at), self.memory.get(at + 4));
        self.next_used = self.next_used.wrapping_add(1);
        let chain = self.chains.remove(&(head as u16)).unwrap_or_default();
        self.free.extend(chain.into_iter().rev());
        Some((head as u16, written))
    }

    /// Whether there is a used buffer, or comes one in time.
    pub fn wait_used(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let started = Instant::now();
        loop {
            let event = self.available + 4 + 2 * u64::from(self.size);
            self.memory.store(event, self.next_used);
            let index: u16 = self.memory.load(self.used + 2);
            if index != self.next_used {
                return Ok(true);
            }
            let Some(rest) = timeout.checked_sub(started.elapsed()) else {
                return Ok(false);
            };
            if poll(&self.call, libc::POLLIN, rest)? != 0 {
                self.calls += self.call.read().unwrap_or(0);
            }
        }
    }

    /// Whether the device has reported an error since this was called last.
    pub fn take_error(&self) -> bool {
        self.error.read().is_ok()
    }

    /// Whether the device has signalled since this was called last; how often.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls) + self.call.read().unwrap_or(0)
    }
}
