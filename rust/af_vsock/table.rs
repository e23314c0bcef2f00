// SPDX-License-Identifier: GPL-2.0

//! The core's tables of bound and of connected sockets, and the accept queue.

use crate::{
    address::{set_sockaddr, to_sockaddr},
    HeldSock, LockedSock, Net, Sock, SockRef, SocketState, Transport,
};
use core::ptr::NonNull;
use kernel::prelude::*;
use rvsock_bindings::bindings;
use vsock_proto::Address;

/// The connected socket for a packet from `source` to `destination`.
pub fn find_connected(source: Address, destination: Address, net: Net<'_>) -> Option<SockRef> {
    let mut source = to_sockaddr(source);
    let mut destination = to_sockaddr(destination);
    // SAFETY: The addresses are initialized; the namespace is valid.
    found(unsafe {
        bindings::vsock_find_connected_socket_net(&mut source, &mut destination, net.as_raw())
    })
}

/// The socket bound to `destination`: a listener, or a client waiting for its response.
///
/// Says nothing about who may send to it.
pub fn find_bound(destination: Address, net: Net<'_>) -> Option<SockRef> {
    let mut destination = to_sockaddr(destination);
    // SAFETY: The address is initialized; the namespace is valid.
    found(unsafe { bindings::vsock_find_bound_socket_net(&mut destination, net.as_raw()) })
}

/// Whether `cid` is one of this machine's own, as somebody's guest.
pub fn find_cid(cid: u32) -> bool {
    // SAFETY: Any number may be asked for.
    unsafe { bindings::vsock_find_cid(cid) }
}

/// Takes over the reference that a look-up returned.
fn found(sk: *mut bindings::sock) -> Option<SockRef> {
    // SAFETY: The look-ups return a socket with a reference for the caller, or nothing.
    NonNull::new(sk).map(|sk| unsafe { SockRef::from_raw(sk.cast()) })
}

/// Calls [`Transport::reset_connected`] for all connected sockets of `T`.
///
/// That runs under the table lock, with bottom halves off and without any socket lock.
pub fn for_each_connected<T: Transport>() {
    /// # Safety
    ///
    /// `sk` is a vsock socket that exists during the call.
    unsafe extern "C" fn call<T: Transport>(sk: *mut bindings::sock) {
        // SAFETY: By the requirements of this function.
        T::reset_connected(unsafe { Sock::from_raw(sk.cast()) });
    }
    // SAFETY: The transport is only compared with; the table holds a reference to each socket in it.
    unsafe {
        bindings::vsock_for_each_connected_socket(T::vtable().as_raw().cast_mut(), Some(call::<T>))
    }
}

impl HeldSock<'_> {
    /// Whether the core takes packets from `source` for this socket of `T`.
    ///
    /// A kernel without `vsock_check_source()` leaves that to transports.
    pub fn accepts_source<T: Transport>(&self, source: Address) -> bool {
        #[cfg(HAVE_VSOCK_CHECK_SOURCE)]
        // SAFETY: The lock is held; the address is initialized.
        return unsafe {
            let mut source = to_sockaddr(source);
            bindings::vsock_check_source(self.as_raw(), T::vtable().as_raw(), &mut source)
        };
        #[cfg(not(HAVE_VSOCK_CHECK_SOURCE))]
        {
            let _ = source;
            true
        }
    }
}

