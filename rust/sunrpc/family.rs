// SPDX-License-Identifier: GPL-2.0

//! What a module decides about its transports.

use crate::Tables;
use core::net::SocketAddrV6;
use kernel::prelude::*;
use vsock_proto::Address;

/// Who may call, and how peers are called.
pub trait Family: Sized + Sync + 'static {
    /// What `portlist` of nfsd calls the server class.
    const SERVER_NAME: &'static CStr;

    /// What tells the server's callbacks from those of other classes; a number of one's own.
    const SERVER_IDENT: i32;

    /// What the client class is for `proto=`, and the name of that in listings.
    const CLIENT_NAME: &'static CStr;

    /// What `proto=` of a mount finds the client class by. The last is the one that listings show.
    const CLIENT_NETIDS: [&'static CStr; 2];

    /// The number that stands for those names.
    const CLIENT_IDENT: i32;

    /// The C tables of the module.
    fn tables() -> &'static Tables<Self>;

    /// Whether calls of a peer are carried out. Asked for every call; may not sleep.
    fn admits(peer: Address) -> bool;

    /// The address under which servers know a client.
    fn client_address(client: Address) -> SocketAddrV6;

    /// The server that a client means by an address; `None` if it is none of this family.
    fn server(address: SocketAddrV6) -> Option<Address>;
}
