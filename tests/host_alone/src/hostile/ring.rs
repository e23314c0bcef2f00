// SPDX-License-Identifier: GPL-2.0
//! Descriptors and rings that make no sense.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::Rng;

use super::{Villain, HOLE};
use crate::device::RX;
use crate::memory::{BASE, PAGE};
use crate::ring::{Descriptor, Ring, INDIRECT, NEXT, WRITE};

impl Villain {
    /// Offers a chain of descriptors: address, length and flags but for `NEXT`.
    pub(super) fn chain(&mut self, queue: u32, pieces: &[(u64, u32, u16)]) {
        let pieces: Vec<_> = pieces.iter().filter(|(_, len, _)| *len > 0).collect();
        let size = self.ring(queue).size;
        let head = self.next_descriptor % size;
        for (i, (address, len, flags)) in pieces.iter().enumerate() {
            let number = self.next_descriptor % size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let descriptor = Descriptor {
                address: *address,
                len: *len,
                flags: flags | if i + 1 < pieces.len() { NEXT } else { 0 },
                next: self.next_descriptor % size,
            };
            self.ring(queue).write_descriptor(number, descriptor);
        }
        self.offer(queue, head);
    }

    fn ring(&mut self, queue: u32) -> &mut Ring {
        match queue {
            RX => &mut self.guest.rx,
            _ => &mut self.guest.tx,
        }
    }

    fn offer(&mut self, queue: u32, head: u16) {
        let ring = self.ring(queue);
        ring.offer(head);
        let _ = ring.publish();
    }

    pub(super) fn address(&mut self) -> u64 {
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

    pub(super) fn bad_descriptor(&mut self, queue: u32) {
        let size = self.guest.tx.size;
        let header = self.header(true);
        let first = self.next_descriptor % size;
        for _ in 0..self.random.random_range(1..6) {
            let descriptor = Descriptor {
                address: self.address(),
                len: self.edge(),
                flags: self.one_of(&[0, 0, NEXT, WRITE, WRITE | NEXT, INDIRECT, 7, 0xffff]),
                next: self.random.random_range(0..2 * size),
            };
            let number = self.next_descriptor % size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let table = self.places;
            let ring = self.ring(queue);
            ring.write_descriptor(number, descriptor);
            if descriptor.flags & INDIRECT != 0 {
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
        if self.random.random_bool(0.2) {
            self.offer(queue, first);
        }
        let at = self.place();
        self.guest.memory.write(at, &header.encode());
        let (address, len) = (self.address(), self.edge());
        let write = if queue == RX { WRITE } else { 0 };
        // A header in front now and then, so that more than the ring looks at the rest.
        let pieces = match self.random.random_range(0..5) {
            0 => vec![(at, 44, write), (address, len, write)],
            1 => vec![(at, 44, write), (address, len, WRITE)],
            2 => vec![(self.places, 16 * len.min(70_000), INDIRECT)],
            3 => vec![(address, 44, write)],
            _ => vec![(address, len, write), (at, 44, 0)],
        };
        self.chain(queue, &pieces);
        if self.random.random_bool(0.1) {
            self.offer(queue, len as u16);
        }
    }

    pub(super) fn post_buffers(&mut self) {
        for _ in 0..self.random.random_range(1..12) {
            let at = self.place();
            let len = self.one_of(&[44, 45, 100, 1000, 4096, 4096, 4096, 65_580]);
            self.chain(RX, &[(at, 44, WRITE), (at + 44, len - 44, WRITE)]);
        }
    }

    pub(super) fn jump_index(&mut self) {
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
    pub(super) fn scribble(&mut self, everything: bool) {
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

    /// A ring that is never empty, for a while.
    pub(super) fn busy(&mut self) {
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

    pub(super) fn kick(&mut self) {
        for _ in 0..self.random.random_range(1..20) {
            let _ = self.guest.tx.kick.write(1);
            let _ = self.guest.rx.kick.write(1);
        }
    }
}
