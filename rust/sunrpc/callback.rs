// SPDX-License-Identifier: GPL-2.0

//! Calls that a server makes on a client's connection.

use crate::buffer;
use crate::errors::bad_message;
use core::mem;
use kernel::{
    ffi::{c_int, c_uint},
    page::PAGE_SIZE,
    prelude::*,
};
use rvsock_bindings::bindings;
use socket::Socket;

/// Calls that may be under way, as for TCP (`BC_MAX_SLOTS`).
pub(crate) const SLOTS: c_uint = 64;

/// A call that is being received: a `struct rpc_rqst` with a page for the call and one for the
/// reply.
///
/// # Invariants
///
/// The pointer is such a request, ours alone, of a transport that has counted it.
pub(crate) struct Callback(*mut bindings::rpc_rqst);

impl Callback {
    /// Begins to receive a call. An error ends the connection: there is nobody for calls, or there
    /// are too many.
    ///
    /// # Safety
    ///
    /// `xprt` has to be valid, for longer than the callback.
    pub(crate) unsafe fn new(xprt: *mut bindings::rpc_xprt, preamble: &[u8]) -> Result<Self> {
        // SAFETY: By the requirements of this function.
        unsafe {
            if (&raw const (*xprt).bc_serv).read_volatile().is_null() {
                return Err(bad_message());
            }
            if !bindings::bc_slot_take(xprt, SLOTS as c_int) {
                return Err(bad_message());
            }
        }
        // SAFETY: As above.
        let request = unsafe { allocate(xprt) };
        if request.is_null() {
            // SAFETY: The slot was taken just now.
            unsafe { bindings::atomic_dec(&raw mut (*xprt).bc_slot_count) };
            return Err(bad_message());
        }
        // INVARIANT: It was made just now.
        let this = Self(request);
        // SAFETY: By the type invariants.
        unsafe {
            let number = preamble.first_chunk().copied().unwrap_or_default();
            (*request).rq_xid = u32::from_ne_bytes(number);
            (*request).rq_connect_cookie = (*xprt).connect_cookie;
            buffer::fill_head(&mut (*request).rq_rcv_buf, preamble);
        }
        Ok(this)
    }

    /// Receives bytes of the call.
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
        offset: usize,
        length: usize,
    ) -> Result<usize> {
        // SAFETY: By the type invariants the head is a page that is ours.
        let page = unsafe {
            let [head] = (*self.0).rq_rcv_buf.head;
            core::slice::from_raw_parts_mut(head.iov_base.cast::<u8>(), PAGE_SIZE)
        };
        let end = offset.checked_add(length).ok_or(bad_message())?;
        socket.receive(page.get_mut(offset..end).ok_or(bad_message())?)
    }

    /// Hands the complete call to the client's callback service.
    pub(crate) fn deliver(self, length: usize) {
        let request = self.0;
        mem::forget(self);
        // SAFETY: By the type invariants; the service takes the request over, or frees it if it
        // is going away.
        unsafe {
            (&raw mut (*request).rq_private_buf)
                .copy_from_nonoverlapping(&raw const (*request).rq_rcv_buf, 1);
            (*request).rq_private_buf.len = length as u32;
            bindings::bc_mark_in_use(request);
            bindings::xprt_enqueue_bc_request(request);
        }
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; the transport is still there.
        unsafe {
            bindings::atomic_dec(&raw mut (*(*self.0).rq_xprt).bc_slot_count);
            release(self.0);
        }
    }
}

/// A request with its pages; null if there is no memory.
///
/// # Safety
///
/// `xprt` has to be valid.
unsafe fn allocate(xprt: *mut bindings::rpc_xprt) -> *mut bindings::rpc_rqst {
    let gfp = bindings::GFP_SUNRPC_PAGE;
    let size = mem::size_of::<bindings::rpc_rqst>();
    // SAFETY: Always safe to call where sleeping is allowed; what is allocated has the size of
    // what is written to it.
    unsafe {
        let request: *mut bindings::rpc_rqst = bindings::sunrpc_kmalloc(size, gfp).cast();
        if request.is_null() {
            return request;
        }
        request.write_bytes(0, 1);
        (*request).rq_xprt = xprt;
        for buffer in [
            &raw mut (*request).rq_rcv_buf,
            &raw mut (*request).rq_snd_buf,
        ] {
            let page = bindings::sunrpc_alloc_page(gfp);
            if page.is_null() {
                release(request);
                return core::ptr::null_mut();
            }
            *buffer = buffer::in_page(bindings::sunrpc_page_address(page));
        }
        (*request).rq_rcv_buf.len = PAGE_SIZE as u32;
        request
    }
}

/// Frees a request with its pages.
///
/// # Safety
///
/// `request` has to be one of [`allocate`], and nobody's any more.
unsafe fn release(request: *mut bindings::rpc_rqst) {
    // SAFETY: By the requirements of this function.
    unsafe {
        for buffer in [&(*request).rq_rcv_buf, &(*request).rq_snd_buf] {
            let [head] = buffer.head;
            if !head.iov_base.is_null() {
                bindings::sunrpc_put_page(bindings::sunrpc_page_of(head.iov_base));
            }
        }
        bindings::kfree(request.cast());
    }
}

/// # Safety
///
/// SUNRPC calls this with a request that was delivered, when it is done.
pub(crate) unsafe extern "C" fn free(request: *mut bindings::rpc_rqst) {
    // SAFETY: By the requirements of this function. Delivering took a reference to the transport.
    unsafe {
        let xprt = (*request).rq_xprt;
        release(request);
        bindings::xprt_put(xprt);
    }
}
