// SPDX-License-Identifier: GPL-2.0

//! `struct sockaddr_vm` and the addresses of the protocol.

use rvsock_bindings::bindings;
use vsock_proto::Address;

/// Any CID, and the CID of a guest whose device has none (`VMADDR_CID_ANY`).
pub const CID_ANY: u32 = u32::MAX;
/// This machine (`VMADDR_CID_LOCAL`).
pub const CID_LOCAL: u32 = bindings::VMADDR_CID_LOCAL;
/// The host, as seen from a guest (`VMADDR_CID_HOST`).
pub const CID_HOST: u32 = bindings::VMADDR_CID_HOST;

/// An initialized `sockaddr_vm`, for look-ups.
pub(crate) fn to_sockaddr(address: Address) -> bindings::sockaddr_vm {
    let mut out: bindings::sockaddr_vm = pin_init::zeroed();
    set_sockaddr(&mut out, address);
    out
}

/// Sets family, CID and port, and clears the rest (`vsock_addr_init()`).
pub(crate) fn set_sockaddr(out: &mut bindings::sockaddr_vm, address: Address) {
    *out = pin_init::zeroed();
    out.svm_family = bindings::AF_VSOCK as u16;
    out.svm_cid = address.cid;
    out.svm_port = address.port;
}

/// CID and port of a `sockaddr_vm`.
#[inline]
pub(crate) fn from_sockaddr(address: &bindings::sockaddr_vm) -> Address {
    Address::new(address.svm_cid, address.svm_port)
}
