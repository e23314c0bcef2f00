// SPDX-License-Identifier: GPL-2.0

//! Sockets that tell their owner what happens.

use crate::Socket;
use core::{cell::UnsafeCell, ops::Deref, ptr};
use kernel::{
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        rcu,
    },
};
use rvsock_bindings::bindings;

/// What a socket tells its owner. All of it in any context, perhaps with the socket lock held:
/// nothing may sleep or use the socket; queue work.
pub trait Events: Sync {
    /// Bytes arrived, or the peer will send no more; of a listener: somebody connects.
    fn readable(&self);
    /// There may be room to send again.
    fn writable(&self);
    /// The connection may have ended.
    fn changed(&self, is_over: bool);
}

type Callback = Option<unsafe extern "C" fn(*mut bindings::sock)>;

/// The functions that were there before ours.
#[derive(Clone, Copy)]
struct Originals {
    data_ready: Callback,
    write_space: Callback,
    state_change: Callback,
    error_report: Callback,
}

/// What `sk_user_data` points to.
struct Record<E> {
    /// Set before the record is published, and never written again.
    originals: UnsafeCell<Originals>,
    target: Atomic<usize>,
    _target: core::marker::PhantomData<*const E>,
}

/// A socket whose callbacks can be ours.
///
/// # Invariants
///
/// While `sk_user_data` is set, it points to `record`, whose target is valid; it is unset before
/// either goes, and an RCU grace period passes in between.
pub struct Watched<E: Events> {
    record: KBox<Record<E>>,
    socket: Socket,
}

// SAFETY: The target is shared with whoever calls back, which `Events: Sync` allows.
unsafe impl<E: Events> Send for Watched<E> {}
// SAFETY: As above; what is in the record is written before it is published only.
unsafe impl<E: Events> Sync for Watched<E> {}

impl<E: Events> Deref for Watched<E> {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl<E: Events> Watched<E> {
    /// Nobody is told anything yet.
    pub fn new(socket: Socket) -> Result<Self> {
        let originals = Originals {
            data_ready: None,
            write_space: None,
            state_change: None,
            error_report: None,
        };
        let record = Record {
            originals: UnsafeCell::new(originals),
            target: Atomic::new(0),
            _target: core::marker::PhantomData,
        };
        // INVARIANT: `sk_user_data` is unset: nobody else has the socket.
        Ok(Self {
            record: KBox::new(record, GFP_KERNEL)?,
            socket,
        })
    }

    /// Tells `target` from now on.
    ///
    /// # Safety
    ///
    /// `target` has to be valid until [`Watched::unwatch`] has returned or this is dropped. To be
    /// called once.
    pub unsafe fn watch(&self, target: *const E) {
        let sk = self.socket.sk();
        // SAFETY: The socket is valid; its callbacks are changed under its lock. The record is
        // ours alone until it is published.
        // INVARIANT: The target is valid by the requirements of this function.
        unsafe {
            bindings::socket_lock(sk);
            *self.record.originals.get() = Originals {
                data_ready: (*sk).sk_data_ready,
                write_space: (*sk).sk_write_space,
                state_change: (*sk).sk_state_change,
                error_report: (*sk).sk_error_report,
            };
            self.record
                .target
                .store(target.expose_provenance(), ordering::Relaxed);
            publish(sk, &raw const *self.record);
            (*sk).sk_data_ready = Some(data_ready::<E>);
            (*sk).sk_write_space = Some(write_space::<E>);
            (*sk).sk_state_change = Some(state_change::<E>);
            (*sk).sk_error_report = Some(error_report::<E>);
            bindings::release_sock(sk);
        }
    }

    /// Tells nobody any more; when this returns, nobody is being told either. Sleeps.
    pub fn unwatch(&self) {
        let sk = self.socket.sk();
        // SAFETY: The socket is valid; its callbacks are changed under its lock. If it was watched,
        // the originals are there.
        unsafe {
            bindings::socket_lock(sk);
            let was_watched = !(*sk).sk_user_data.is_null();
            if was_watched {
                let originals = *self.record.originals.get();
                (*sk).sk_data_ready = originals.data_ready;
                (*sk).sk_write_space = originals.write_space;
                (*sk).sk_state_change = originals.state_change;
                (*sk).sk_error_report = originals.error_report;
                publish(sk, ptr::null::<Record<E>>());
            }
            bindings::release_sock(sk);
            if was_watched {
                // Packets are freed without the socket lock, and call `sk_write_space()`.
                bindings::synchronize_rcu();
            }
        }
    }
}

impl<E: Events> Drop for Watched<E> {
    fn drop(&mut self) {
        self.unwatch();
    }
}

/// Sets `sk_user_data`, for readers under RCU.
///
/// # Safety
///
/// `sk` is valid and locked.
unsafe fn publish<T>(sk: *mut bindings::sock, record: *const T) {
    kernel::sync::barrier::smp_wmb();
    // SAFETY: By the requirements of this function.
    unsafe { (&raw mut (*sk).sk_user_data).write_volatile(record.cast_mut().cast()) }
}

/// Calls `f` with what was there before, and the target, if the socket is watched.
///
/// # Safety
///
/// `sk` is a valid socket whose `sk_user_data` is unset or was set by a [`Watched<E>`].
#[inline]
unsafe fn with_record<E: Events>(sk: *mut bindings::sock, f: impl FnOnce(&Originals, &E)) {
    let _guard = rcu::read_lock();
    // SAFETY: By the requirements of this function.
    let record = unsafe { (&raw const (*sk).sk_user_data).read_volatile() };
    // SAFETY: What is set is valid by the type invariants of `Watched`, and the guard keeps it so;
    // what it holds was written before it was published.
    unsafe {
        if let Some(record) = record.cast::<Record<E>>().as_ref() {
            let target: *const E =
                ptr::with_exposed_provenance(record.target.load(ordering::Relaxed));
            f(&*record.originals.get(), &*target);
        }
    }
}

/// # Safety
///
/// The kernel calls this with a valid socket, from which `original` was taken.
unsafe fn call(original: Callback, sk: *mut bindings::sock) {
    if let Some(original) = original {
        // SAFETY: By the requirements of this function.
        unsafe { original(sk) }
    }
}

/// # Safety
///
/// As [`with_record`].
unsafe extern "C" fn data_ready<E: Events>(sk: *mut bindings::sock) {
    // SAFETY: By the requirements of this function.
    unsafe {
        with_record(sk, |originals, target: &E| {
            call(originals.data_ready, sk);
            target.readable();
        })
    }
}

/// # Safety
///
/// As [`with_record`].
unsafe extern "C" fn write_space<E: Events>(sk: *mut bindings::sock) {
    // SAFETY: By the requirements of this function.
    unsafe {
        with_record(sk, |originals, target: &E| {
            call(originals.write_space, sk);
            target.writable();
        })
    }
}

/// # Safety
///
/// As [`with_record`].
unsafe extern "C" fn state_change<E: Events>(sk: *mut bindings::sock) {
    // SAFETY: By the requirements of this function.
    unsafe {
        with_record(sk, |originals, target: &E| {
            call(originals.state_change, sk);
            target.changed(bindings::socket_is_over(sk));
        })
    }
}

/// # Safety
///
/// As [`with_record`].
unsafe extern "C" fn error_report<E: Events>(sk: *mut bindings::sock) {
    // SAFETY: By the requirements of this function.
    unsafe {
        with_record(sk, |originals, target: &E| {
            call(originals.error_report, sk);
            target.changed(bindings::socket_is_over(sk));
        })
    }
}
