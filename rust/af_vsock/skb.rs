// SPDX-License-Identifier: GPL-2.0

//! `struct sk_buff`, as a carrier of payload.
//!
//! Only payload: protocol headers are kept elsewhere. Sent data stays in sk_buffs because sockets
//! account for it there (`sk_wmem_alloc`), and because zero-copy sends complete through them.

use crate::{HeldSock, Message, Zerocopy};
use core::ptr::NonNull;
use kernel::{alloc::AllocError, iov::IovIterDest, page::PAGE_SIZE, prelude::*};
use rvsock_bindings::{bindings, StableBytes};

/// Where the bytes of a message are copied to.
pub enum Layout {
    /// Pages, in as large pieces as are to be had.
    Pages,
    /// A single segment; a shorter one if there is no memory for so long a one.
    Contiguous,
    /// A single segment with room for so many bytes in all, so that others can be [appended](SkBuff::append).
    Room(u32),
}

/// An sk_buff of ours, with nothing but payload.
///
/// # Invariants
///
/// The sk_buff is valid and nobody else refers to it.
pub struct SkBuff(NonNull<bindings::sk_buff>);

// SAFETY: An sk_buff may be used and freed by any thread in process context.
unsafe impl Send for SkBuff {}
// SAFETY: Shared references only read.
unsafe impl Sync for SkBuff {}

/// Most pieces that an sk_buff has beside its head.
pub const MAX_SKB_FRAGS: u32 = bindings::MAX_SKB_FRAGS;

/// Largest order of a page run that is worth asking for (`PAGE_ALLOC_COSTLY_ORDER`).
const COSTLY_ORDER: i32 = bindings::PAGE_ALLOC_COSTLY_ORDER as i32;

impl SkBuff {
    /// # Safety
    ///
    /// `skb` has to be null or a valid sk_buff that nobody else refers to.
    unsafe fn from_raw(skb: *mut bindings::sk_buff) -> Result<Self, AllocError> {
        // INVARIANT: By the requirements of this function.
        NonNull::new(skb).map(Self).ok_or(AllocError)
    }

    /// `len` bytes to be filled, in as many page runs as need be.
    fn with_pages(len: u32, gfp: bindings::gfp_t) -> Result<Self, AllocError> {
        // SAFETY: Any length may be asked for; the result is new.
        unsafe { Self::from_raw(bindings::alloc_payload(len, COSTLY_ORDER, gfp)) }
    }

    /// Up to `len` bytes to be filled, in one physically contiguous piece: half of it, and half of
    /// that, if there is no larger one to be had without effort.
    fn contiguous(mut len: u32, gfp: bindings::gfp_t) -> Result<Self, AllocError> {
        loop {
            // SAFETY: As above.
            let skb = unsafe { Self::from_raw(bindings::alloc_contiguous(len, gfp)) };
            if skb.is_ok() || len <= PAGE_SIZE as u32 {
                return skb;
            }
            len = (len / 2).max(PAGE_SIZE as u32);
        }
    }

    /// A linear sk_buff with a copy of `bytes`. Does not sleep.
    pub fn copy_of(bytes: &[u8]) -> Result<Self, AllocError> {
        let mut skb = Self::with_room(bytes.len(), bindings::GFP_ATOMIC)?;
        skb.put(bytes);
        Ok(skb)
    }

    /// An empty linear sk_buff with room for `len` bytes.
    pub(crate) fn with_room(len: usize, gfp: bindings::gfp_t) -> Result<Self, AllocError> {
        let len = u32::try_from(len).map_err(|_| AllocError)?;
        // SAFETY: Any length may be asked for; the result is new.
        unsafe { Self::from_raw(bindings::__alloc_skb(len, gfp, 0, bindings::NUMA_NO_NODE)) }
    }

