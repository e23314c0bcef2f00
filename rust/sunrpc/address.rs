// SPDX-License-Identifier: GPL-2.0

//! Addresses as SUNRPC knows them: `struct sockaddr_in6`.

use core::{mem, net::Ipv6Addr, net::SocketAddrV6};
use rvsock_bindings::bindings;

/// Bytes of an address.
pub(crate) const LEN: usize = mem::size_of::<bindings::sockaddr_in6>();

/// The address for C.
pub(crate) fn to_sockaddr(address: SocketAddrV6) -> bindings::sockaddr_in6 {
    let mut out: bindings::sockaddr_in6 = pin_init::zeroed();
    out.sin6_family = bindings::AF_INET6 as u16;
    out.sin6_port = address.port().to_be();
    out.sin6_addr.in6_u.u6_addr8 = address.ip().octets();
    out
}

/// The address behind a `sockaddr`; `None` if it is not of INET6.
///
/// # Safety
///
/// `address` has to be valid for `length` bytes, and for its family in any case.
pub(crate) unsafe fn from_sockaddr(
    address: *const bindings::sockaddr,
    length: usize,
) -> Option<SocketAddrV6> {
    // SAFETY: By the requirements of this function.
    if length < LEN || u32::from(unsafe { (*address).sa_family }) != bindings::AF_INET6 {
        return None;
    }
    // SAFETY: As above; all that the union may hold are bytes.
    let (ip, port) = unsafe {
        let address = address.cast::<bindings::sockaddr_in6>().read_unaligned();
        (address.sin6_addr.in6_u.u6_addr8, address.sin6_port)
    };
    Some(SocketAddrV6::new(
        Ipv6Addr::from(ip),
        u16::from_be(port),
        0,
        0,
    ))
}
