// SPDX-License-Identifier: GPL-2.0

//! The way of a server's callbacks, on a connection that a client has made.

use crate::{
    address, buffer, connection::Connection, errors::not_connected, names::Names,
    request::PREAMBLE_LEN, seconds, stats, Family,
};
use core::mem;
use kernel::{
    ffi::{c_int, c_ulong},
    page::PAGE_SIZE,
    prelude::*,
};
use rvsock_bindings::bindings;

/// Requests under way, as for TCP.
const SLOTS: u32 = 2;

static TIMEOUT: bindings::rpc_timeout = bindings::rpc_timeout {
    to_initval: seconds(60) as c_ulong,
    to_maxval: seconds(60) as c_ulong,
    to_increment: 0,
    to_retries: 2,
    to_exponential: 0,
};

/// A `struct rpc_xprt` of a back channel, and its names.
#[repr(C)]
struct BackChannel<F> {
    xprt: bindings::rpc_xprt,
    names: Names<F>,
}

/// The table of the operations.
pub(crate) const fn operations<F: Family>() -> bindings::rpc_xprt_ops {
    let mut table: bindings::rpc_xprt_ops = pin_init::zeroed();
    table.reserve_xprt = Some(bindings::xprt_reserve_xprt);
    table.release_xprt = Some(bindings::xprt_release_xprt);
    table.alloc_slot = Some(bindings::xprt_alloc_slot);
    table.free_slot = Some(bindings::xprt_free_slot);
    table.buf_alloc = Some(buffer::alloc);
    table.buf_free = Some(buffer::free);
    table.send_request = Some(send_request::<F>);
    table.wait_for_reply_request = Some(bindings::xprt_wait_for_reply_request_def);
    table.close = Some(bindings::xprt_disconnect_done);
    table.destroy = Some(destroy::<F>);
    table.print_stats = Some(print_stats);
    table.enable_swap = Some(refuse_swap);
    table.disable_swap = Some(ignore);
    table.inject_disconnect = Some(bindings::xprt_disconnect_done);
    table
}

/// # Safety
///
/// SUNRPC calls this with valid arguments.
pub(crate) unsafe extern "C" fn set_up<F: Family>(
    arguments: *mut bindings::xprt_create,
) -> *mut bindings::rpc_xprt {
    // SAFETY: By the requirements of this function.
    match unsafe { create::<F>(&*arguments) } {
        Ok(xprt) => xprt,
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
///
/// The arguments have to be valid.
unsafe fn create<F: Family>(arguments: &bindings::xprt_create) -> Result<*mut bindings::rpc_xprt> {
    let connection = arguments.bc_xprt;
    // SAFETY: If there is a connection, it is valid.
    let (address, is_ours) = unsafe {
        let address = address::from_sockaddr(arguments.dstaddr, arguments.addrlen);
        let tables = F::tables();
        let is_ours =
            !connection.is_null() && (*connection).xpt_ops == tables.connection_operations();
        (address.ok_or(EINVAL)?, is_ours)
    };
    if !is_ours {
        return Err(EINVAL);
    }
    let names = Names::<F>::new(address)?;
    F::tables().hold_module()?;
    let size = mem::size_of::<BackChannel<F>>();
    // SAFETY: The arguments are valid; the size is that of a structure which begins with the
    // transport.
    let xprt = unsafe { bindings::xprt_alloc(arguments.net, size, SLOTS, SLOTS) };
    if xprt.is_null() {
        F::tables().release_module();
        return Err(ENOMEM);
    }
    // SAFETY: The transport is new. The connection lives at least as long as its back channel is
    // used, and has a reference to it.
    unsafe {
        let names_of = &raw mut (*xprt.cast::<BackChannel<F>>()).names;
        names_of.write(names);
        (*names_of).give(xprt);
        (&raw mut (*xprt).addr)
            .cast::<u8>()
            .copy_from_nonoverlapping(arguments.dstaddr.cast(), address::LEN);
        (*xprt).addrlen = address::LEN;
        (*xprt).prot = bindings::IPPROTO_TCP as c_int;
        (*xprt).xprt_class = F::tables().back_channel();
        (*xprt).max_payload = vsock_proto::record::MAX_FRAGMENT as usize;
        (*xprt).timeout = &TIMEOUT;
        (*xprt).ops = F::tables().back_channel_operations();
        bindings::xprt_mark_bound(xprt);
        bindings::xprt_mark_connected(xprt);
        bindings::xprt_get(xprt);
        (*connection).xpt_bc_xprt = xprt;
        (*xprt).bc_xprt = connection;
    }
    Ok(xprt)
}

/// # Safety
///
/// SUNRPC calls this with a request of such a transport.
unsafe extern "C" fn send_request<F: Family>(request: *mut bindings::rpc_rqst) -> c_int {
    // SAFETY: By the requirements of this function.
    match unsafe { send::<F>(&mut *request) } {
        Ok(()) => 0,
        Err(error) if error == not_connected() => error.to_errno(),
        Err(_) => EAGAIN.to_errno(),
    }
}

/// # Safety
///
/// The request has to be one of such a transport.
unsafe fn send<F: Family>(request: &mut bindings::rpc_rqst) -> Result {
    // SAFETY: The connection is there as long as requests are made for it.
    let connection = unsafe { (*request.rq_xprt).bc_xprt };
    // SAFETY: As above.
    if unsafe { bindings::svc_xprt_dead(connection) } {
        return Err(not_connected());
    }
    let [head] = request.rq_snd_buf.head;
    let length = request.rq_snd_buf.len as usize;
    // Callbacks are a few hundred bytes.
    if head.iov_len != length || !(PREAMBLE_LEN..=PAGE_SIZE).contains(&length) {
        return Err(EMSGSIZE);
    }
    // SAFETY: The head of a buffer is memory of its length.
    let bytes = unsafe { core::slice::from_raw_parts(head.iov_base.cast::<u8>(), length) };
    // SAFETY: Always safe to call.
    request.rq_xtime = unsafe { bindings::ktime_get() };
    // SAFETY: `create` has made sure that the connection is one of this family.
    unsafe { Connection::<F>::send_copy(connection, bytes)? };
    request.rq_bytes_sent = length as u32;
    request.rq_xmit_bytes_sent = request.rq_xmit_bytes_sent.wrapping_add(length);
    Ok(())
}

/// # Safety
///
/// SUNRPC calls this at the end of such a transport.
unsafe extern "C" fn destroy<F: Family>(xprt: *mut bindings::rpc_xprt) {
    // SAFETY: The last reference to what `create` has made.
    unsafe {
        let names = (&raw const (*xprt.cast::<BackChannel<F>>()).names).read();
        bindings::xprt_free(xprt);
        drop(names);
    }
    F::tables().release_module();
}

/// # Safety
///
/// SUNRPC calls this with valid arguments.
unsafe extern "C" fn print_stats(xprt: *mut bindings::rpc_xprt, file: *mut bindings::seq_file) {
    // SAFETY: By the requirements of this function.
    unsafe { stats::print(xprt, file, 0) }
}

/// Swapping over NFS needs memory reserves that AF_VSOCK does not have.
///
/// # Safety
///
/// None.
pub(crate) unsafe extern "C" fn refuse_swap(_xprt: *mut bindings::rpc_xprt) -> c_int {
    EINVAL.to_errno()
}

/// # Safety
///
/// None.
pub(crate) unsafe extern "C" fn ignore(_xprt: *mut bindings::rpc_xprt) {}