    /// Appends `bytes`; room for them was asked for.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        // SAFETY: `skb_put()` checks the room, and makes it valid for writing.
        unsafe {
            let to = bindings::skb_put(self.as_raw(), bytes.len() as u32);
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), bytes.len());
        }
    }

    /// Appends `len` bytes of `from`, beginning at `offset`; room for them was asked for.
    pub(crate) fn put_from(&mut self, from: &SkBuff, offset: u32, len: u32) -> Result {
        // SAFETY: `skb_put()` checks the room, and makes it valid for writing.
        let status = unsafe {
            let to = bindings::skb_put(self.as_raw(), len);
            bindings::skb_copy_bits(from.as_raw(), offset as i32, to, len as i32)
        };
        kernel::error::to_result(status)
    }

    /// Appends a copy of what `from` has, if both are one segment and there is room: whether there was.
    /// Does not sleep.
    pub fn append(&mut self, from: &SkBuff) -> bool {
        let len = from.len();
        // SAFETY: Both are valid.
        let room = unsafe { bindings::skb_tailroom(self.as_raw()) };
        if from.is_nonlinear() || room < len {
            return false;
        }
        self.put_from(from, 0, len).is_ok()
    }

    /// Takes the next `len` bytes of a message to be sent on `sock`, which is charged for them.
    ///
    /// Sleeps. `EFAULT` if the message cannot be read; nothing of it is consumed then.
    pub fn copy_from_message(
        sock: &HeldSock<'_>,
        message: &mut Message<'_, true>,
        len: u32,
        layout: Layout,
    ) -> Result<Self> {
        let gfp = bindings::GFP_KERNEL;
        let skb = match layout {
            Layout::Pages => Self::with_pages(len, gfp)?,
            Layout::Contiguous => Self::contiguous(len, gfp)?,
            // SAFETY: Any length may be asked for; the result is new.
            Layout::Room(room) => unsafe {
                Self::from_raw(bindings::alloc_with_room(len, room, gfp))?
            },
        };
        skb.set_owner(sock);
        skb.fill(message)?;
        Ok(skb)
    }

    /// As [`SkBuff::copy_from_message`], but refers to the pages of the message instead.
    ///
    /// The order of these calls is that of C: the owner is charged while the fragments are filled,
    /// and pages that io_uring manages are given back through the zero-copy state, so both have to
    /// be there before.
    pub fn refer_to_message(
        sock: &HeldSock<'_>,
        message: &mut Message<'_, true>,
        len: u32,
        zerocopy: &Zerocopy,
    ) -> Result<Self> {
        let skb = Self::with_room(0, bindings::GFP_KERNEL)?;
        skb.set_owner(sock);
        zerocopy.attach(&skb);
        // SAFETY: All are valid, the owner is set.
        let status = unsafe {
            let message = message.as_raw();
            let from = &raw mut (*message).msg_iter;
            let null = core::ptr::null_mut();
            bindings::__zerocopy_sg_from_iter(
                message,
                null,
                skb.as_raw(),
                from,
                len as usize,
                null.cast(),
            )
        };
        kernel::error::to_result(status)?;
        Ok(skb)
    }

    /// As [`SkBuff::copy_from_message`], but copies only `front` bytes and refers to the pages of
    /// the rest: as many of them as there is room for.
    ///
    /// `front` has to be what [`Message::splice_front`] said, and less than `len`. If that fails,
    /// the front may have been consumed.
    pub fn splice_from_message(
        sock: &HeldSock<'_>,
        message: &mut Message<'_, true>,
        len: u32,
        front: u32,
    ) -> Result<Self> {
        let skb = Self::with_room(front as usize, bindings::GFP_KERNEL)?;
        skb.set_owner(sock);
        // SAFETY: The sk_buff has room for `front` bytes, which are written next.
        unsafe { bindings::skb_put(skb.as_raw(), front) };
        skb.fill(message)?;
        let rest = len.saturating_sub(front) as usize;
        // SAFETY: All are valid; the sk_buff has an owner.
        let spliced = unsafe {
            let from = &raw mut (*message.as_raw()).msg_iter;
            bindings::skb_splice(skb.as_raw(), from, rest)
        };
        if spliced <= 0 {
            return Err(EFAULT);
        }
        Ok(skb)
    }

    /// Copies the next bytes of a message into all that the sk_buff has.
    fn fill(&self, message: &mut Message<'_, true>) -> Result {
        // SAFETY: All are valid; the sk_buff is new, so that nobody else has its bytes.
        let status = unsafe {
            let from = &raw mut (*message.as_raw()).msg_iter;
            bindings::skb_copy_datagram_from_iter_full(self.as_raw(), 0, from, self.len() as i32)
        };
        kernel::error::to_result(status)
    }

    fn set_owner(&self, sock: &HeldSock<'_>) {
        // SAFETY: Both are valid; the sk_buff is new and has no owner.
        unsafe { bindings::skb_set_owner_w(self.as_raw(), sock.sk()) }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::sk_buff {
        self.0.as_ptr()
    }

    fn into_raw(self) -> *mut bindings::sk_buff {
        let raw = self.as_raw();
        core::mem::forget(self);
        raw
    }

    /// Bytes of payload.
    #[inline]
    pub fn len(&self) -> u32 {
        // SAFETY: The sk_buff is valid.
        unsafe { (*self.as_raw()).len }
    }

    /// Whether there is no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the sk_buff holds.
    pub fn truesize(&self) -> u32 {
        // SAFETY: The sk_buff is valid.
        unsafe { (*self.as_raw()).truesize }
    }

    /// Whether the payload lies outside the sk_buff's own memory.
    pub fn is_nonlinear(&self) -> bool {
        // SAFETY: The sk_buff is valid.
        unsafe { bindings::skb_is_nonlinear(self.as_raw()) }
    }

    /// Its owner is charged no longer, and may go away (`skb_orphan()`).
    pub fn orphan(&mut self) {
        // SAFETY: The sk_buff is valid and ours.
        unsafe { bindings::skb_orphan(self.as_raw()) }
    }

    /// Copies `len` bytes from `offset` on. May sleep. `EFAULT` if the memory they go to is not
    /// there.
    pub fn copy_to_iter(&self, offset: u32, to: &mut IovIterDest<'_>, len: u32) -> Result {
        // SAFETY: Both are valid; the function checks offset and length.
        kernel::error::to_result(unsafe {
            let offset = offset as i32;
            bindings::skb_copy_datagram_iter(self.as_raw(), offset, to.as_raw(), len as i32)
        })
    }

    /// Drops the first `len` bytes. `ENOMEM` if they cannot be got at.
    pub fn pull(&mut self, len: u32) -> Result {
        // SAFETY: The sk_buff is valid and ours; the function checks the length.
        if unsafe { bindings::pskb_pull(self.as_raw(), len) }.is_null() {
            return Err(ENOMEM);
        }
        Ok(())
    }
}

