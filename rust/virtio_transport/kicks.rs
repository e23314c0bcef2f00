// SPDX-License-Identifier: GPL-2.0

//! When the device is told of packets: at once, or of many small ones together.
//!
//! A kick costs an exit to the host, and what follows on both sides costs more: a device that keeps
//! up with its guest wakes its reader for each packet, and has the reader's credit update to
//! deliver. Nothing is put off for who waits for an answer. Who sends one small packet after the
//! other is not answered, though, and there are more packets in a while.
//!
//! Where many connections send, those who are about to send do so first: the device is told by work,
//! which gets the CPU when they have had theirs.

use crate::{device::DEVICE, link::Guest};
use kernel::{prelude::*, time::Delta};
use rvsock_bindings::{Alarm, Alarmed};
use vsock_proto::Turns;
use vsock_transport::Packet;

/// Bytes of payload that are worth a kick.
const LARGE: u32 = 1024;
/// Small packets in a row, with no answer between them, after which they are taken for a stream.
const STREAM: u32 = 32;
/// Packets of a stream that are worth a kick.
const HELD_MAX: u32 = 96;
/// So few of them are no stream.
const HELD_MIN: u32 = 4;
/// How long the device is not told of a packet, at most.
const HOLD: Delta = Delta::from_millis(2);
/// Large packets that are worth a kick although many send: the device is not to be idle meanwhile.
const LARGE_HELD_MAX: u32 = 10;

/// When the device is told of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Now,
    /// When those who are about to send have done so.
    Soon,
    /// With more like it, or after a while.
    Later,
}

/// Decides about kicks. Behind the lock of the transmitter.
pub(crate) struct Kicks {
    /// Small packets in a row with no answer between them.
    streak: u32,
    /// Packets in the ring that the device was not told of: small ones, and large ones.
    held: u32,
    large_held: u32,
    turns: Turns,
    alarm: Alarm<Tell>,
    is_set: bool,
}

struct Tell;

impl Alarmed for Tell {
    fn alarmed(&self) -> Option<Delta> {
        // Whoever is sending just now may have been interrupted by this.
        let is_told = DEVICE.with(|device| device.try_kick());
        (is_told == Some(false)).then_some(HOLD)
    }
}

impl Kicks {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            streak: 0,
            held: 0,
            large_held: 0,
            turns: Turns::default(),
            alarm: Alarm::new(Tell)?,
            is_set: false,
        })
    }

    /// A packet is sent. If the device is to be told later, there will be an alarm.
    pub(crate) fn add(&mut self, packet: &Packet<Guest>) -> When {
        self.watch(packet);
        if packet.unsent() >= LARGE {
            self.large_held = self.large_held.saturating_add(1);
            return if self.large_held >= LARGE_HELD_MAX || packet.is_awaited() {
                When::Now
            } else {
                self.soon_if_many(When::Now)
            };
        }
        if packet.is_urgent() {
            return When::Now;
        }
        self.streak = self.streak.saturating_add(1);
        if self.streak < STREAM {
            return When::Now;
        }
        self.held = self.held.saturating_add(1);
        if self.held >= HELD_MAX {
            return When::Now;
        }
        let when = self.soon_if_many(When::Later);
        if when == When::Later && !core::mem::replace(&mut self.is_set, true) {
            self.alarm.set(HOLD);
        }
        when
    }

    /// Finds out whether many send payload.
    fn watch(&mut self, packet: &Packet<Guest>) {
        if packet.unsent() == 0 {
            return;
        }
        let header = &packet.header;
        let ports = (header.source.port, header.destination.port);
        self.turns.add(ports, packet.unsent());
    }

    fn soon_if_many(&self, otherwise: When) -> When {
        if self.turns.are_many() {
            When::Soon
        } else {
            otherwise
        }
    }

    /// Payload has come from the device.
    pub(crate) fn answered(&mut self) {
        self.streak = 0;
    }

    /// The device knows everything.
    pub(crate) fn told(&mut self) {
        self.held = 0;
        self.large_held = 0;
    }

    /// The alarm has come.
    pub(crate) fn alarmed(&mut self) {
        self.is_set = false;
        if self.held < HELD_MIN {
            self.streak = 0;
        }
    }

    /// The device is about to be torn down.
    pub(crate) fn stop(&mut self) {
        self.alarm.cancel();
    }
}
