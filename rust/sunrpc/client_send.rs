// SPDX-License-Identifier: GPL-2.0

//! How a client sends.

use crate::{
    buffer,
    client::{Client, Link},
    errors::not_connected,
    message::without_waiting,
    Family,
};
use kernel::{ffi::c_int, prelude::*, sync::atomic::ordering};
use rvsock_bindings::bindings;
use socket::Pieces;
use vsock_proto::{Marker, MARKER_LEN};

impl<F: Family> Client<F> {
    /// # Safety
    ///
    /// SUNRPC calls this with a request of such a transport, whose `XPRT_LOCKED` is held.
    pub(crate) unsafe extern "C" fn send_request(request: *mut bindings::rpc_rqst) -> c_int {
        // SAFETY: By the requirements of this function.
        let (this, request) = unsafe { (Self::from_raw((*request).rq_xprt), &mut *request) };
        let Some(link) = this.link() else {
            return not_connected().to_errno();
        };
        // SAFETY: As above: this is ours while `XPRT_LOCKED` is held.
        let sent = unsafe { &mut *this.sent.get() };
        if *sent != 0 && request.rq_bytes_sent == 0 {
            // The message before this one was cut off: the stream makes no sense any more.
            this.disconnect();
            return not_connected().to_errno();
        }
        // SAFETY: Always safe to call.
        request.rq_xtime = unsafe { bindings::ktime_get() };
        // SAFETY: The request is valid, and stays so while this function runs.
        match unsafe { send(&link, request, sent) } {
            Ok(true) => {
                request.rq_xmit_bytes_sent = request.rq_xmit_bytes_sent.wrapping_add(*sent);
                *sent = 0;
                0
            }
            Ok(false) => this.wait_for_room(&link),
            Err(error) if error == ENOMEM => -(bindings::ENOBUFS as c_int),
            Err(_) => {
                this.disconnect();
                not_connected().to_errno()
            }
        }
    }

    /// Lets the task wait until there may be room.
    fn wait_for_room(&self, link: &Link<F>) -> c_int {
        let xprt = self.xprt();
        // SAFETY: The transport is valid.
        let is_connected = unsafe {
            bindings::spin_lock(&raw mut (*xprt).transport_lock);
            let is_connected = bindings::xprt_is_connected(xprt);
            if is_connected {
                self.wants_room.store(1, ordering::Relaxed);
                bindings::xprt_wait_for_buffer_space(xprt);
            }
            bindings::spin_unlock(&raw mut (*xprt).transport_lock);
            is_connected
        };
        if !is_connected {
            return not_connected().to_errno();
        }
        // Room may have come before the flag was there to be seen.
        kernel::sync::barrier::smp_mb();
        if link.socket.is_writable() {
            self.report_soon();
        }
        EAGAIN.to_errno()
    }

    /// # Safety
    ///
    /// SUNRPC calls this with a request of such a transport that is given up.
    pub(crate) unsafe extern "C" fn abort_send_request(request: *mut bindings::rpc_rqst) {
        // SAFETY: By the requirements of this function; `XPRT_LOCKED` is held.
        unsafe {
            let this = Self::from_raw((*request).rq_xprt);
            if *this.sent.get() != 0 && !bindings::xprt_is_closing(this.xprt()) {
                this.disconnect();
            }
        }
    }
}

/// Sends the rest of a request, as far as there is room; whether that was all.
///
/// # Safety
///
/// The request has to be valid.
unsafe fn send<F: Family>(
    link: &Link<F>,
    request: &mut bindings::rpc_rqst,
    sent: &mut usize,
) -> Result<bool> {
    let message = &request.rq_snd_buf;
    let marker = Marker::of_record(message.len).ok_or(EMSGSIZE)?;
    let marker = KBox::new(marker.to_bytes(), without_waiting())?;
    // SAFETY: The buffer is valid by the requirements of this function.
    let pieces = unsafe { buffer::pieces(&marker[..], message, without_waiting())? };
    let total = (message.len as usize).saturating_add(MARKER_LEN);
    while *sent < total {
        // SAFETY: The pieces are the marker and the buffer, that long together.
        let all = unsafe { Pieces::new(&pieces, total) };
        match link.socket.send_pieces(all, *sent) {
            Ok(count) => *sent = sent.saturating_add(count).min(total),
            Err(error) if error == EAGAIN => break,
            Err(error) => return Err(error),
        }
        request.rq_bytes_sent = *sent as u32;
    }
    Ok(*sent == total)
}
