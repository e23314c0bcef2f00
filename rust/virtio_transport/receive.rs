// SPDX-License-Identifier: GPL-2.0

//! From the receive ring to the engine, and the supply of buffers for it.

use crate::{device::Device, link::Guest};
use af_vsock::{deliver_tap, Net, TapPayload};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    time::{delay::fsleep, Delta},
};
use rvsock_bindings::Run;
use virtio::{Filled, InQueue, Reset};
use vsock_proto::{Header, Operation, HEADER_LEN};
use vsock_transport::{receive, Payload, Received};

/// Bytes of a buffer for small packets, and of all that are posted: what the C driver posts.
const SMALL: Supply = Supply {
    run: PAGE_SIZE,
    total: 512 * 1024,
};
/// The same for bulk: a packet of 64 KiB takes two buffers, and a run of this size is to be had
/// without effort (`PAGE_ALLOC_COSTLY_ORDER`).
const LARGE: Supply = Supply {
    run: 32 * 1024,
    total: 2 * 1024 * 1024,
};
/// So many buffers filled to the brim in a row call for large ones. They do not if packets are as
/// large as a small buffer by chance: each try that shows it makes the next one later.
const FULL_IN_A_ROW: u32 = 8;
const FULL_IN_A_ROW_MAX: u32 = 1 << 16;
/// So many packets in a row that would have fit a small buffer make large ones a waste.
const SMALL_IN_A_ROW: u32 = 256;
/// With fewer buffers than these nothing may come in that makes us look for more.
const FEWEST: usize = 8;
/// How long to wait for memory, in microseconds.
const PAUSE: i64 = 100_000;
/// Packets taken off the ring before others get the CPU.
const BUDGET: usize = 256;

/// How buffers are supplied.
#[derive(Clone, Copy)]
struct Supply {
    /// Bytes of a buffer.
    run: usize,
    /// Bytes of all buffers.
    total: usize,
}

/// The receive ring.
pub(crate) struct Receiver {
    ring: InQueue<HEADER_LEN>,
    supply: Supply,
    /// Bytes of the buffers that are posted.
    posted: usize,
    /// Bytes of those that the device was not told of.
    unannounced: usize,
    full_in_a_row: u32,
    small_in_a_row: u32,
    /// What `full_in_a_row` has to reach.
    patience: u32,
    /// Payload has come in, and the transmitter was not told.
    is_answer: bool,
}

impl Receiver {
    pub(crate) fn new(ring: InQueue<HEADER_LEN>) -> Self {
        Self {
            ring,
            supply: SMALL,
            posted: 0,
            unannounced: 0,
            full_in_a_row: 0,
            small_in_a_row: 0,
            patience: FULL_IN_A_ROW,
            is_answer: false,
        }
    }

    /// Posts buffers until there are enough of them, and tells the device. May sleep.
    ///
    /// False if there is no memory for as many as it takes to go on.
    #[must_use]
    pub(crate) fn refill(&mut self) -> bool {
        let mut had_memory = true;
        while had_memory && self.posted < self.supply.total {
            let Ok(run) = self.allocate() else {
                had_memory = false;
                continue;
            };
            if !self.post(run) {
                break;
            }
        }
        self.announce();
        had_memory || self.ring.posted() >= FEWEST
    }

    /// A buffer of the size in use, or of a page if there is none.
    fn allocate(&self) -> Result<Run> {
        Run::new(self.supply.run, GFP_KERNEL)
            .or_else(|_| Run::new(PAGE_SIZE, GFP_KERNEL))
            .map_err(Error::from)
    }

    fn post(&mut self, run: Run) -> bool {
        let capacity = run.capacity();
        let posted = self.ring.post(run).is_ok();
        if posted {
            self.posted = self.posted.saturating_add(capacity);
            self.unannounced = self.unannounced.saturating_add(capacity);
        }
        posted
    }

    /// Posts a buffer again, unless another size is in use by now.
    fn recycle(&mut self, run: Run) {
        if run.capacity() == self.supply.run && self.posted < self.supply.total {
            self.post(run);
        }
    }

    /// Tells the device of buffers that were posted, once it knows of no more than half of them: a
    /// kick costs an exit to the host. A device that waits for buffers has used up all it knows of.
    fn announce(&mut self) {
        if self.unannounced < self.posted / 2 {
            return;
        }
        self.unannounced = 0;
        if self.ring.queue().needs_kick() {
            self.ring.queue().kick();
        }
    }