impl Sock {
    /// The peer is gone, and what it sent before may still be read: as [`Sock::reset_unlocked`],
    /// but leaves the state at `SS_UNCONNECTED`, which is `TCP_ESTABLISHED` by its number
    /// (`vhost_vsock_reset_orphans()`). A socket that is being closed is left to its timeout.
    pub fn orphan_unlocked(&self) {
        // SAFETY: As `reset_unlocked`; the core holds the table lock.
        unsafe {
            let vsk = self.as_raw();
            let sk = self.sk();
            if (&raw const (*vsk).close_work_scheduled).read_volatile() {
                return;
            }
            bindings::sock_set_flag(sk, bindings::sock_flags_SOCK_DONE);
            (&raw mut (*vsk).peer_shutdown).write_volatile(bindings::SHUTDOWN_MASK);
            let state = bindings::socket_state_SS_UNCONNECTED as u8;
            (&raw mut (*sk).__sk_common.skc_state).write_volatile(state);
            (&raw mut (*sk).sk_err).write_volatile(bindings::ECONNRESET as i32);
            bindings::sk_error_report(sk);
        }
    }

    /// The peer is gone: closes with `ECONNRESET`, in the three stores that C does without the
    /// socket lock (`virtio_vsock_reset_sock()`), and wakes everybody.
    pub fn reset_unlocked(&self) {
        // SAFETY: The fields are integers that are read without the lock as well.
        unsafe {
            let sk = self.sk();
            (&raw mut (*sk).__sk_common.skc_state).write_volatile(bindings::TCP_CLOSE as u8);
            (&raw mut (*sk).sk_err).write_volatile(bindings::ECONNRESET as i32);
            bindings::sk_error_report(sk);
        }
    }
}

impl HeldSock<'_> {
    /// Puts the socket into the table of connected sockets.
    ///
    /// One that is there already (its connection was reset before `connect()` woke up, and it
    /// tries again) is taken out first: inserting it twice would corrupt the table.
    pub fn insert_connected(&mut self) {
        // SAFETY: The lock is held.
        unsafe {
            bindings::vsock_remove_connected(self.as_mut_raw());
            bindings::vsock_insert_connected(self.as_mut_raw());
        }
    }

    /// Takes the socket out of the table of connected sockets and, if nobody has it open any more,
    /// out of that of bound ones.
    pub fn remove(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::vsock_remove_sock(self.as_mut_raw()) }
    }

    /// Makes a socket for a connection from `remote` to `local`, for this listener's queue.
    ///
    /// `None` if there is no memory.
    pub fn create_child(&mut self) -> Option<Child> {
        // SAFETY: The lock of the listener is held.
        let sk = NonNull::new(unsafe { bindings::vsock_create_connected(self.sk()) })?;
        // SAFETY: The new socket comes with one reference.
        Some(Child(unsafe { SockRef::from_raw(sk.cast()) }))
    }

    /// Queues a child that was set up for `accept()`. The core now owns the child's first
    /// reference.
    pub fn enqueue_child(&mut self, child: Child) {
        // SAFETY: The locks of both are or were held, the child is in no queue yet; the queue
        // takes references of its own.
        unsafe { bindings::vsock_enqueue_accept(self.sk(), child.0.sk()) };
        let _ = SockRef::into_raw(child.0);
    }
}

/// A socket made for an incoming connection, in nobody's queue yet; dropping it discards it.
pub struct Child(SockRef);

impl Child {
    /// Locks the child, inside the lock of its listener.
    pub fn lock(&self) -> LockedSock<'_> {
        LockedSock::lock_child(&self.0)
    }
}

impl HeldSock<'_> {
    /// Makes a child established between `local` and `remote`, and lets the core choose its
    /// transport. `ENODEV` if that is not `T`: then the packet came the wrong way.
    pub fn establish_child<T: Transport>(
        &mut self,
        listener: &Sock,
        local: Address,
        remote: Address,
    ) -> Result {
        self.set_state(SocketState::Established);
        // SAFETY: The lock is held; nobody else knows the child yet.
        let status = unsafe {
            let vsk = self.as_mut_raw();
            set_sockaddr(&mut (*vsk).local_addr, local);
            set_sockaddr(&mut (*vsk).remote_addr, remote);
            bindings::vsock_assign_transport(vsk, listener.as_raw())
        };
        kernel::error::to_result(status)?;
        self.attached::<T>().map(|_| ()).ok_or(ENODEV)
    }
}
