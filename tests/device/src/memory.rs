// SPDX-License-Identifier: GPL-2.0
//! What a connection costs the guest in memory, with packets of sizes that the device chooses.

use anyhow::ensure;

use crate::bench::Bench;
use crate::device::{kind_name, Key};
use crate::header::{END_OF_MESSAGE, SEQPACKET, STREAM};

/// What to measure.
#[derive(clap::Args)]
pub struct Load {
    /// Connections, of which the mean is taken
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Messages instead of a stream
    #[arg(long)]
    seqpacket: bool,
    /// Window of each, in bytes
    #[arg(long, default_value_t = 262_144)]
    window: u32,
    /// Sizes of packets, one after the other, until the window is full
    #[arg(long, value_delimiter = ',', required = true)]
    sizes: Vec<usize>,
    /// Let the guest read all of the first packet but one byte, and fill the window again
    #[arg(long)]
    nibble: bool,
}

/// A connection in the guest, and how many packets were sent on it.
struct Filled {
    id: u32,
    key: Key,
    packets: usize,
}

impl Load {
    fn kind(&self) -> u16 {
        if self.seqpacket {
            SEQPACKET
        } else {
            STREAM
        }
    }
}

/// Measures; bytes for each connection more when its window is full than when it is idle.
pub fn run(bench: &mut Bench, load: &Load) -> anyhow::Result<String> {
    // Caches of the kernel fill the first time.
    measure(bench, load)?;
    let held = measure(bench, load)?;
    Ok(format!("held {held}"))
}

fn measure(bench: &mut Bench, load: &Load) -> anyhow::Result<i64> {
    bench.tidy()?;
    let id = bench.socket(load.kind())?;
    bench.call(&format!("window {id} {}", load.window))?;
    bench.call(&format!("bind {id} {}", u32::MAX))?;
    bench.call(&format!("listen {id} {}", load.connections))?;
    let port = u32::try_from(bench.number(&format!("port {id}"))?)?;
    let mut filled = Vec::new();
    for _ in 0..load.connections {
        let key = bench.device.connect(load.kind(), port, load.window)?;
        bench.expect_event(id, "in")?;
        let accepted = bench.id();
        bench.call(&format!("accept {id} {accepted}"))?;
        filled.push(Filled {
            id: accepted,
            key,
            packets: 0,
        });
    }
    let idle = used(bench)?;
    for connection in &mut filled {
        connection.fill(bench, &load.sizes)?;
        if load.nibble {
            let len = load.sizes.first().map_or(0, |size| size.saturating_sub(1));
            bench.call(&format!("recv {} {len}", connection.id))?;
            bench.barrier()?;
            connection.fill(bench, &load.sizes)?;
        }
    }
    let full = used(bench)?;
    for connection in &filled {
        let peer = bench.device.peers.get(&connection.key);
        ensure!(
            peer.is_some_and(|peer| !peer.is_over),
            "a {} connection with packets of {:?} bytes was reset",
            kind_name(load.kind()),
            load.sizes
        );
    }
    bench.tidy()?;
    Ok((full - idle) / i64::from(load.connections))
}

/// Bytes in use, but for posted buffers, which belong to no connection.
fn used(bench: &mut Bench) -> anyhow::Result<i64> {
    bench.barrier()?;
    let used = bench.number("memory")? as i64 * 1024;
    bench.device.poll()?;
    Ok(used - bench.device.posted() as i64)
}

impl Filled {
    /// Sends packets until the window is full.
    fn fill(&mut self, bench: &mut Bench, sizes: &[usize]) -> anyhow::Result<()> {
        loop {
            let room = bench.device.peers.get(&self.key).map_or(0, |p| p.room());
            let size = sizes[self.packets % sizes.len()].min(room as usize);
            if room == 0 {
                return Ok(());
            }
            bench
                .device
                .write_packet(self.key, &vec![0; size], END_OF_MESSAGE)?;
            self.packets += 1;
        }
    }
}
