// SPDX-License-Identifier: GPL-2.0

//! The receive ring, and the supply of buffers for it.

use kernel::{page::PAGE_SIZE, prelude::*};
use rvsock_bindings::Run;
use virtio::{Filled, InQueue, Reset};
use vsock_proto::{Header, Operation, HEADER_LEN};
use vsock_transport::Received;

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
/// So many more buffers filled to the brim than others make us post a large one among them, to see what
/// comes in it: packets may be as large as a small buffer by chance. If they are, the next try comes
/// later.
const FULL: u32 = 8;
const FULL_MAX: u32 = 1024;
/// So many packets in a row that would have fit a small buffer make large ones a waste.
const SMALL_IN_A_ROW: u32 = 256;
/// With fewer buffers than these nothing may come in that makes us look for more.
const FEWEST: usize = 8;

/// How buffers are supplied.
#[derive(Clone, Copy)]
struct Supply {
    /// Bytes of a buffer.
    run: usize,
    /// Bytes of all buffers.
    total: usize,
}

/// Whether there is a large buffer among small ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trial {
    None,
    Wanted,
    Posted,
}

/// The receive ring.
pub(crate) struct Receiver {
    pub(crate) ring: InQueue<HEADER_LEN>,
    supply: Supply,
    /// Bytes of the buffers that are posted.
    posted: usize,
    /// Bytes of those that the device was not told of.
    unannounced: usize,
    /// How many more were filled to the brim than were not.
    full: u32,
    small_in_a_row: u32,
    /// What `full` has to reach.
    patience: u32,
    trial: Trial,
    /// Payload has come in, and the transmitter was not told.
    pub(crate) is_answer: bool,
    /// Somebody receives: packets go to the engine one at a time, in the order of the ring.
    pub(crate) is_in_use: bool,
    /// A packet that comes before those in the ring, for somebody who can wait.
    pub(crate) left: Option<Received<'static>>,
}

impl Receiver {
    pub(crate) fn new(ring: InQueue<HEADER_LEN>) -> Self {
        Self {
            ring,
            supply: SMALL,
            posted: 0,
            unannounced: 0,
            full: 0,
            small_in_a_row: 0,
            patience: FULL,
            trial: Trial::None,
            is_answer: false,
            is_in_use: false,
            left: None,
        }
    }

    /// Posts a buffer, if there is one and it is needed. The size of the next one that is.
    pub(crate) fn supply(&mut self, run: Option<Run>) -> Option<usize> {
        if let Some(run) = run.filter(|_| self.is_short()) {
            let is_large = run.capacity() == LARGE.run;
            if !self.post(run) {
                return None;
            }
            if self.trial == Trial::Wanted {
                // There may have been memory for a small one only.
                self.trial = if is_large { Trial::Posted } else { Trial::None };
            }
        }
        let size = match self.trial {
            Trial::Wanted => LARGE.run,
            Trial::None | Trial::Posted => self.supply.run,
        };
        self.is_short().then_some(size)
    }

    /// Whether there are fewer buffers than there should be, if there is room in the ring.
    pub(crate) fn is_short(&self) -> bool {
        self.posted < self.supply.total
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
    pub(crate) fn recycle(&mut self, run: Run) {
        if run.capacity() == self.supply.run && self.is_short() {
            self.post(run);
        }
    }

    /// Tells the device of buffers that were posted, once it knows of no more than half of them: a
    /// kick costs an exit to the host. A device that waits for buffers has used up all it knows of.
    pub(crate) fn announce(&mut self) {
        if self.unannounced < self.posted / 2 {
            return;
        }
        self.unannounced = 0;
        if self.ring.queue().needs_kick() {
            self.ring.queue().kick();
        }
    }

    /// Takes the next packet that makes sense.
    pub(crate) fn next(&mut self) -> Option<(Header, Run)> {
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
        let is_large = run.len() > SMALL.run;
        let is_full = run.len() == run.capacity();
        self.full = if is_full {
            self.full.saturating_add(1)
        } else {
            self.full.saturating_sub(1)
        };
        // A small buffer that is full says nothing of what the packet would fit.
        self.small_in_a_row = if is_large || is_full {
            0
        } else {
            self.small_in_a_row.saturating_add(1)
        };
        if is_large {
            self.supply = LARGE;
            self.patience = FULL;
            self.trial = Trial::None;
        } else if run.capacity() == LARGE.run && self.trial == Trial::Posted {
            // One that fits a small buffer and does not fill it says nothing.
            self.trial = Trial::Wanted;
            if run.len() == SMALL.run {
                self.trial = Trial::None;
                self.patience = self.patience.saturating_mul(8).min(FULL_MAX);
                self.full = 0;
            }
        }
        let is_called_for = self.supply.run == SMALL.run && self.full >= self.patience;
        if is_called_for && self.trial == Trial::None {
            self.trial = Trial::Wanted;
        }
        if self.small_in_a_row >= SMALL_IN_A_ROW {
            self.supply = SMALL;
            // What was found out was of other traffic.
            self.patience = FULL;
        }
    }

    /// Whether so few buffers are left that the device may run out of them.
    pub(crate) fn runs_low(&self) -> bool {
        self.posted < self.supply.total / 2
    }

    /// Whether more packets will come in with the buffers that are posted.
    pub(crate) fn can_go_on(&self) -> bool {
        self.ring.posted() >= FEWEST
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

/// A buffer of `size` bytes, or of a page if there is none. May sleep.
pub(crate) fn allocate(size: usize) -> Result<Run> {
    Run::new(size, GFP_KERNEL)
        .or_else(|_| Run::new(PAGE_SIZE, GFP_KERNEL))
        .map_err(Error::from)
}
