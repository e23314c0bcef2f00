// SPDX-License-Identifier: GPL-2.0

//! vhost devices made safe: a character device whose files are virtio devices of guests.
//!
//! A driver implements [`Driver`], puts a [`Table`] into a `static`, and keeps a [`Registration`].
//! Each open file has a [`Device`]. Descriptors of a guest are only reached in a [`Session`]:
//! with the ring running, locked, and its notifications off, as the vhost core demands.
//!
//! C header: `drivers/vhost/vhost.h`

mod bell;
mod device;
mod driver;
mod file;
mod session;

pub use bell::Bell;
pub use device::{Device, Queue};
pub use driver::Driver;
pub use file::{Registration, Table};
pub use session::{Buffer, Session};

/// Prefix of the messages that this crate prints.
#[allow(dead_code)]
const __LOG_PREFIX: &[u8] = b"vhost\0";
