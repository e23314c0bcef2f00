// SPDX-License-Identifier: GPL-2.0

//! Access to the descriptors of a guest.

use crate::device::PIECES_MAX;
use core::{marker::PhantomData, mem::MaybeUninit};
use kernel::{
    iov::{IovIterDest, IovIterSource},
    prelude::*,
};
use rvsock_bindings::bindings;

/// Used buffers that are told to the guest at once.
const BATCH: usize = 64;

/// A queue that runs, whose lock is held, and whose guest does not notify us.
///
/// The vhost core stops the machine (`BUG_ON`) if descriptors are fetched with notifications on:
/// here is the only place where they can be fetched. Used buffers are collected and told to the
/// guest in batches; whatever is left is told, and signalled, when the session ends.
///
/// # Invariants
///
/// The lock of the queue is ours, it has a backend, and its notifications are off. The first
/// `pending` elements of its `heads` are used buffers that the guest was not told of.
pub struct Session<'a> {
    device: *mut bindings::vhost_dev,
    queue: *mut bindings::vhost_virtqueue,
    pending: usize,
    unsignalled: bool,
    packets: i32,
    bytes: i32,
    _queue: PhantomData<&'a ()>,
}

impl<'a> Session<'a> {
    pub(crate) fn begin(
        device: *mut bindings::vhost_dev,
        queue: *mut bindings::vhost_virtqueue,
    ) -> Option<Self> {
        // SAFETY: The queue is initialized as long as its device.
        unsafe {
            bindings::vhost_lock_vq(queue);
            if (*queue).private_data.is_null() || bindings::vq_meta_prefetch(queue) == 0 {
                bindings::vhost_unlock_vq(queue);
                return None;
            }
            bindings::vhost_disable_notify(device, queue);
        }
        // INVARIANT: All three were brought about just now; nothing is pending.
        Some(Self {
            device,
            queue,
            pending: 0,
            unsignalled: false,
            packets: 0,
            bytes: 0,
            _queue: PhantomData,
        })
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> usize {
        // SAFETY: By the type invariants the queue is locked.
        unsafe { (*self.queue).num as usize }
    }

    /// The next buffer of the guest, if there is one. An error if what is there makes no sense, of
    /// which the vhost core has told the owner of the device, or if the IOTLB does not know where
    /// it is (`EAGAIN`): it is asked for, and the worker comes back when the answer is there.
    pub fn next_buffer(&mut self) -> Result<Option<Buffer<'_, 'a>>> {
        let (mut out, mut input, mut logged, mut count) = (0, 0, 0, 0);
        // SAFETY: By the type invariants the queue is locked and notifications are off.
        let head = unsafe {
            let log = if bindings::vhost_logs(self.queue) {
                (*self.queue).log
            } else {
                core::ptr::null_mut()
            };
            bindings::vhost_get_vq_desc_n(
                self.queue,
                (&raw mut (*self.queue).iov).cast(),
                PIECES_MAX,
                &mut out,
                &mut input,
                log,
                &mut logged,
                &mut count,
            )
        };
        let head = u32::try_from(head).map_err(|_| Error::from_errno(head))?;
        // The size of the ring stands for "none".
        if head as usize >= self.size() {
            return Ok(None);
        }
        Ok(Some(Buffer {
            session: self,
            head,
            out,
            input,
            logged,
            count,
        }))
    }

    /// Whether the other queue should have a turn, after another packet of `bytes`. The worker
    /// then comes back to this one by itself.
    pub fn exceeds_weight(&mut self, bytes: usize) -> bool {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self
            .bytes
            .saturating_add(i32::try_from(bytes).unwrap_or(i32::MAX));
        // SAFETY: By the type invariants the queue is locked.
        unsafe { bindings::vhost_exceeds_weight(self.queue, self.packets, self.bytes) }
    }

    /// Asks the guest to notify us from now on, and ends the session; gives it back if the guest
    /// has made a buffer available meanwhile.
    pub fn wait_for_guest(mut self) -> Option<Self> {
        self.tell();
        // SAFETY: By the type invariants the queue is locked.
        unsafe {
            if !bindings::vhost_enable_notify(self.device, self.queue) {
                return None;
            }
            bindings::vhost_disable_notify(self.device, self.queue);
        }
        // INVARIANT: Notifications are off again.
        Some(self)
    }

    /// Tells the guest of the used buffers now, and signals it: for what must not wait for the end
    /// of the batch.
    pub fn signal(&mut self) {
        self.tell();
        if core::mem::take(&mut self.unsignalled) {
            // SAFETY: By the type invariants the queue is locked.
            unsafe { bindings::vhost_signal(self.device, self.queue) }
        }
    }

    /// Tells the guest of the used buffers, without a signal.
    fn tell(&mut self) {
        let count = core::mem::take(&mut self.pending) as u32;
        if count > 0 {
            // SAFETY: By the type invariants the queue is locked, and that many heads are set.
            unsafe {
                let queue = self.queue;
                bindings::vhost_add_used_n(queue, (*queue).heads, (*queue).nheads, count);
            }
            self.unsignalled = true;
        }
    }

    fn push_used(&mut self, head: u32, len: u32) {
        if self.pending >= BATCH.min(self.size()) {
            self.tell();
        }
        // SAFETY: The queue is locked; it has room for as many heads as `PIECES_MAX`, which is more
        // than a batch.
        unsafe { bindings::vhost_set_head(self.queue, self.pending as u32, head, len) };
        // INVARIANT: The element was set just now.
        self.pending = self.pending.saturating_add(1);
    }

    /// Tells the owner of the device that its guest did something wrong.
    pub fn report_error(&mut self) {
        // SAFETY: By the type invariants the queue is locked.
        unsafe { bindings::vhost_vq_error(self.queue) }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.signal();
        // SAFETY: By the type invariants the lock is ours.
        unsafe { bindings::vhost_unlock_vq(self.queue) }
    }
}

/// A buffer of the guest, until it is [used](Buffer::used) or [put back](Buffer::put_back).
///
/// Dropped otherwise, the guest never gets it back.
pub struct Buffer<'s, 'a> {
    session: &'s mut Session<'a>,
    head: u32,
    /// Pieces that the guest wrote, and then pieces for us to write to, in the queue's `iov`.
    out: u32,
    input: u32,
    logged: u32,
    count: u32,
}

impl Buffer<'_, '_> {
    fn iov(&self) -> *const bindings::iovec {
        // SAFETY: The queue is locked; only a pointer is made.
        unsafe { (&raw const (*self.session.queue).iov).cast() }
    }

