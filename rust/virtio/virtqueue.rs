// SPDX-License-Identifier: GPL-2.0

//! Virtqueues, without what is in them.

use crate::{Driver, Reset};
use core::{ffi::c_void, ptr::NonNull};
use kernel::{error::to_result, prelude::*};
use rvsock_bindings::bindings;

/// A virtqueue of a device.
///
/// # Invariants
///
/// The queue is valid as long as this is used, by the contract of [`Driver`].
pub struct Virtqueue(NonNull<bindings::virtqueue>);

// SAFETY: A queue may be used from any thread, by one at a time: its methods that change it take
// `&mut self`.
unsafe impl Send for Virtqueue {}
// SAFETY: As above.
unsafe impl Sync for Virtqueue {}

/// Tokens are numbers of slots, counted from 1: C takes null for "none".
fn token(slot: usize) -> *mut c_void {
    core::ptr::without_provenance_mut(slot.wrapping_add(1))
}

impl Virtqueue {
    /// # Safety
    ///
    /// `queue` is valid until the driver gives up its queues.
    pub(crate) unsafe fn from_raw(queue: *mut bindings::virtqueue) -> Self {
        // INVARIANT: By the requirements of this function.
        // SAFETY: A queue that was found is not null.
        Self(unsafe { NonNull::new_unchecked(queue) })
    }

    fn as_raw(&self) -> *mut bindings::virtqueue {
        self.0.as_ptr()
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> usize {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::virtqueue_get_vring_size(self.as_raw()) as usize }
    }

    /// Whether the device broke the rules: nothing comes from this queue any more.
    pub fn is_broken(&self) -> bool {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::virtqueue_is_broken(self.as_raw()) }
    }

    /// Posts memory that the device reads. `ENOSPC` if the ring is full.
    ///
    /// # Safety
    ///
    /// The memory has to stay valid and unwritten until the device has used it or was reset.
    pub(crate) unsafe fn add_out(&mut self, pieces: &[bindings::kvec], slot: usize) -> Result {
        // SAFETY: The queue and the pieces are valid.
        to_result(unsafe {
            let count = pieces.len() as u32;
            bindings::virtqueue_add_out(self.as_raw(), pieces.as_ptr(), count, token(slot))
        })
    }

    /// Posts memory that the device writes to. `ENOSPC` if the ring is full.
    ///
    /// # Safety
    ///
    /// The memory has to stay valid and unused until the device has used it or was reset.
    pub(crate) unsafe fn add_in(&mut self, pieces: &[bindings::kvec], slot: usize) -> Result {
        // SAFETY: The queue and the pieces are valid.
        to_result(unsafe {
            let count = pieces.len() as u32;
            bindings::virtqueue_add_in(self.as_raw(), pieces.as_ptr(), count, token(slot))
        })
    }

    /// Takes the next used buffer: its slot, and how many bytes the device says it wrote.
    ///
    /// virtio checks what the device says: a buffer that was not posted breaks the queue, and is
    /// not returned.
    pub(crate) fn take_used(&mut self) -> Option<(usize, usize)> {
        let mut written = 0;
        // SAFETY: By the type invariants the queue is valid.
        let token = unsafe { bindings::virtqueue_get_buf(self.as_raw(), &mut written) };
        let slot = token.addr().checked_sub(1)?;
        Some((slot, written as usize))
    }

    /// Takes back a buffer that was posted and not used, and with it what virtio has allocated and
    /// mapped for it. False if there is none.
    pub(crate) fn detach_unused(&mut self, _reset: &Reset) -> bool {
        // SAFETY: By the type invariants the queue is valid; its device was reset.
        let token = unsafe { bindings::virtqueue_detach_unused_buf(self.as_raw()) };
        !token.is_null()
    }

    /// No callbacks are needed for now; some may come all the same.
    pub fn disable_callback(&mut self) {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::virtqueue_disable_cb(self.as_raw()) }
    }

    /// Asks for a callback at the next used buffer; false if there is one already.
    pub fn enable_callback(&mut self) -> bool {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::virtqueue_enable_cb(self.as_raw()) }
    }

    /// Asks for a callback when most of what is posted was used; false if it was already.
    pub fn enable_callback_delayed(&mut self) -> bool {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::virtqueue_enable_cb_delayed(self.as_raw()) }
    }

    /// Whether the device wants to hear of what was posted since this was asked last.
    pub fn needs_kick(&mut self) -> bool {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::virtqueue_kick_prepare(self.as_raw()) }
    }

    /// Tells the device.
    pub fn kick(&self) {
        // SAFETY: By the type invariants the queue is valid; this only writes to the device.
        unsafe {
            bindings::virtqueue_notify(self.as_raw());
        }
    }
}

/// The callback of all queues of `D`.
///
/// # Safety
///
/// `queue` is a queue of a device that is bound to `D`.
pub(crate) unsafe extern "C" fn callback<D: Driver>(queue: *mut bindings::virtqueue) {
    // SAFETY: By the requirements of this function.
    D::notified(unsafe { (*queue).index } as usize)
}
