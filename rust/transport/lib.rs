// SPDX-License-Identifier: GPL-2.0

//! The connection engine that the virtio transports share: guest, host and loopback.
//!
//! An [`Engine<L>`] is a [`Transport`](af_vsock::Transport) for the AF_VSOCK core, on top of a
//! [`Link`], which carries packets. The C side calls this `virtio_transport_common`.
//!
//! * *Send*: the core calls the engine with the socket lock held; the engine takes credit, makes a
//!   [`Packet`] and hands it to [`Link::send`].
//! * *Receive*: the link makes a [`Received`] of a checked header and the payload, and has it
//!   [received](Received::receive); the engine finds the socket, takes its lock, asks `vsock_proto`
//!   what the packet means, and does it.
//!
//! # Locks
//!
//! Socket lock, then one of the two spinlocks of [`Connection`], never both; what a link takes in
//! [`Link::send`] nests inside the socket lock. All of this runs in process context, but for
//! [`Received::try_receive`]. User memory is only touched outside the spinlocks, and sockets are only
//! woken there.

mod busy;
mod chunk;
mod close;
mod connection;
mod deque;
mod engine;
mod link;
mod packet;
mod read;
mod receive;
mod send;

pub use connection::Connection;
pub use engine::Engine;
pub use link::Link;
pub use packet::{Packet, PacketQueue};
pub use receive::{Payload, Received};

/// Prefix of the messages that this crate prints.
#[allow(dead_code)]
const __LOG_PREFIX: &[u8] = b"vsock_transport\0";
