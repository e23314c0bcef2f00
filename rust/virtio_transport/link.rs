// SPDX-License-Identifier: GPL-2.0

//! The link from a guest to its host.

use crate::{
    device::{CLOSE_QUEUE, DEVICE},
    THIS_MODULE,
};
use af_vsock::{Net, Sock, Vtable, CID_ANY};
use kernel::prelude::*;
use rvsock_bindings::WorkQueue;
use vsock_transport::{Engine, Link, Packet};

/// The link over the device, if there is one.
pub(crate) struct Guest;

/// The C table. Tools look for it in kallsyms by the name it has in C.
#[export_name = "virtio_transport"]
static TRANSPORT: Vtable<Engine<Guest>> = Vtable::new(THIS_MODULE.as_ptr());

impl Link for Guest {
    /// The host forwards what is for other guests, if it does.
    const ROUTES: bool = true;

    /// Devices in user space take a header and one buffer, no more.
    const CONTIGUOUS: bool = true;

    /// For the same reason: pages of files are rarely contiguous.
    const SPLICES: bool = false;

    fn vtable() -> &'static Vtable<Engine<Self>> {
        &TRANSPORT
    }

    fn local_cid() -> u32 {
        DEVICE.with(|device| device.cid()).unwrap_or(CID_ANY)
    }

    fn has_remote_cid(_sock: &Sock, _cid: u32) -> bool {
        true
    }

    /// The device belongs to no namespace: sockets in global mode reach it.
    fn stream_allow(sock: &Sock) -> bool {
        sock.is_global()
    }

    fn seqpacket_allow(sock: &Sock, _cid: u32) -> bool {
        sock.is_global()
            && DEVICE
                .with(|device| device.has_seqpacket())
                .unwrap_or(false)
    }

    fn send(packet: KBox<Packet<Self>>, _net: Net<'_>) -> Result {
        let device = DEVICE.get().ok_or(ENODEV)?;
        // To this guest: the loopback transport should have been chosen.
        if packet.header.destination.cid == device.cid() {
            return Err(ENODEV);
        }
        device.send(packet)
    }

    fn cancel(sock: &Sock) -> Result {
        DEVICE.get().ok_or(ENODEV)?.cancel(sock);
        Ok(())
    }

    fn settle() {
        if let Some(device) = DEVICE.get() {
            device.transmit();
        }
    }

    fn takes_pieces(pieces: usize) -> bool {
        DEVICE
            .with(|device| pieces <= device.pieces_max())
            .unwrap_or(false)
    }

    fn with_close_queue(f: impl FnOnce(&WorkQueue)) -> Option<()> {
        CLOSE_QUEUE.with(f)
    }
}
