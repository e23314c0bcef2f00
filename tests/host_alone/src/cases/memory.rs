// SPDX-License-Identifier: GPL-2.0
//! A host that is out of memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{ensure, Context};
use rvsock_selftests::case::{stays, Setup};
use rvsock_selftests::cases;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::Kind;

use crate::device::skip;
use crate::guest::{Guest, Options};

cases!("memory":
    a_packet_that_there_is_no_memory_for_is_delayed
        => "it is lost, and so is its buffer",
    a_device_can_be_stopped_and_closed_while_it_waits_for_memory
        => "it does not wait",
);

const SWITCHES: &str = "/sys/kernel/debug/failslab";

/// Allocations of 4 and 8 KiB fail in some tasks, until this is dropped.
struct NoMemory {
    caches: Vec<PathBuf>,
}

impl NoMemory {
    fn new(percent: u32) -> anyhow::Result<Self> {
        let mut caches = Vec::new();
        for entry in fs::read_dir("/sys/kernel/slab").context("caches of the kernel")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours =
                name.starts_with("kmalloc") && (name.ends_with("-4k") || name.ends_with("-8k"));
            if ours && fs::write(path.join("failslab"), "1").is_ok() {
                caches.push(path);
            }
        }
        ensure!(!caches.is_empty(), "no cache can be made to fail");
        let this = Self { caches };
        for (name, value) in [
            ("cache-filter", "Y".to_owned()),
            ("task-filter", "Y".to_owned()),
            ("ignore-gfp-wait", "N".to_owned()),
            ("verbose", "0".to_owned()),
            ("interval", "1".to_owned()),
            ("times", "-1".to_owned()),
            ("probability", percent.to_string()),
        ] {
            fs::write(Path::new(SWITCHES).join(name), value).context(name)?;
        }
        Ok(this)
    }

    /// In the workers of this process's devices.
    fn strike_workers(&self) -> anyhow::Result<usize> {
        let mut workers = 0;
        for entry in fs::read_dir("/proc/self/task")? {
            let path = entry?.path();
            if fs::read_to_string(path.join("comm"))?.starts_with("vhost-") {
                fs::write(path.join("make-it-fail"), "1")?;
                workers += 1;
            }
        }
        Ok(workers)
    }
}

impl Drop for NoMemory {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(SWITCHES).join("probability"), "0");
        for cache in &self.caches {
            let _ = fs::write(cache.join("failslab"), "0");
        }
    }
}

fn a_packet_that_there_is_no_memory_for_is_delayed(_: &Setup) -> anyhow::Result<()> {
    if !Path::new(SWITCHES).exists() {
        return skip("this kernel has no failslab");
    }
    const LEN: usize = 4000;
    const COUNT: usize = 80;
    let pattern = Pattern::new(9);
    let bytes = pattern.bytes(0, LEN * COUNT);
    let mut guest = Guest::start(&Options::default())?;
    let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
    let shortage = NoMemory::new(20)?;
    ensure!(shortage.strike_workers()? == 1, "the worker was not found");
    thread::scope(|scope| {
        let receiver = scope.spawn(|| socket.recv_exact(bytes.len()));
        for packet in bytes.chunks(LEN) {
            guest.send_data(&mut connection, packet)?;
        }
        let got = receiver.join().unwrap()?;
        pattern.check(0, &got)?;
        ensure!(got.len() == bytes.len(), "{} bytes arrived", got.len());
        Ok(())
    })
}

fn a_device_can_be_stopped_and_closed_while_it_waits_for_memory(_: &Setup) -> anyhow::Result<()> {
    if !Path::new(SWITCHES).exists() {
        return skip("this kernel has no failslab");
    }
    for _ in 0..10 {
        let mut guest = Guest::start(&Options::default())?;
        let (socket, mut connection) = guest.connect_pair(Kind::Stream)?;
        let shortage = NoMemory::new(100)?;
        ensure!(shortage.strike_workers()? == 1, "the worker was not found");
        guest.send_data(&mut connection, &[1; 4000])?;
        stays("the packet waits", || socket.unread() == Ok(0))?;
        guest.device.set_running(0)?;
        drop(shortage);
        // What waited is looked at when the device starts.
        guest.device.set_running(1)?;
        socket.recv_exact(4000)?;

        let _shortage = NoMemory::new(100)?;
        guest.send_data(&mut connection, &[2; 4000])?;
        stays("the packet waits", || socket.unread() == Ok(0))?;
        drop(guest);
    }
    Ok(())
}
