// SPDX-License-Identifier: GPL-2.0

//! XDR buffers: a head, pages and a tail.
//!
//! C header: [`include/linux/sunrpc/xdr.h`](srctree/include/linux/sunrpc/xdr.h)

use core::ptr;
use kernel::{
    alloc::Flags,
    bindings::gfp_t,
    error::to_result,
    ffi::{c_int, c_void},
    page::PAGE_SIZE,
    prelude::*,
};
use rvsock_bindings::bindings;

/// Pieces around the pages: marker, head and tail.
const AROUND: usize = 3;

/// A piece of memory of the linear mapping, such as that of `kmalloc()`; never of a stack.
pub(crate) fn piece(memory: &[u8]) -> bindings::bio_vec {
    let mut out: bindings::bio_vec = pin_init::zeroed();
    let start = memory.as_ptr().cast_mut().cast();
    // SAFETY: The memory is valid; where it is, is only computed here.
    unsafe { bindings::sunrpc_bvec_set_virt(&mut out, start, memory.len() as u32) };
    out
}

/// Appends a piece where there is room for it.
pub(crate) fn push(pieces: &mut KVVec<bindings::bio_vec>, piece: bindings::bio_vec) -> Result {
    pieces.push_within_capacity(piece).map_err(|_| ENOMEM)
}

/// Pages of a buffer.
pub(crate) fn page_count(buffer: &bindings::xdr_buf) -> usize {
    let (base, length) = (buffer.page_base as usize, buffer.page_len as usize);
    if length == 0 {
        return 0;
    }
    base.saturating_add(length).div_ceil(PAGE_SIZE)
}

/// The pieces of a marker and a buffer.
///
/// # Safety
///
/// The buffer has to be valid.
pub(crate) unsafe fn pieces(
    marker: &[u8],
    buffer: &bindings::xdr_buf,
    gfp: Flags,
) -> Result<KVVec<bindings::bio_vec>> {
    let room = page_count(buffer).checked_add(AROUND).ok_or(EMSGSIZE)?;
    let mut pieces = KVVec::with_capacity(room, gfp)?;
    let (first, rest) = pieces
        .spare_capacity_mut()
        .split_first_mut()
        .ok_or(ENOMEM)?;
    first.write(piece(marker));
    let size = rest.len().min(u32::MAX as usize) as u32;
    // SAFETY: The buffer is valid by the requirements of this function, and there is room for that
    // many pieces.
    let count = unsafe { bindings::xdr_buf_to_bvec(rest.as_mut_ptr().cast(), size, buffer) };
    to_result(count)?;
    // SAFETY: That many were written just now, within the capacity.
    unsafe { pieces.inc_len((count as usize).wrapping_add(1)) };
    Ok(pieces)
}

/// Allocates the buffers of a task's call and reply, in one piece.
///
/// # Safety
///
/// `task` has to have a request.
pub(crate) unsafe extern "C" fn alloc(task: *mut bindings::rpc_task) -> c_int {
    // SAFETY: By the requirements of this function.
    unsafe {
        let request = (*task).tk_rqstp;
        let size = (*request).rq_callsize.saturating_add((*request).rq_rcvsize);
        let memory = bindings::sunrpc_kmalloc(size, bindings::rpc_task_gfp_mask());
        if memory.is_null() {
            // The task tries again a little later.
            return ENOMEM.to_errno();
        }
        (*request).rq_buffer = memory;
        (*request).rq_rbuffer = memory.cast::<u8>().add((*request).rq_callsize).cast();
    }
    0
}

/// Frees what [`alloc`] allocated.
///
/// # Safety
///
/// `task` has to have a request whose buffers are of [`alloc`].
pub(crate) unsafe extern "C" fn free(task: *mut bindings::rpc_task) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::kfree((*(*task).tk_rqstp).rq_buffer.cast_const()) }
}

/// Gives a buffer the array of pieces that receiving needs; the core frees it (`xdr_free_bvec()`).
///
/// # Safety
///
/// `buffer` has to be valid and belong to a request that nobody else works on.
pub(crate) unsafe extern "C" fn prepare(
    _request: *mut bindings::rpc_rqst,
    buffer: *mut bindings::xdr_buf,
) -> c_int {
    // SAFETY: By the requirements of this function.
    let buffer = unsafe { &mut *buffer };
    let count = page_count(buffer);
    if count == 0 || !buffer.bvec.is_null() {
        return 0;
    }
    // SAFETY: Always safe to call.
    let gfp: gfp_t = unsafe { bindings::rpc_task_gfp_mask() };
    let Some(size) = count.checked_mul(core::mem::size_of::<bindings::bio_vec>()) else {
        return EMSGSIZE.to_errno();
    };
    // SAFETY: The array has room for that many pieces, and the buffer that many pages (some of
    // which may be missing still).
    unsafe {
        let pieces = bindings::sunrpc_kmalloc(size, gfp).cast::<bindings::bio_vec>();
        if pieces.is_null() {
            return ENOMEM.to_errno();
        }
        for at in 0..count {
            pieces.add(at).write(bindings::bio_vec {
                bv_page: *buffer.pages.add(at),
                bv_len: PAGE_SIZE as u32,
                bv_offset: 0,
            });
        }
        buffer.bvec = pieces;
    }
    0
}

/// Allocates the pages that are missing for the first `length` bytes of the buffer's page part;
/// how many bytes there is memory for then.
///
/// # Safety
///
/// The buffer has to be valid, pinned and prepared.
pub(crate) unsafe fn fill_sparse(buffer: &mut bindings::xdr_buf, length: usize) -> usize {
    if buffer.flags & bindings::XDRBUF_SPARSE_PAGES == 0 {
        return length;
    }
    let base = buffer.page_base as usize;
    let count = base.saturating_add(length).div_ceil(PAGE_SIZE);
    for at in 0..count.min(page_count(buffer)) {
        // SAFETY: By the requirements of this function there are that many.
        let (slot, piece) = unsafe { (&mut *buffer.pages.add(at), &mut *buffer.bvec.add(at)) };
        if !slot.is_null() {
            continue;
        }
        let gfp = bindings::GFP_SUNRPC_PAGE;
        // SAFETY: Always safe to call where sleeping is allowed.
        *slot = unsafe { bindings::sunrpc_alloc_page(gfp) };
        piece.bv_page = *slot;
        if slot.is_null() {
            return at.saturating_mul(PAGE_SIZE).saturating_sub(base);
        }
    }
    length
}

/// An empty buffer in a page.
///
/// # Safety
///
/// `memory` has to be a page.
pub(crate) unsafe fn in_page(memory: *mut c_void) -> bindings::xdr_buf {
    let mut out: bindings::xdr_buf = pin_init::zeroed();
    if let Some(head) = out.head.first_mut() {
        head.iov_base = memory;
        head.iov_len = PAGE_SIZE;
    }
    out.pages = ptr::null_mut();
    out.buflen = PAGE_SIZE as u32;
    out
}

/// Copies a message into the head of a buffer; whether it fits.
pub(crate) fn fill_head(buffer: &mut bindings::xdr_buf, message: &[u8]) -> bool {
    let Some(head) = buffer.head.first_mut() else {
        return false;
    };
    if head.iov_len < message.len() {
        return false;
    }
    // SAFETY: The head of a buffer is memory of its length.
    unsafe { ptr::copy_nonoverlapping(message.as_ptr(), head.iov_base.cast(), message.len()) };
    true
}
