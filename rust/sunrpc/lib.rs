// SPDX-License-Identifier: GPL-2.0

//! Transports of SUNRPC over AF_VSOCK sockets, made safe.
//!
//! A module says in a [`Family`] who may call and under which addresses its peers are known, puts
//! [`Tables`] of it into a `static`, and has three classes of transports while it holds a
//! [`ServerRegistration`] and a [`ClientRegistration`]:
//!
//! | class | file | a transport of it is |
//! |---|---|---|
//! | server (`svc_xprt_class`) | `listener.rs`, `connection.rs` | a listening socket, a client's connection |
//! | client (`xprt_class`) | `client.rs` | a mount's way to its server |
//! | back channel (`xprt_class`) | `back_channel.rs` | the way of a server's callbacks, on a connection that a client has made |
//!
//! C headers: [`include/linux/sunrpc/svc_xprt.h`](srctree/include/linux/sunrpc/svc_xprt.h),
//! [`include/linux/sunrpc/xprt.h`](srctree/include/linux/sunrpc/xprt.h)

mod address;
mod back_channel;
mod buffer;
mod callback;
mod class;
mod client;
mod client_connect;
mod client_receive;
mod client_send;
mod connection;
mod errors;
mod family;
mod listener;
mod message;
mod names;
mod outgoing;
mod request;
mod stats;

pub use class::{ClientRegistration, ServerRegistration, Tables};
pub use family::Family;

/// Prefix of the messages that this crate prints.
#[allow(dead_code)]
const __LOG_PREFIX: &[u8] = b"sunrpc_vsock\0";

/// The clock of timers.
fn jiffies() -> usize {
    // SAFETY: A number that others write.
    unsafe { (&raw const rvsock_bindings::bindings::jiffies).read_volatile() }
}

/// Seconds in the unit of [`jiffies`].
const fn seconds(seconds: usize) -> usize {
    seconds * rvsock_bindings::bindings::HZ as usize
}
