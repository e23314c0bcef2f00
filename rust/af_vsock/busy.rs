// SPDX-License-Identifier: GPL-2.0

//! Sockets without their lock: what can be done without waiting for it.
//!
//! Who holds a socket lock may be waiting for memory, for as long as the owner of that memory likes
//! (userfaultfd, a file system in user space). Whoever delivers packets to many sockets cannot wait
//! for that. What needs the lock is left to its holder, who does it when giving the lock back: that
//! is the backlog of `struct sock`, in which there is never more than one sk_buff of ours, without
//! content.
//!
//! What runs in a soft interrupt cannot wait at all, and does without the lock whether somebody holds
//! it or not.

use crate::{state::Attachment, HeldSock, LockedSock, Sock, Transport};
use core::{marker::PhantomData, ops::Deref, ptr::fn_addr_eq};
use kernel::{alloc::AllocError, ffi::c_int, prelude::*};
use rvsock_bindings::bindings;

/// What a socket does with its backlog (`sk_backlog_rcv`).
pub(crate) type BacklogReceive =
    unsafe extern "C" fn(*mut bindings::sock, *mut bindings::sk_buff) -> c_int;

/// A socket that was to be locked.
pub enum Access<'a, T: Transport> {
    /// It is locked.
    Locked(LockedSock<'a>),
    /// Somebody else holds the lock, and cannot give it back for as long as this exists.
    Busy(BusySock<'a, T>),
}

/// A socket of `T` whose lock cannot be taken, and not be given back by who holds it.
///
/// Nothing sleeps while this exists: it is a spinlock. Others of a transport's own nest inside.
///
/// # Invariants
///
/// The spinlock inside the socket lock is held, so that `sk_backlog_rcv` does not change, nor who
/// holds the lock: somebody, if `is_owned`. `attachment` is the state of the socket.
pub struct BusySock<'a, T: Transport> {
    sock: &'a Sock,
    is_owned: bool,
    attachment: &'a Attachment<T>,
    _not_send: PhantomData<*mut ()>,
}

impl Sock {
    /// Takes the socket lock; does not wait for it where that can be avoided: the socket has state
    /// of `T`, and callbacks of its own only.
    pub fn access<T: Transport>(&self) -> Access<'_, T> {
        // SAFETY: The socket is valid. If this is false, the spinlock is held now.
        if unsafe { bindings::lock_sock_or_slock(self.sk()) } {
            // SAFETY: The lock was taken just now.
            return Access::Locked(unsafe { LockedSock::taken(self) });
        }
        // SAFETY: The spinlock is held, and somebody holds the lock.
        match unsafe { self.busy(true) } {
            Some(busy) => Access::Busy(busy),
            None => Access::Locked(self.lock()),
        }
    }

    /// Keeps everybody from taking the socket lock, or from giving it back. Does not wait for the
    /// lock; any context but a hard interrupt. None where [`Sock::access`] would have to wait.
    pub fn try_access<T: Transport>(&self) -> Option<BusySock<'_, T>> {
        // SAFETY: The socket is valid. Then the spinlock is held.
        unsafe {
            let is_owned = bindings::lock_slock(self.sk());
            self.busy(is_owned)
        }
    }

    /// Gives the spinlock back where it does not help.
    ///
    /// # Safety
    ///
    /// The spinlock inside the socket lock is held, and ours to give back; `is_owned`: somebody holds
    /// the socket lock.
    unsafe fn busy<T: Transport>(&self, is_owned: bool) -> Option<BusySock<'_, T>> {
        // SAFETY: `sk_backlog_rcv` is ours from the time when `trans` was set to the time before it
        // is unset, and that does not change under the spinlock that is held.
        let attachment = unsafe {
            let has_state = is_ours::<T>((*self.sk()).sk_backlog_rcv);
            let trans = (*self.as_raw()).trans.cast::<Attachment<T>>();
            trans.as_ref().filter(|_| has_state && !self.is_watched())
        };
        if attachment.is_none() {
            // SAFETY: The spinlock is held.
            unsafe { bindings::unlock_slock(self.sk()) };
        }
        // INVARIANT: See above.
        attachment.map(|attachment| BusySock {
            sock: self,
            is_owned,
            attachment,
            _not_send: PhantomData,
        })
    }
}

