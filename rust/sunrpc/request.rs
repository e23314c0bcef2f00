// SPDX-License-Identifier: GPL-2.0

//! A thread of a server, with the call that it receives.

use crate::buffer;
use core::{ptr, slice};
use kernel::{page::PAGE_SIZE, prelude::*};
use rvsock_bindings::bindings;
use socket::Pieces;

/// A `struct svc_rqst` in the hands of its transport.
///
/// # Invariants
///
/// The request is valid and nobody else's. Its array of pages has `rq_maxpages` entries, and so has
/// its array of pieces; all pages are there, except those that [`Request::give_pages`] took.
pub(crate) struct Request(*mut bindings::svc_rqst);

/// Whether a message asks or answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `RPC_CALL`.
    Call,
    /// `RPC_REPLY`.
    Reply,
}

impl Direction {
    pub(crate) fn from_wire(word: [u8; 4]) -> Option<Self> {
        match u32::from_be_bytes(word) {
            0 => Some(Self::Call),
            1 => Some(Self::Reply),
            _ => None,
        }
    }
}

/// Bytes that every message has: its number (XID), and what it is.
pub(crate) const PREAMBLE_LEN: usize = 8;

/// Pages of a record of `length` bytes.
fn pages_of(length: u32) -> usize {
    (length as usize).div_ceil(PAGE_SIZE)
}

