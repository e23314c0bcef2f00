// SPDX-License-Identifier: GPL-2.0

//! What makes SUNRPC's transports those of AF_VSOCK.

use crate::{access, THIS_MODULE};
use core::net::SocketAddrV6;
use kernel::prelude::*;
use sunrpc::{Family, Tables};
use vsock_proto::{
    mapping::{inet_port, CLIENT, SERVER},
    Address,
};

static TABLES: Tables<Vsock> = Tables::new(THIS_MODULE.as_ptr());

/// The family.
pub(crate) struct Vsock;

impl Family for Vsock {
    const SERVER_NAME: &'static CStr = c"vsock";

    /// "VS": nobody else's.
    const SERVER_IDENT: i32 = 0x5653;

    const CLIENT_NAME: &'static CStr = c"vsock";

    /// Mounts know no `proto=vsock`, but keep a place for RDMA, whether there is any or not. With
    /// this name a mount takes INET6 addresses; listings repeat it, so that `mount -o remount`
    /// understands its own output.
    const CLIENT_NETIDS: [&'static CStr; 2] = [c"rdma", c"rdma6"];

    /// `XPRT_TRANSPORT_RDMA`: mounts take this, TCP and UDP only.
    const CLIENT_IDENT: i32 = 256;

    fn tables() -> &'static Tables<Self> {
        &TABLES
    }

    fn admits(peer: Address) -> bool {
        access::admits(peer.cid)
    }

    fn client_address(client: Address) -> SocketAddrV6 {
        SocketAddrV6::new(SERVER.address(client.cid), inet_port(client.port), 0, 0)
    }

    fn server(address: SocketAddrV6) -> Option<Address> {
        let cid = CLIENT.cid(*address.ip())?;
        Some(Address::new(cid, u32::from(address.port())))
    }
}