impl<T: Transport> Deref for BusySock<'_, T> {
    type Target = Sock;

    fn deref(&self) -> &Sock {
        self.sock
    }
}

impl<T: Transport> BusySock<'_, T> {
    /// The shared part of the socket's state.
    pub fn shared(&self) -> &T::Shared {
        &self.attachment.shared
    }

    /// Wakes who waits to receive, as `sock_def_readable()` does.
    pub fn wake_readers(&self) {
        // SAFETY: The socket is valid.
        unsafe { bindings::wake_readers(self.sk()) }
    }

    /// Wakes who waits to send.
    pub fn wake_writers(&self) {
        // SAFETY: The socket is valid.
        unsafe { bindings::wake_writers(self.sk()) }
    }

    /// Takes the socket out of the table of connected sockets: its peer may use its port again.
    pub fn remove_connected(&self) {
        // SAFETY: The socket is valid and we have a reference; the table has a lock of its own.
        unsafe { bindings::vsock_remove_connected(self.as_raw()) }
    }

    /// Whether somebody holds the socket lock.
    pub fn is_owned(&self) -> bool {
        self.is_owned
    }

    /// Has the holder call [`Transport::resume`] when it gives the lock back; an error if there is
    /// no memory for that, or no holder.
    pub fn call_back(&self) -> Result<(), AllocError> {
        // SAFETY: The spinlock is held, as the backlog demands.
        if self.is_owned && unsafe { bindings::add_to_backlog(self.sk()) } {
            Ok(())
        } else {
            Err(AllocError)
        }
    }
}

impl<T: Transport> Drop for BusySock<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the spinlock is held.
        unsafe { bindings::unlock_slock(self.sk()) }
    }
}

fn is_ours<T: Transport>(function: Option<BacklogReceive>) -> bool {
    // Two copies of the function would make this false: then there is waiting, as in C.
    function.is_some_and(|function| fn_addr_eq(function, resume::<T> as BacklogReceive))
}

/// Makes the backlog of a socket that has got its state ours.
///
/// # Safety
///
/// The lock of the socket is held, and its `trans` is an [`Attachment<T>`] until
/// [`give_backlog_back`].
pub(crate) unsafe fn take_backlog<T: Transport>(sock: &Sock) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::set_backlog_rcv(sock.sk(), Some(resume::<T>)) }
}

/// Ends what [`take_backlog`] began. What is in the backlog is an empty sk_buff, which the core puts
/// where it is freed with the socket.
///
/// # Safety
///
/// The lock of the socket is held, or nobody else knows it; `original` is what it had.
pub(crate) unsafe fn give_backlog_back(sock: &Sock, original: Option<BacklogReceive>) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::set_backlog_rcv(sock.sk(), original) }
}

/// Called for the sk_buff that [`BusySock::call_back`] left, by who gives the lock back.
///
/// # Safety
///
/// The lock of `sk`, a vsock socket, is held; `skb` is ours to free.
unsafe extern "C" fn resume<T: Transport>(
    sk: *mut bindings::sock,
    skb: *mut bindings::sk_buff,
) -> c_int {
    // SAFETY: By the requirements of this function.
    unsafe {
        bindings::consume_skb(skb);
        // Some give the lock back in order to sleep, and have said so already. They will look again
        // instead.
        bindings::stay_awake();
    }
    // SAFETY: The lock is held, and its holder uses no state while giving it back.
    let mut sock = unsafe { HeldSock::from_raw(sk.cast()) };
    if sock.attached::<T>().is_some() {
        T::resume(sock);
    }
    0
}
