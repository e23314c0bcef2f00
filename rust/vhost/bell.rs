// SPDX-License-Identifier: GPL-2.0

//! How others get the attention of a device's worker.

use core::ptr;
use kernel::{
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        rcu, Arc,
    },
};
use rvsock_bindings::bindings;

/// Wakes the worker of a device, as long as there is one.
///
/// # Invariants
///
/// The address is 0, or that of a [`Target`] that is valid until a grace period after the bell was
/// silenced.
pub struct Bell(Atomic<usize>);

/// What a bell is connected to.
pub(crate) struct Target {
    pub(crate) queue: *mut bindings::vhost_virtqueue,
    pub(crate) work: *mut bindings::vhost_work,
}

impl Bell {
    /// A bell that is connected to nothing.
    pub(crate) fn new() -> Result<Arc<Self>> {
        // INVARIANT: The address is 0.
        Ok(Arc::new(Self(Atomic::new(0)), GFP_KERNEL)?)
    }

    /// # Safety
    ///
    /// `target`, and what is in it, has to stay valid until [`Bell::silence`] has returned.
    pub(crate) unsafe fn connect(&self, target: *const Target) {
        // INVARIANT: By the requirements of this function.
        self.0.store(target.expose_provenance(), ordering::Release);
    }

    /// Disconnects the bell; returns when nobody is ringing it any more. Sleeps.
    pub(crate) fn silence(&self) {
        self.0.store(0, ordering::Release);
        // SAFETY: Always safe to call where sleeping is allowed.
        unsafe { bindings::synchronize_rcu() };
    }

    /// Makes the worker call [`Driver::rung`](crate::Driver::rung) soon. Any context.
    pub fn ring(&self) {
        let _guard = rcu::read_lock();
        let target: *const Target = ptr::with_exposed_provenance(self.0.load(ordering::Acquire));
        // SAFETY: By the type invariants the target is valid, and the guard above keeps it so.
        if let Some(target) = unsafe { target.as_ref() } {
            // SAFETY: As above. Without an owner there is no worker, and this does nothing.
            unsafe { bindings::vhost_vq_work_queue(target.queue, target.work) };
        }
    }
}
