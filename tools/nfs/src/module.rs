// SPDX-License-Identifier: GPL-2.0

//! Modules of the kernel.

use std::{path::Path, process::Command};

use anyhow::{bail, Context, Result};

/// The module of NFS over vsock.
pub const SUNRPC_VSOCK: &str = "sunrpc_vsock";

/// Whether a module is loaded, or built in.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

/// Loads a module, if it is not.
pub fn load(name: &str) -> Result<()> {
    if is_loaded(name) {
        return Ok(());
    }
    let output = Command::new("modprobe")
        .arg(name)
        .output()
        .context("cannot run modprobe")?;
    if !output.status.success() {
        bail!(
            "cannot load the module {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
