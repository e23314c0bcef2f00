// SPDX-License-Identifier: GPL-2.0

//! The link from the host to its guests.

use crate::{registry, THIS_MODULE};
use af_vsock::{Net, Sock, Vtable, CID_HOST};
use kernel::prelude::*;
use rvsock_bindings::{RcuSlot, WorkQueue};
use vsock_transport::{Engine, Link, Packet};

/// Where closed sockets wait for their peers.
pub(crate) static CLOSE_QUEUE: RcuSlot<WorkQueue> = RcuSlot::new();

/// The link over all guests' devices.
pub(crate) struct Host;

/// The C table. Tools look for it in kallsyms by the name it has in C.
#[export_name = "vhost_transport"]
static TRANSPORT: Vtable<Engine<Host>> = Vtable::new(THIS_MODULE.as_ptr());

impl Link for Host {
    const ROUTES: bool = true;
    const MERGES: bool = true;

    fn vtable() -> &'static Vtable<Engine<Self>> {
        &TRANSPORT
    }

    fn local_cid() -> u32 {
        CID_HOST
    }

    fn has_remote_cid(sock: &Sock, cid: u32) -> bool {
        registry::find(cid, sock.net()).is_some()
    }

    /// Which guests a namespace reaches is decided when they are looked up.
    fn stream_allow(_sock: &Sock) -> bool {
        true
    }

    fn seqpacket_allow(sock: &Sock, cid: u32) -> bool {
        registry::find(cid, sock.net()).is_some_and(|guest| guest.has_seqpacket())
    }

    fn send(packet: KBox<Packet<Self>>, net: Net<'_>) -> Result {
        registry::find(packet.header.destination.cid, net)
            .ok_or(ENODEV)?
            .send(packet)
    }

    fn cancel(sock: &Sock) -> Result {
        let (_, remote) = sock.peek();
        registry::find(remote.cid, sock.net())
            .ok_or(ENODEV)?
            .cancel(sock);
        Ok(())
    }

    /// A guest went away or booted anew: its connections end, those of others do not.
    fn reset_connected(sock: &Sock) {
        let (_, remote) = sock.peek();
        if registry::find(remote.cid, sock.net()).is_none_or(|guest| guest.has_rebooted()) {
            sock.orphan_unlocked();
        }
    }

    fn with_close_queue(f: impl FnOnce(&WorkQueue)) -> Option<()> {
        CLOSE_QUEUE.with(f)
    }
}
