// SPDX-License-Identifier: GPL-2.0

//! What `sendmsg()` and `recvmsg()` hand over.

use core::marker::PhantomData;
use kernel::{
    iov::{IovIterDest, IovIterSource},
    prelude::*,
};
use rvsock_bindings::bindings;

/// Shorter pieces are copied where they come first: record markers, headers of protocols.
const SHORTEST_SPLICE: usize = 512;

/// Most bytes that are copied before what is referred to: they share a page with the sk_buff's own.
const LONGEST_FRONT: usize = 2048;

/// A `struct msghdr` of a system call, or of a kernel user of sockets.
///
/// # Invariants
///
/// The message is valid and ours alone for `'a`. Its iterator is a source in an operation that
/// sends and a destination in one that receives, which `SEND` says.
pub struct Message<'a, const SEND: bool>(*mut bindings::msghdr, PhantomData<&'a mut ()>);

impl<const SEND: bool> Message<'_, SEND> {
    /// # Safety
    ///
    /// `message` has to be valid and exclusive for as long as the result is used, and its iterator
    /// a source if `SEND` and a destination otherwise.
    pub(crate) unsafe fn from_raw(message: *mut bindings::msghdr) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(message, PhantomData)
    }

    pub(crate) fn as_raw(&mut self) -> *mut bindings::msghdr {
        self.0
    }

    fn has(&self, flag: u32) -> bool {
        // SAFETY: The message is valid.
        unsafe { (*self.0).msg_flags & flag != 0 }
    }
}

impl Message<'_, true> {
    /// Whether this ends a record (`MSG_EOR`).
    pub fn ends_record(&self) -> bool {
        self.has(bindings::MSG_EOR)
    }

    /// Whether the caller asks for zero copy (`MSG_ZEROCOPY`).
    pub fn wants_zerocopy(&self) -> bool {
        self.has(bindings::MSG_ZEROCOPY)
    }

    /// Takes `MSG_ZEROCOPY` back, as for a socket without `SO_ZEROCOPY`.
    pub fn refuse_zerocopy(&mut self) {
        // SAFETY: The message is valid and exclusive.
        unsafe { (*self.0).msg_flags &= !bindings::MSG_ZEROCOPY }
    }

    /// How much to copy of the next `len` bytes before the rest is referred to, if the caller asks
    /// for references (`MSG_SPLICE_PAGES`, from `sendfile()`, `splice()` and the NFS server) and
    /// that is of use; see [`SkBuff::splice_from_message`](crate::SkBuff::splice_from_message).
    pub fn splice_front(&self, len: u32) -> Option<u32> {
        // SAFETY: The message and its iterator are valid.
        let front = unsafe {
            bindings::msg_splice_front(self.0, len as usize, SHORTEST_SPLICE, LONGEST_FRONT)
        };
        u32::try_from(front).ok()
    }

    /// Whether the iterator starts at the beginning of a segment.
    pub fn is_at_segment_start(&self) -> bool {
        // SAFETY: The message is valid.
        unsafe { (*self.0).msg_iter.iov_offset == 0 }
    }

    /// Pages that the rest of the message touches, `limit` at most.
    pub fn pages(&self, limit: i32) -> usize {
        // SAFETY: The message and its iterator are valid.
        unsafe { bindings::iov_iter_npages(&raw const (*self.0).msg_iter, limit) as usize }
    }

    /// Bytes left to send.
    pub fn remaining(&mut self) -> usize {
        self.source().len()
    }

    /// Does something with what comes next in the message; if that fails, nothing of it was taken.
    pub fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.remaining();
        work(self).inspect_err(|_| {
            let taken = before.saturating_sub(self.remaining());
            // SAFETY: So many bytes were taken from the front since.
            unsafe { self.source().revert(taken) }
        })
    }

    /// The rest of the message. Copying from it may sleep.
    pub fn source(&mut self) -> &mut IovIterSource<'_> {
        // SAFETY: By the type invariants the iterator is valid and a source, which is all that its
        // transparent wrapper stands for. `from_raw()` would panic where C warns and copies nothing.
        unsafe { &mut *(&raw mut (*self.0).msg_iter).cast() }
    }
}

impl Message<'_, false> {
    /// Tells the reader that it got the end of a record (`MSG_EOR`).
    pub fn set_ends_record(&mut self) {
        // SAFETY: The message is valid and exclusive.
        unsafe { (*self.0).msg_flags |= bindings::MSG_EOR }
    }

    /// Room left for received bytes.
    pub fn room(&mut self) -> usize {
        self.destination().len()
    }

    /// Where received bytes go. Copying there may sleep.
    pub fn destination(&mut self) -> &mut IovIterDest<'_> {
        // SAFETY: As in `Message::source`, of a destination.
        unsafe { &mut *(&raw mut (*self.0).msg_iter).cast() }
    }
}
