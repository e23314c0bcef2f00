// SPDX-License-Identifier: GPL-2.0

//! What carries packets between two engines.

use crate::{Engine, Packet};
use af_vsock::{Net, Sock, Vtable};
use kernel::prelude::*;
use rvsock_bindings::WorkQueue;
use vsock_proto::MAX_PAYLOAD;

/// A way to the other end: a loop on this machine, a virtio device, a vhost device.
///
/// A link never looks into a connection. It keeps the packets of a socket in order.
pub trait Link: Sized + Send + Sync + 'static {
    /// Whether [`Link::has_remote_cid`] has something to say.
    const ROUTES: bool = false;

    /// Whether payload has to lie in one physically contiguous piece, zero-copy sends excepted.
    const CONTIGUOUS: bool = false;

    /// Whether payload may refer to pages of files and pipes, if the sender asks for that
    /// (`MSG_SPLICE_PAGES`). It lies in many pieces then.
    const SPLICES: bool = true;

    /// Whether packets wait where [`PacketQueue::merge`](crate::PacketQueue::merge) finds them: small
    /// ones of a connection that has some waiting get room for those that follow.
    const MERGES: bool = false;

    /// Most bytes of payload in a packet that is not sent by zero copy.
    const PAYLOAD_MAX: u32 = MAX_PAYLOAD;

    /// The table of this transport; a `static` of the module.
    fn vtable() -> &'static Vtable<Engine<Self>>;

    /// CID of this end; [`CID_ANY`](af_vsock::CID_ANY) if it has none.
    fn local_cid() -> u32;

    /// CID that packets of a socket come from whose own is `bound`. Usually not that one: a guest's
    /// may have changed since.
    fn source_cid(_bound: u32) -> u32 {
        Self::local_cid()
    }

    /// Whether `cid` can be reached.
    fn has_remote_cid(_sock: &Sock, _cid: u32) -> bool {
        false
    }

    /// Whether `sock` may connect.
    fn stream_allow(sock: &Sock) -> bool;

    /// Whether `sock` may exchange messages with `cid`.
    fn seqpacket_allow(sock: &Sock, cid: u32) -> bool;

    /// Sends a packet, or queues it for that. `net` is the namespace it comes from.
    ///
    /// Called with the socket lock held, and from receiving: must not wait for the other end, nor
    /// take a socket lock. A packet that cannot be sent is dropped: `ENODEV` if there is no device
    /// or no such CID, `EHOSTUNREACH` if its guest is not running.
    fn send(packet: KBox<Packet<Self>>, net: Net<'_>) -> Result;

    /// Drops what is queued for `sock` and has not been sent. Called with the socket lock held.
    fn cancel(sock: &Sock) -> Result;

    /// Settles packets that the other end has read, if that is not done as soon as it has: somebody
    /// wants to know what is unsent, or waits for it to become nothing. Process context, with or
    /// without the socket lock; must not sleep.
    fn settle() {}

    /// All peers are gone, or one is: called for each connected socket, as
    /// [`Transport::reset_connected`](af_vsock::Transport::reset_connected).
    fn reset_connected(sock: &Sock) {
        sock.reset_unlocked();
    }

    /// Whether a packet with this many pieces of payload can be sent by zero copy.
    fn takes_pieces(_pieces: usize) -> bool {
        true
    }

    /// Calls `f` with the queue on which closed sockets wait for their peers. The module destroys
    /// it when it goes, so that no such work outlives the module's text.
    fn with_close_queue(f: impl FnOnce(&WorkQueue)) -> Option<()>;
}
