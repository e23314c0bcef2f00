// SPDX-License-Identifier: GPL-2.0

//! AF_VSOCK sockets for users in the kernel, made safe.
//!
//! A [`Socket`] is a stream socket that the kernel owns; nothing here waits for a peer, except
//! [`Socket::connect`]. A [`Watched`] socket tells its owner what happens, by [`Events`].
//!
//! C header: [`include/linux/net.h`](srctree/include/linux/net.h)

mod pieces;
mod stream;
mod watch;

pub use pieces::Pieces;
pub use stream::Socket;
pub use watch::{Events, Watched};

/// Any CID (`VMADDR_CID_ANY`).
pub const CID_ANY: u32 = u32::MAX;
/// This machine (`VMADDR_CID_LOCAL`).
pub const CID_LOCAL: u32 = rvsock_bindings::bindings::VMADDR_CID_LOCAL;

/// Waits until no task can be on its way into a callback of this module any more. For the end of a
/// module, when there are no [`Watched`] sockets left. Sleeps.
///
/// Whoever frees a packet calls `sk_write_space()` without the socket lock: it may have read the
/// pointer to our function, and not have arrived there yet.
pub fn wait_for_callbacks() {
    // SAFETY: Always safe to call where sleeping is allowed.
    unsafe { rvsock_bindings::bindings::socket_synchronize_tasks() };
}
