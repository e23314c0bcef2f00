// SPDX-License-Identifier: GPL-2.0

//! The tracepoints `vsock:virtio_transport_alloc_pkt` and `vsock:virtio_transport_recv_pkt`.
//!
//! They live in the module `vsock_trace_rs`.

use rvsock_bindings::bindings;
use vsock_proto::Header;

/// A packet was made.
#[inline]
pub fn trace_allocated(header: &Header, zerocopy: bool) {
    // SAFETY: The wire form is read during the call.
    unsafe {
        if bindings::trace_alloc_pkt_enabled() {
            bindings::trace_alloc_pkt(header.encode().as_ptr().cast(), zerocopy);
        }
    }
}

/// A packet came in.
#[inline]
pub fn trace_received(header: &Header) {
    // SAFETY: As above.
    unsafe {
        if bindings::trace_recv_pkt_enabled() {
            bindings::trace_recv_pkt(header.encode().as_ptr().cast());
        }
    }
}
