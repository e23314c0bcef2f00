// SPDX-License-Identifier: GPL-2.0

//! What a vhost driver implements.

use crate::{Bell, Device};
use kernel::{prelude::*, sync::Arc, uaccess::UserPtr};

/// A driver for one kind of vhost device, with two queues.
///
/// A value of the driver belongs to an open file.
pub trait Driver: Sized + Send + Sync + 'static {
    /// Features beside those of vhost itself.
    const FEATURES: u64;

    /// Packets that one queue may handle before the other has a turn.
    const PACKET_WEIGHT: i32;
    /// Bytes, likewise.
    const BYTE_WEIGHT: i32;

    /// The file was opened. `bell` makes the device's worker call [`Driver::rung`].
    fn open(bell: Arc<Bell>) -> Result<Self>;

    /// The guest agreed to `features`, all of them known. The lock of the device is held.
    fn set_features(&self, features: u64);

    /// The device is about to start, and its queues do not go on where they were stopped: the guest
    /// has begun anew, or this is its beginning. The lock of the device is held.
    fn rebooted(&self);

    /// The device has started: its queues run. The lock of the device is held.
    fn started(&self);

    /// The device has stopped, or never started: nobody is in a session, nor will be until it is
    /// started. The guest may be paused only, and go on as if nothing had happened. The lock of the
    /// device is held.
    fn stopped(&self);

    /// A command that is not vhost's own; `ENOIOCTLCMD` if it is not ours either.
    fn ioctl(device: &Device<Self>, command: u32, argument: UserPtr) -> Result;

    /// The guest made buffers available in a queue. Runs in the worker, with the memory of the
    /// device's owner.
    fn kicked(device: &Device<Self>, queue: usize);

    /// The bell rang. Runs as [`Driver::kicked`].
    fn rung(device: &Device<Self>);

    /// The file is closed: nobody must find the device any more. Its queues may still run.
    fn release(&self);

    /// After [`Driver::release`] and a last [`Driver::stopped`]: nobody will be in a session again.
    fn closed(&self);
}
