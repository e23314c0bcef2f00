// SPDX-License-Identifier: GPL-2.0

//! The virtio-vsock protocol as pure logic: no I/O, no locks, no allocation, no kernel.
//!
//! Kbuild compiles these files for the modules, cargo compiles them for tests, fuzzing and user
//! programs. Section numbers are those of the virtio specification 1.2 and later; C functions are
//! those of Linux 7.2, `net/vmw_vsock/virtio_transport_common.c` unless said otherwise.
//!
//! A packet is a [`Header`] and payload that this crate never sees. A connection is three values,
//! which their owner keeps under whatever locks it likes:
//!
//! * a [`Phase`]: [`handle_packet()`] turns a received header into the [`Action`] to perform;
//! * a [`TransmitCredit`]: how much the peer still has room for;
//! * a [`ReceiveCredit`]: how much room there is here, and when the peer has to hear of it.
//!
//! Methods are of four kinds. Getters are nouns. `handle_*` takes what arrived and returns what it
//! means. Imperatives (`take`, `consume`, `advertise`) say what the application or the sender does.
//! `poll_*` asks whether something has to be sent.
//!
//! # Panics
//!
//! Nothing here panics, whatever the peer sends and whatever the caller passes: in the kernel, a
//! panic under a socket lock costs the task, the socket and the module. There is no indexing, and
//! arithmetic on what a peer can influence says how it overflows.

// Kbuild passes `no_std` itself; `CONFIG_RUST` is set only there.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod cid_list;
pub mod connection;
mod count;
pub mod credit;
pub mod flags;
pub mod header;
pub mod mapping;
pub mod message;
pub mod record;
pub mod reply;
pub mod turns;

pub use address::{AddressError, UniversalAddress};
pub use cid_list::{cid_entries, CidEntry, CidListError};
pub use connection::{addressed_to, handle_packet, Action, Facts, Finish, Phase};
pub use credit::{Advertisement, CreditChange, Overrun, ReceiveCredit, TransmitCredit, Update};
pub use flags::{MessageFlags, ShutdownFlags};
pub use header::{Address, Header, HeaderError, Kind, Operation, HEADER_LEN, MAX_PAYLOAD};
pub use message::max_boundaries;
pub use record::{Marker, Progress, RecordError, RecordReader, Want, MARKER_LEN};
pub use reply::{answers_with_reset, reset_for};
pub use turns::Turns;
