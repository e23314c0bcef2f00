// SPDX-License-Identifier: GPL-2.0
//! The driver of the vsock device, as sysfs shows it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

const DEVICES: &str = "/sys/bus/virtio/devices";

/// virtio device id of a socket device.
const VSOCK: &str = "0x0013";

/// The vsock device of this machine.
pub fn device() -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(DEVICES).context(DEVICES)? {
        let path = entry?.path();
        let id = fs::read_to_string(path.join("device")).unwrap_or_default();
        if id.trim() == VSOCK {
            return Ok(path);
        }
    }
    anyhow::bail!("no vsock device in {DEVICES}")
}

/// Makes the driver let go of the device and take it up again, which resets it.
pub fn rebind() -> anyhow::Result<()> {
    let device = device()?;
    let name = device.file_name().context("a device without a name")?;
    let driver = fs::canonicalize(device.join("driver")).context("no driver")?;
    for action in ["unbind", "bind"] {
        write(&driver.join(action), name.as_encoded_bytes())?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| path.display().to_string())
}
