// SPDX-License-Identifier: GPL-2.0
//! Commands and memory tables that make no sense, and a device that is set up anew.

use std::time::Duration;

use anyhow::Context;
use rand::Rng;

use super::{Villain, HOLE};
use crate::device::{feature, Device, BACKEND_IOTLB_V2, RX, TX};
use crate::iotlb::Message;
use crate::memory::{BASE, PAGE};
use crate::ring::WRITE;

impl Villain {
    pub(super) fn memory_table(&mut self) {
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
    pub(super) fn vanish(&mut self) {
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

    pub(super) fn command(&mut self) {
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

    pub(super) fn translation(&mut self) {
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

    /// Another device, in the place of the one that is closed.
    pub(super) fn reopen(&mut self) -> anyhow::Result<()> {
        self.guest.device = Device::open()?;
        self.guest.device.set_owner()?;
        self.reset()
    }

    /// Sets the device up anew: what was broken works again.
    pub(super) fn reset(&mut self) -> anyhow::Result<()> {
        self.take_stock();
        self.configure()?;
        self.post_buffers();
        self.post_buffers();
        Ok(())
    }

    pub(super) fn configure(&mut self) -> anyhow::Result<()> {
        // As if it had been paused; otherwise it has lost its connections.
        let goes_on = self.random.random_bool(0.97);
        let guest = &mut self.guest;
        let _ = guest.device.set_running(0);
        let stopped_at = |number| guest.device.queue_base(number).unwrap_or(0) as u16;
        let (rx, tx) = (stopped_at(RX), stopped_at(TX));
        guest.rx.clear();
        guest.tx.clear();
        self.next_descriptor = 0;
        guest.device.set_features(guest.options.features)?;
        guest.device.set_memory(&guest.memory)?;
        guest.configure_queue(RX, &guest.rx)?;
        guest.configure_queue(TX, &guest.tx)?;
        if goes_on {
            for (number, ring, index) in [(RX, &mut guest.rx, rx), (TX, &mut guest.tx, tx)] {
                ring.start_at(index);
                guest.device.set_queue_base(number, index.into())?;
            }
        }
        guest.device.set_cid(guest.options.cid.into())?;
        guest.device.set_running(1).context("after a reset")
    }
}
