// SPDX-License-Identifier: GPL-2.0

//! virtio drivers made safe: devices, and queues that own what the device works on.
//!
//! A driver implements [`Driver`] and keeps a [`Registration`]. In `probe` it asks the [`Device`]
//! for its [`Virtqueue`]s, and makes an [`OutQueue`] or [`InQueue`] of each. Buffers belong to the
//! queue from the moment they are posted; the device gives them back by a number, which is looked
//! up, so that one it invents leads nowhere.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

mod device;
mod driver;
mod in_queue;
mod out_queue;
mod slots;
mod virtqueue;

pub use device::{Device, Reset};
pub use driver::{ids, DeviceId, Driver, DriverTable, Registration};
pub use in_queue::{Filled, InQueue};
pub use out_queue::OutQueue;
pub use virtqueue::Virtqueue;

/// Prefix of the messages that this crate prints.
#[allow(dead_code)]
const __LOG_PREFIX: &[u8] = b"virtio\0";
