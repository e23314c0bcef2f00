// SPDX-License-Identifier: GPL-2.0
//! Rings that are not as they should be.

use std::time::Duration;

use rand::Rng;

use super::Attack;
use crate::device::Lost;
use crate::header::{Header, HEADER_LEN, RW, STREAM};
use crate::ring::Ring;

/// After so long without a packet the driver expects nothing of its transmit ring.
const IDLE: Duration = Duration::from_millis(200);

impl Attack<'_> {
    fn ring(&mut self) -> &Ring {
        if self.rng.random() {
            &self.bench.device.rx
        } else {
            &self.bench.device.tx
        }
    }

    /// Makes sure that the driver gives the device up: a lie may do no harm, another one does.
    fn break_for_good(&mut self, breaks: impl FnOnce(&Ring) -> Option<()>) -> anyhow::Result<()> {
        if self.rng.random() {
            self.bench.device.pass(IDLE)?;
        }
        let ring = self.ring();
        // Two, for an index that was turned back by one.
        let lie = || ring.lie(u32::MAX, 0);
        let broken = breaks(ring).and_then(|()| lie()).and_then(|()| lie());
        ring.interrupt();
        self.is_broken = true;
        broken.ok_or(Lost.into())
    }
}

pub fn confuse_notifications(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (flags, event) = (attack.rng.random(), attack.rng.random());
    attack.ring().confuse_notifications(flags, event);
    Ok(())
}

pub fn interrupt_for_nothing(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    for _ in 0..attack.rng.random_range(1..20) {
        attack.ring().interrupt();
    }
    Ok(())
}

pub fn use_an_id_that_is_none(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let size = u32::from(attack.bench.device.rx.size().unwrap_or(0));
    let id = attack.pick(&[size, size + 1, 0x7fff, 0x8000, 0xffff, 0x1_0000, u32::MAX]);
    let written = attack.edge();
    attack.break_for_good(|ring| ring.lie(id, written))
}

pub fn use_an_id_that_was_not_posted(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let posted: Vec<u16> = attack
        .bench
        .device
        .buffers
        .iter()
        .map(|chain| chain.head)
        .collect();
    let size = attack.bench.device.rx.size().unwrap_or(1);
    let free: Vec<u16> = (0..size).filter(|id| !posted.contains(id)).collect();
    let id = if free.is_empty() {
        size
    } else {
        attack.pick(&free)
    };
    let written = attack.edge();
    attack.break_for_good(|ring| ring.lie(id.into(), written))
}

pub fn use_an_id_twice(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let chain = attack.bench.device.buffer()?;
    let header = Header {
        len: 0,
        ..attack.bench.device.header((9, 9), STREAM, RW)
    };
    let len = HEADER_LEN as u32;
    attack.bench.device.fill(&chain, &header, &[], len)?;
    if attack.rng.random() {
        // Now, or when the driver may have posted the buffer again.
        attack.bench.barrier()?;
    }
    attack.break_for_good(|ring| ring.lie(chain.head.into(), len))
}

pub fn jump_ahead(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let size = attack.bench.device.rx.size().unwrap_or(0);
    let step = attack.pick(&[1, 2, size, size + 1, 0x7fff, 0x8000, 0xffff]);
    attack.break_for_good(|ring| ring.jump(step))
}