    fn input_iov(&self) -> *const bindings::iovec {
        // In range: the core has put `out + input` pieces there.
        self.iov().wrapping_add(self.out as usize)
    }

    /// Bytes that the guest wrote.
    pub fn readable(&self) -> usize {
        // SAFETY: That many pieces were set.
        unsafe { bindings::vhost_iov_length(self.iov(), self.out as usize) }
    }

    /// Bytes that we may write.
    pub fn writable(&self) -> usize {
        // SAFETY: That many pieces were set.
        unsafe { bindings::vhost_iov_length(self.input_iov(), self.input as usize) }
    }

    /// Calls `f` with what the guest wrote. Reading it may sleep, and fail.
    pub fn read<R>(&mut self, f: impl FnOnce(&mut IovIterSource<'_>) -> R) -> R {
        let mut iter = MaybeUninit::uninit();
        // SAFETY: The pieces stay as they are as long as this buffer is borrowed.
        unsafe {
            let len = self.readable();
            let direction = bindings::ITER_SOURCE;
            bindings::iov_iter_init(
                iter.as_mut_ptr(),
                direction,
                self.iov(),
                self.out as usize,
                len,
            );
            // The wrapper is transparent; its `from_raw()` would panic where C warns.
            f(&mut *iter.as_mut_ptr().cast::<IovIterSource<'_>>())
        }
    }

    /// Calls `f` with what we may write to. Writing may sleep, and fail.
    pub fn write<R>(&mut self, f: impl FnOnce(&mut IovIterDest<'_>) -> R) -> R {
        let mut iter = MaybeUninit::uninit();
        // SAFETY: The pieces stay as they are as long as this buffer is borrowed.
        unsafe {
            let len = self.writable();
            let direction = bindings::ITER_DEST;
            bindings::iov_iter_init(
                iter.as_mut_ptr(),
                direction,
                self.input_iov(),
                self.input as usize,
                len,
            );
            // As above.
            f(&mut *iter.as_mut_ptr().cast::<IovIterDest<'_>>())
        }
    }

    /// Gives the buffer back to the guest, with `written` bytes in it.
    pub fn used(self, written: u32) {
        if written > 0 {
            self.log(written);
        }
        self.session.push_used(self.head, written);
    }

    /// Marks the memory that was written as dirty, for a migration that is under way. C leaves the
    /// payload out.
    fn log(&self, written: u32) {
        let queue = self.session.queue;
        // SAFETY: The queue is locked; the pieces and the log are those of this buffer.
        unsafe {
            if bindings::vhost_logs(queue) {
                let (log, count) = ((*queue).log, self.input as i32);
                let iov = self.input_iov().cast_mut();
                bindings::vhost_log_write(queue, log, self.logged, u64::from(written), iov, count);
            }
        }
    }

    /// Puts the buffer back into the ring, as if it had not been taken.
    pub fn put_back(self) {
        // SAFETY: The queue is locked, and this was the last buffer taken.
        unsafe { bindings::vhost_discard_vq_desc(self.session.queue, 1, self.count) }
    }

    /// Tells the owner of the device that this buffer is not what it should be.
    pub fn report_error(&mut self) {
        self.session.report_error();
    }
}
