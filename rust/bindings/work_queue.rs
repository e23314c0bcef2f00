// SPDX-License-Identifier: GPL-2.0

//! Work queues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::bindings;
use core::{ops::Deref, ptr::NonNull};
use kernel::{prelude::*, workqueue::Queue};

/// A work queue that is destroyed with its owner.
///
/// A module whose work may drop the last reference to the module itself needs one: destroying it
/// in the exit function waits until the work has left the module's text.
///
/// # Invariants
///
/// The pointer is a valid work queue that nobody else destroys.
pub struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues may be used from any thread.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// A queue whose work runs on any CPU.
    pub fn unbound(name: &'static CStr) -> Result<Self> {
        // SAFETY: `name` is a C string; the function copies it.
        Self::new(unsafe { bindings::alloc_workqueue(name.as_char_ptr(), true) })
    }

    /// A queue whose work runs on the CPU that queued it.
    pub fn per_cpu(name: &'static CStr) -> Result<Self> {
        // SAFETY: As above.
        Self::new(unsafe { bindings::alloc_workqueue(name.as_char_ptr(), false) })
    }

    /// A queue whose work runs in soft interrupts of the CPU that queued it, and must not sleep.
    pub fn soft(name: &'static CStr) -> Result<Self> {
        // SAFETY: As above.
        Self::new(unsafe { bindings::alloc_bh_workqueue(name.as_char_ptr()) })
    }

    fn new(queue: *mut bindings::workqueue_struct) -> Result<Self> {
        // INVARIANT: Nobody else knows this queue.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Waits until nothing is queued and nothing runs; what is queued by others meanwhile is
    /// waited for, too.
    pub fn drain(&self) {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::drain_workqueue(self.as_raw()) }
    }

    /// The queue, for delayed work of C objects.
    pub fn as_raw(&self) -> *mut bindings::workqueue_struct {
        self.0.as_ptr()
    }
}

impl Deref for WorkQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariants the queue is valid as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr().cast()) }
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is ours to destroy; this waits for queued work.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}