// SAFETY: The payload of an sk_buff lies in its head and in the pages of its fragments, which are
// its own until it is freed or changed, wherever the `SkBuff` is moved. Pages of a zero-copy send
// or of a file may be written to by their owner meanwhile: nothing in the kernel depends on what is
// read.
unsafe impl StableBytes for SkBuff {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: The sk_buff is valid.
        let count = unsafe { bindings::skb_pieces(self.as_raw()) };
        (0..count).map(|i| {
            let mut len = 0;
            // SAFETY: `i` is in range; the piece lives as long as the sk_buff.
            unsafe {
                let data = bindings::skb_piece(self.as_raw(), i, &mut len);
                core::slice::from_raw_parts(data.cast::<u8>(), len as usize)
            }
        })
    }
}

impl Drop for SkBuff {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the sk_buff is ours. It was used, not lost: `consume`
        // keeps drop monitors quiet and completes zero-copy sends as successful.
        unsafe { bindings::consume_skb(self.as_raw()) }
    }
}

/// What a user of `read_skb` does with each sk_buff (`skb_read_actor_t`).
#[derive(Clone, Copy)]
pub struct SkbActor(Actor);

/// The kernel's bindings know `struct sock` by name only; it is the same type.
type Actor = unsafe extern "C" fn(*mut kernel::bindings::sock, *mut bindings::sk_buff) -> i32;

impl SkbActor {
    pub(crate) fn from_raw(actor: bindings::skb_read_actor_t) -> Option<Self> {
        actor.map(Self)
    }

    /// Hands `skb` over. Negative results ask to stop.
    pub fn call(self, sock: &mut HeldSock<'_>, skb: SkBuff) -> i32 {
        // SAFETY: The socket is locked, as the actors of the core expect; they consume the sk_buff.
        unsafe { (self.0)(sock.sk().cast(), skb.into_raw()) }
    }
}
