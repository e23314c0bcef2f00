// SPDX-License-Identifier: GPL-2.0

//! Zero-copy sends (`MSG_ZEROCOPY`, io_uring's `SEND_ZC`): the notification of their completion.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h), `struct ubuf_info`

use crate::{HeldSock, Message, SkBuff};
use core::ptr::NonNull;
use kernel::prelude::*;
use rvsock_bindings::bindings;

/// The notification that one `sendmsg()` asked for.
///
/// Each sk_buff attached to it holds a reference; the sender is told when the last is gone.
///
/// # Invariants
///
/// The pointer is valid. If `owned`, this value holds a reference to it; otherwise io_uring does,
/// for the time of the call.
pub struct Zerocopy {
    ubuf: NonNull<bindings::ubuf_info>,
    owned: bool,
}

impl Zerocopy {
    /// The notification for a send of `len` bytes: the caller's own if the message brings one,
    /// a new one otherwise. `ENOMEM` if the socket has no memory for it (`optmem_max`).
    pub fn new(sock: &HeldSock<'_>, message: &mut Message<'_, true>, len: u32) -> Result<Self> {
        // SAFETY: The message is valid.
        if let Some(ubuf) = NonNull::new(unsafe { (*message.as_raw()).msg_ubuf }) {
            // INVARIANT: Not ours to put.
            return Ok(Self { ubuf, owned: false });
        }
        let null = core::ptr::null_mut();
        // SAFETY: The socket is valid and locked.
        let ubuf = unsafe { bindings::msg_zerocopy_realloc(sock.sk(), len as usize, null, false) };
        // INVARIANT: It comes with a reference for us.
        Ok(Self {
            ubuf: NonNull::new(ubuf).ok_or(ENOMEM)?,
            owned: true,
        })
    }

    /// The notification will say that data was copied after all.
    pub fn mark_copied(&self) {
        if self.owned {
            // SAFETY: What `msg_zerocopy_realloc()` made is a `ubuf_info_msgzc`.
            unsafe { bindings::msgzc_mark_copied(self.ubuf.as_ptr()) }
        }
    }

    /// `skb` belongs to this send.
    pub fn attach(&self, skb: &SkBuff) {
        // SAFETY: Both are valid; the function takes a reference for the sk_buff.
        unsafe { bindings::skb_zcopy_set(skb.as_raw(), self.ubuf.as_ptr()) }
    }

    /// Nothing was sent: there will be no notification.
    pub fn abort(self) {
        if self.owned {
            // SAFETY: By the type invariants the reference is ours.
            unsafe { bindings::net_zcopy_put_abort(self.ubuf.as_ptr()) }
        }
        core::mem::forget(self);
    }
}

impl Drop for Zerocopy {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: By the type invariants the reference is ours.
            unsafe { bindings::net_zcopy_put(self.ubuf.as_ptr()) }
        }
    }
}