impl Request {
    /// # Safety
    ///
    /// `request` has to be one whose transport is asked to receive.
    pub(crate) unsafe fn from_raw(request: *mut bindings::svc_rqst) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(request)
    }

    fn raw(&mut self) -> &mut bindings::svc_rqst {
        // SAFETY: By the type invariants it is valid and ours.
        unsafe { &mut *self.0 }
    }

    fn pages(&mut self) -> &mut [*mut bindings::page] {
        let raw = self.raw();
        // SAFETY: By the type invariants there are that many.
        unsafe { slice::from_raw_parts_mut(raw.rq_pages, raw.rq_maxpages) }
    }

    /// Puts pages back that hold the first part of a record.
    pub(crate) fn take_pages(&mut self, saved: &mut KVVec<*mut bindings::page>) {
        for (slot, page) in self.pages().iter_mut().zip(saved.iter()) {
            let idle = core::mem::replace(slot, *page);
            if !idle.is_null() {
                // SAFETY: The request's reference, which it does not have any more.
                unsafe { bindings::sunrpc_put_page(idle) }
            }
        }
        saved.clear();
        let first = self.pages().first().copied().unwrap_or(ptr::null_mut());
        if !first.is_null() {
            // SAFETY: The page is valid.
            let memory = unsafe { bindings::sunrpc_page_address(first) };
            if let Some(head) = self.raw().rq_arg.head.first_mut() {
                head.iov_base = memory;
            }
        }
    }

    /// Takes the pages out that hold `received` bytes; the request gets others before it is used
    /// again. `saved` has to have room for them.
    pub(crate) fn give_pages(&mut self, saved: &mut KVVec<*mut bindings::page>, received: u32) {
        let mut count = 0;
        for slot in self.pages().iter_mut().take(pages_of(received)) {
            if saved.push_within_capacity(*slot).is_err() {
                break;
            }
            *slot = ptr::null_mut();
            count += 1;
        }
        self.raw().rq_pages_nfree = count;
    }

    /// Room for the bytes of a record from `offset` on; the second number says how many bytes to
    /// skip at the beginning of it.
    pub(crate) fn room(&mut self, offset: u32, length: u32) -> Result<(Pieces<'_>, usize)> {
        let end = offset.checked_add(length).ok_or(EMSGSIZE)?;
        let first = offset as usize / PAGE_SIZE;
        let skipped = offset as usize % PAGE_SIZE;
        let (raw, last) = (self.raw(), pages_of(end));
        if last > raw.rq_maxpages {
            return Err(EMSGSIZE);
        }
        let count = last.saturating_sub(first);
        // SAFETY: By the type invariants and the check above there are that many of both; the
        // pages are valid, and pieces of a page hold the bytes asked for.
        unsafe {
            for at in 0..count {
                raw.rq_bvec.add(at).write(bindings::bio_vec {
                    bv_page: *raw.rq_pages.add(first.wrapping_add(at)),
                    bv_len: PAGE_SIZE as u32,
                    bv_offset: 0,
                });
            }
            let pieces = slice::from_raw_parts(raw.rq_bvec, count);
            let total = skipped.wrapping_add(length as usize);
            Ok((Pieces::new(pieces, total), skipped))
        }
    }

    /// The number and the kind of a message, both as they are on the wire.
    pub(crate) fn preamble(&mut self) -> Option<([u8; 4], [u8; 4])> {
        let bytes = self.head(PREAMBLE_LEN)?;
        Some((*bytes.first_chunk()?, *bytes.last_chunk()?))
    }

    /// The first bytes of the message, a page at most.
    pub(crate) fn head(&mut self, length: usize) -> Option<&[u8]> {
        let memory = self.raw().rq_arg.head.first()?.iov_base;
        if memory.is_null() || length > PAGE_SIZE {
            return None;
        }
        // SAFETY: The memory is the first page; its bytes may be old, but are initialized.
        Some(unsafe { slice::from_raw_parts(memory.cast(), length) })
    }

    /// Makes a record of `length` bytes the call to be carried out.
    pub(crate) fn deliver(&mut self, length: u32, is_privileged: bool, is_local: bool) {
        let raw = self.raw();
        let mut page_len = 0;
        if let Some(head) = raw.rq_arg.head.first_mut() {
            page_len = (length as usize).saturating_sub(head.iov_len);
            head.iov_len = head.iov_len.min(length as usize);
        }
        raw.rq_arg.len = length;
        raw.rq_arg.page_base = 0;
        raw.rq_arg.page_len = page_len as u32;
        raw.rq_xprt_ctxt = ptr::null_mut();
        // What statistics and caches take for a stream.
        raw.rq_prot = bindings::IPPROTO_TCP;
        let request = self.0;
        // SAFETY: The request and its transport are valid.
        unsafe {
            bindings::svc_rqst_assign_flag(request, bindings::RQ_SECURE, is_privileged);
            bindings::svc_rqst_assign_flag(request, bindings::RQ_LOCAL, is_local);
            bindings::svc_xprt_copy_addrs(request, (*request).rq_xprt);
            if let Some(statistics) = (*(*request).rq_server).sv_stats.as_mut() {
                statistics.nettcpcnt = statistics.nettcpcnt.wrapping_add(1);
            }
        }
    }

    /// The reply that was made.
    pub(crate) fn reply(&mut self) -> &bindings::xdr_buf {
        &self.raw().rq_res
    }
}

/// Gives up pages that were saved.
pub(crate) fn drop_pages(saved: &mut KVVec<*mut bindings::page>) {
    for page in saved.iter() {
        // SAFETY: The reference that was taken over from the request.
        unsafe { bindings::sunrpc_put_page(*page) }
    }
    saved.clear();
}

/// Copies a reply to a callback to whom it is for.
///
/// # Safety
///
/// `xprt` has to be the back channel's transport.
pub(crate) unsafe fn complete_callback(
    xprt: *mut bindings::rpc_xprt,
    xid: [u8; 4],
    message: &[u8],
) {
    // SAFETY: The transport is valid by the requirements of this function; a request that is found
    // stays while the lock is held.
    unsafe {
        bindings::spin_lock(&raw mut (*xprt).queue_lock);
        let request = bindings::xprt_lookup_rqst(xprt, u32::from_ne_bytes(xid));
        if let Some(request) = request.as_mut() {
            (&raw mut request.rq_private_buf)
                .copy_from_nonoverlapping(&raw const request.rq_rcv_buf, 1);
            if buffer::fill_head(&mut request.rq_private_buf, message) {
                bindings::xprt_complete_rqst(request.rq_task, message.len() as i32);
            }
        }
        bindings::spin_unlock(&raw mut (*xprt).queue_lock);
    }
}
