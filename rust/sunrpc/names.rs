// SPDX-License-Identifier: GPL-2.0

//! How a transport of a client is called in listings.

use crate::Family;
use core::{marker::PhantomData, net::SocketAddrV6};
use kernel::{prelude::*, str::CString};
use rvsock_bindings::bindings;

/// The texts behind `rpc_xprt::address_strings`, except those that never change.
pub(crate) struct Names<F> {
    address: CString,
    port: CString,
    hex_address: CString,
    hex_port: CString,
    _family: PhantomData<F>,
}

impl<F: Family> Names<F> {
    /// The names of a transport to this address.
    pub(crate) fn new(address: SocketAddrV6) -> Result<Self> {
        let (ip, port) = (address.ip().to_bits(), address.port());
        let text = |group: u32| (ip >> (112 - 16 * group.min(7))) as u16;
        Ok(Self {
            // All groups in full: the library's formatting may panic, as far as can be seen.
            address: CString::try_from_fmt(fmt!(
                "{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}",
                text(0),
                text(1),
                text(2),
                text(3),
                text(4),
                text(5),
                text(6),
                text(7)
            ))?,
            port: CString::try_from_fmt(fmt!("{port}"))?,
            hex_address: CString::try_from_fmt(fmt!("{ip:032x}"))?,
            hex_port: CString::try_from_fmt(fmt!("{port:4x}"))?,
            _family: PhantomData,
        })
    }

    /// Gives a transport its names.
    ///
    /// # Safety
    ///
    /// `xprt` has to be valid, and must not be used for longer than these names.
    pub(crate) unsafe fn give(&self, xprt: *mut bindings::rpc_xprt) {
        let [_, netid] = F::CLIENT_NETIDS;
        let names = [
            (
                bindings::rpc_display_format_t_RPC_DISPLAY_ADDR,
                &*self.address,
            ),
            (bindings::rpc_display_format_t_RPC_DISPLAY_PORT, &self.port),
            (
                bindings::rpc_display_format_t_RPC_DISPLAY_PROTO,
                F::CLIENT_NAME,
            ),
            (
                bindings::rpc_display_format_t_RPC_DISPLAY_HEX_ADDR,
                &self.hex_address,
            ),
            (
                bindings::rpc_display_format_t_RPC_DISPLAY_HEX_PORT,
                &self.hex_port,
            ),
            (bindings::rpc_display_format_t_RPC_DISPLAY_NETID, netid),
        ];
        for (at, name) in names {
            // SAFETY: The transport is valid by the requirements of this function.
            if let Some(slot) = unsafe { (*xprt).address_strings.get_mut(at as usize) } {
                *slot = name.as_char_ptr();
            }
        }
    }
}
