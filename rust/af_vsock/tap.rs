// SPDX-License-Identifier: GPL-2.0

//! Packet capture on vsockmon devices.
//!
//! C header: [`include/uapi/linux/vsockmon.h`](srctree/include/uapi/linux/vsockmon.h)

use crate::SkBuff;
use core::{ffi::c_void, mem::size_of};
use kernel::{prelude::*, transmute::AsBytes};
use rvsock_bindings::bindings;
use vsock_proto::{Header, Operation, HEADER_LEN};

/// Where the payload of a captured packet lies.
#[derive(Clone, Copy)]
pub enum TapPayload<'a> {
    /// In memory; empty for packets without payload.
    Bytes(&'a [u8]),
    /// In an sk_buff.
    Buffer(&'a SkBuff),
    /// In an sk_buff: from an offset on, so many bytes.
    Part(&'a SkBuff, u32, u32),
}

impl TapPayload<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Buffer(skb) => skb.len() as usize,
            Self::Part(_, _, len) => *len as usize,
        }
    }
}

struct Packet<'a> {
    header: &'a Header,
    payload: TapPayload<'a>,
}

/// Shows a packet to everybody who captures (`virtio_transport_deliver_tap_pkt()`).
///
/// Nearly free if nobody does. Does not sleep. A capture misses packets if there is no memory.
#[inline]
pub fn deliver_tap(header: &Header, payload: TapPayload<'_>) {
    let packet = Packet { header, payload };
    let opaque = core::ptr::from_ref(&packet).cast_mut().cast();
    // SAFETY: The callback is only called during this call, with `opaque`.
    unsafe { bindings::vsock_deliver_tap(Some(build), opaque) }
}

/// # Safety
///
/// `opaque` is a [`Packet`].
unsafe extern "C" fn build(opaque: *mut c_void) -> *mut bindings::sk_buff {
    // SAFETY: By the requirements of this function.
    let packet = unsafe { &*opaque.cast::<Packet<'_>>() };
    packet.capture().map_or(core::ptr::null_mut(), |skb| {
        let raw = skb.as_raw();
        core::mem::forget(skb);
        raw
    })
}

impl Packet<'_> {
    /// The frame for a capture: what vsockmon says of the packet, its header, its payload.
    fn capture(&self) -> Result<SkBuff> {
        const HEADERS: usize = size_of::<bindings::af_vsockmon_hdr>() + HEADER_LEN;
        let len = HEADERS.saturating_add(self.payload.len());
        let mut skb = SkBuff::with_room(len, bindings::GFP_ATOMIC)?;
        skb.put(MonitorHeader(self.monitor_header()).as_bytes());
        skb.put(&self.header.encode());
        match self.payload {
            TapPayload::Bytes(bytes) => skb.put(bytes),
            TapPayload::Buffer(from) => skb.put_from(from, 0, from.len())?,
            TapPayload::Part(from, offset, len) => skb.put_from(from, offset, len)?,
        }
        Ok(skb)
    }

    fn monitor_header(&self) -> bindings::af_vsockmon_hdr {
        bindings::af_vsockmon_hdr {
            src_cid: u64::from(self.header.source.cid).to_le(),
            dst_cid: u64::from(self.header.destination.cid).to_le(),
            src_port: self.header.source.port.to_le(),
            dst_port: self.header.destination.port.to_le(),
            op: (monitor_operation(self.header.operation) as u16).to_le(),
            transport: (bindings::af_vsockmon_transport_AF_VSOCK_TRANSPORT_VIRTIO as u16).to_le(),
            len: (HEADER_LEN as u16).to_le(),
            reserved: [0; 2],
        }
    }
}

fn monitor_operation(operation: Operation) -> bindings::af_vsockmon_op {
    match operation {
        Operation::Request | Operation::Response => bindings::af_vsockmon_op_AF_VSOCK_OP_CONNECT,
        Operation::Reset | Operation::Shutdown => bindings::af_vsockmon_op_AF_VSOCK_OP_DISCONNECT,
        Operation::ReadWrite => bindings::af_vsockmon_op_AF_VSOCK_OP_PAYLOAD,
        Operation::CreditUpdate | Operation::CreditRequest => {
            bindings::af_vsockmon_op_AF_VSOCK_OP_CONTROL
        }
        Operation::Invalid | Operation::Unknown(_) => bindings::af_vsockmon_op_AF_VSOCK_OP_UNKNOWN,
    }
}

#[repr(transparent)]
struct MonitorHeader(bindings::af_vsockmon_hdr);

// SAFETY: `af_vsockmon_hdr` consists of integers without padding: 8 + 8 + 4 + 4 + 2 + 2 + 2 + 2.
unsafe impl AsBytes for MonitorHeader {}