    /// Takes the next packet that makes sense.
    fn next(&mut self) -> Option<(Header, Run)> {
        loop {
            let filled = self.ring.take_used()?;
            self.posted = self.posted.saturating_sub(filled.run.capacity());
            if let Some(packet) = check(filled) {
                self.adapt(&packet.1);
                self.is_answer |= packet.0.operation == Operation::ReadWrite;
                return Some(packet);
            }
        }
    }

    /// Chooses the size of buffers by what comes in.
    fn adapt(&mut self, run: &Run) {
        let count = |counter: u32, up: bool| if up { counter.saturating_add(1) } else { 0 };
        let is_large = run.len() > SMALL.run;
        // A small buffer that is full says nothing of what the packet would fit.
        let is_small = !is_large && run.len() < run.capacity();
        self.full_in_a_row = count(self.full_in_a_row, run.len() == run.capacity());
        self.small_in_a_row = count(self.small_in_a_row, is_small);
        if is_large {
            self.patience = FULL_IN_A_ROW;
        }
        if self.full_in_a_row >= self.patience {
            self.supply = LARGE;
            self.patience = self.patience.saturating_mul(8).min(FULL_IN_A_ROW_MAX);
            self.full_in_a_row = 0;
        }
        if self.small_in_a_row >= SMALL_IN_A_ROW {
            self.supply = SMALL;
        }
    }

    /// Whether so few buffers are left that the device may run out of them.
    fn runs_low(&self) -> bool {
        self.posted < self.supply.total / 2
    }

    pub(crate) fn give_up(self, reset: &Reset) {
        self.ring.give_up(reset);
    }
}

/// Checks what the device says of a buffer: it has to hold a header and the payload that this
/// speaks of.
fn check(mut filled: Filled<HEADER_LEN>) -> Option<(Header, Run)> {
    if filled.written < HEADER_LEN {
        return None;
    }
    let header = Header::parse(&filled.header).ok()?;
    filled.fill(header.len as usize).ok()?;
    Some((header, filled.run))
}

impl Device {
    /// Receives what has come in, until there is nothing more or others should have a turn.
    pub(crate) fn receive(&self) {
        let mut left: Option<Run> = None;
        for _ in 0..BUDGET {
            // The lock is not held while a packet is delivered, which may have to wait for the
            // owner of its socket.
            let Some((header, run)) = self.next_packet(left.take()) else {
                return;
            };
            deliver_tap(&header, TapPayload::Bytes(run.as_slice()));
            left = receive::<Guest>(Received {
                header,
                payload: Payload::Run(run),
                net: Net::GLOBAL,
                sender: None,
            });
        }
        self.return_buffer(left);
        self.schedule_receive();
    }

    /// Posts a buffer that was left over, and takes the next packet. None if there is no packet:
    /// then there will be a callback; or if the receiver has to wait, or is gone.
    fn next_packet(&self, left: Option<Run>) -> Option<(Header, Run)> {
        let mut receiver = self.receiver.lock();
        let receiver = Option::as_mut(&mut receiver)?;
        if let Some(run) = left {
            receiver.recycle(run);
        }
        let is_answer = core::mem::take(&mut receiver.is_answer);
        if !self.transmitter.lock().takes_replies(is_answer) {
            return None;
        }
        loop {
            if let Some(packet) = receiver.next() {
                if receiver.runs_low() && !receiver.refill() {
                    self.schedule_retry();
                }
                receiver.ring.queue().disable_callback();
                return Some(packet);
            }
            if !receiver.refill() {
                self.schedule_retry();
            }
            let is_idle = receiver.ring.queue().enable_callback();
            if receiver.ring.queue().is_broken() {
                self.declare_broken();
                return None;
            }
            if is_idle {
                return None;
            }
        }
    }

    /// Tries again, after a pause, what there was no memory for: to post buffers, and to send.
    pub(crate) fn retry(&self) {
        loop {
            fsleep(Delta::from_micros(PAUSE));
            if self.refill() {
                break;
            }
        }
        // Asks for another try by itself.
        self.transmit();
    }

    /// As [`Receiver::refill`]; nothing is short where there is no receiver any more.
    pub(crate) fn refill(&self) -> bool {
        match &mut *self.receiver.lock() {
            Some(receiver) => receiver.refill(),
            None => true,
        }
    }

    fn return_buffer(&self, left: Option<Run>) {
        let mut receiver = self.receiver.lock();
        if let (Some(run), Some(receiver)) = (left, &mut *receiver) {
            receiver.recycle(run);
        }
    }
}
