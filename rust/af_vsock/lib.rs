// SPDX-License-Identifier: GPL-2.0

//! The AF_VSOCK core made safe: what a transport implements, and the sockets it gets.
//!
//! A transport implements [`Transport`] and puts a [`Vtable`] of itself into a `static`;
//! [`Registration`] makes it known to the core for as long as it lives.
//!
//! What one may do with a socket follows from what one holds:
//!
//! | type | stands for | gives |
//! |---|---|---|
//! | [`Sock`] | a socket that exists | what never changes, and racy looks |
//! | [`SockRef`] | a counted reference | keeps it existing |
//! | [`HeldSock`] | its lock is held | everything; its state, its wake-ups |
//! | [`LockedSock`] | its lock is ours | a [`HeldSock`]; unlocks when dropped |
//! | [`BusySock`] | its lock is somebody else's, who keeps it | what has locks of its own; a word for who holds the lock |
//!
//! State of a transport hangs off the socket in two parts: [`Transport::Shared`] has locks of its
//! own, is reference-counted ([`StateRef`]) and may outlive the socket's use of the transport;
//! [`Transport::Owned`] belongs to whoever holds the socket lock.
//!
//! C header: [`include/net/af_vsock.h`](srctree/include/net/af_vsock.h)

mod address;
mod busy;
mod message;
mod net;
mod skb;
mod sock;
mod state;
mod table;
mod tap;
mod trace;
mod transport;
mod zerocopy;

pub use address::{CID_ANY, CID_HOST, CID_LOCAL};
pub use busy::{Access, BusySock};
pub use message::Message;
pub use net::{Net, OwnedNet};
pub use skb::{Layout, SkBuff, SkbActor, MAX_SKB_FRAGS};
pub use sock::{Direction, HeldSock, LockedSock, Sock, SockRef, SocketError, SocketState};
pub use state::{Attached, StateRef};
pub use table::{find_bound, find_cid, find_connected, for_each_connected, Child};
pub use tap::{deliver_tap, TapPayload};
pub use trace::{trace_allocated, trace_received};
pub use transport::{Features, Registration, Transport, Vtable};
pub use zerocopy::Zerocopy;

/// Prefix of the messages that this crate prints.
#[allow(dead_code)]
const __LOG_PREFIX: &[u8] = b"af_vsock\0";
