// SPDX-License-Identifier: GPL-2.0
//! Network namespaces of a mode.
//!
//! A namespace gets its mode from its parent's `child_ns_mode`, which can be written once.

use std::fs;
use std::path::Path;
use std::thread;

use crate::case::Skip;
use crate::ensure_eq;
use crate::errno::check;
use anyhow::Context;

const MODE: &str = "/proc/sys/net/vsock/ns_mode";
const CHILD_MODE: &str = "/proc/sys/net/vsock/child_ns_mode";

fn enter_new() -> anyhow::Result<()> {
    // SAFETY: Concerns this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).context("a new network namespace")?;
    Ok(())
}

/// Makes children of this process's namespace, which the case has for itself, be of `mode`.
pub fn prepare(mode: &str) -> anyhow::Result<()> {
    if !Path::new(MODE).exists() {
        return Err(Skip("this kernel's vsock has no modes of namespaces".into()).into());
    }
    enter_new()?;
    fs::write(CHILD_MODE, mode).context(CHILD_MODE)
}

/// Runs `work` in a new child namespace. Sockets and devices that it returns stay there.
pub fn inside<T: Send>(
    mode: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            enter_new()?;
            let is = fs::read_to_string(MODE)?;
            ensure_eq!(is.trim(), mode);
            work()
        });
        worker.join().unwrap()
    })
}
