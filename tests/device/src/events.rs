// SPDX-License-Identifier: GPL-2.0
//! Events that are none, too short, too long, or of buffers that the driver never posted.
//!
//! Stock QEMU keeps the event queue for itself and lets no back end near it, so it is reached
//! through the guest's memory, at addresses that QEMU's monitor tells. Interrupts are those of the
//! receive queue: the device has one for all.

use anyhow::{ensure, Context};
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha8Rng;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::bench::Bench;
use crate::device::Lost;
use crate::ring::{Chain, Ring};

/// Where the event queue is.
#[derive(clap::Args)]
pub struct Place {
    #[arg(long)]
    size: u16,
    #[arg(long)]
    descriptors: u64,
    #[arg(long)]
    available: u64,
    #[arg(long)]
    used: u64,
}

/// All connections are over, and the CID may be another one.
const TRANSPORT_RESET: u32 = 0;
const EVENT_LEN: u32 = 4;

const EVENTS: [u32; 6] = [1, 2, 255, 0x0100_0000, 0x8000_0000, u32::MAX];
const LENGTHS: [u32; 8] = [0, 1, 3, 5, 44, 4096, 0x8000_0000, u32::MAX];

impl Place {
    fn queue(&self) -> anyhow::Result<Queue> {
        let mut queue = Queue::new(self.size)?;
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available))?;
        queue.try_set_used_ring_address(GuestAddress(self.used))?;
        queue.set_ready(true);
        Ok(queue)
    }
}

/// Does `steps` steps, the last of which breaks the queue.
pub fn run(bench: &mut Bench, seed: u64, steps: u64, place: &Place) -> anyhow::Result<String> {
    bench.tidy()?;
    let ring = Ring::foreign(bench.device.backend.clone(), 0, place.queue()?);
    ring.catch_up().context("no event queue")?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut resets = 0;
    for step in 0..steps {
        let result = send_event(bench, &ring, &mut rng);
        resets += u64::from(result.with_context(|| format!("seed {seed}, step {step}"))?);
    }
    break_ring(bench, &ring, &mut rng).with_context(|| format!("seed {seed}, the last step"))?;
    Ok(format!("{steps} events, {resets} of them resets"))
}

/// Sends an event, which is whole and has a meaning once in a while; whether it has.
fn send_event(bench: &mut Bench, ring: &Ring, rng: &mut ChaCha8Rng) -> anyhow::Result<bool> {
    let chain = buffer(bench, ring)?;
    let is_reset = rng.random_bool(0.05);
    let (event, written) = match rng.random_range(0..3) {
        _ if is_reset => (TRANSPORT_RESET, EVENT_LEN),
        0 => (TRANSPORT_RESET, LENGTHS[rng.random_range(0..LENGTHS.len())]),
        _ => (EVENTS[rng.random_range(0..EVENTS.len())], EVENT_LEN),
    };
    let sent = ring.write(&chain, &event.to_le_bytes());
    let sent = sent.and_then(|_| ring.give_back(&chain, written));
    sent.ok_or(Lost)?;
    bench.device.rx.interrupt();
    if is_reset {
        bench.wait_for_reset()?;
    }
    bench.barrier()?;
    bench.send_echoes(100)?;
    bench.expect_echoes(100)?;
    Ok(is_reset)
}

/// The next buffer for an event: the driver has to post those again that it got.
fn buffer(bench: &mut Bench, ring: &Ring) -> anyhow::Result<Chain> {
    let chain = bench.device.wait("a buffer for an event", |_| ring.pop())?;
    ensure!(
        chain.room() == EVENT_LEN as usize,
        "a buffer of {} bytes for an event",
        chain.room()
    );
    Ok(chain)
}

/// Breaks the queue in one way or another: the guest has to give the device up.
fn break_ring(bench: &mut Bench, ring: &Ring, rng: &mut ChaCha8Rng) -> anyhow::Result<()> {
    let chain = buffer(bench, ring)?;
    match rng.random_range(0..4) {
        0 => ring.lie(u32::MAX, EVENT_LEN),
        1 => ring.jump(0x8000),
        2 => ring
            .give_back(&chain, EVENT_LEN + 1)
            .and_then(|()| ring.lie(chain.head.into(), EVENT_LEN + 1)),
        _ => ring.lie(0xffff, 0),
    };
    // A lie may do no harm, these do.
    ring.lie(u32::MAX, 0);
    ring.lie(u32::MAX, 0);
    bench.device.rx.interrupt();
    bench.expect_loss()
}
