// SPDX-License-Identifier: GPL-2.0

//! The link of a machine to itself: a queue, and a worker that delivers what is in it.

use crate::THIS_MODULE;
use af_vsock::{deliver_tap, Net, Sock, TapPayload, Vtable, CID_ANY, CID_LOCAL};
use kernel::{
    impl_has_work, new_spinlock, new_work,
    prelude::*,
    sync::{Arc, SpinLock},
    workqueue::{Work, WorkItem},
};
use rvsock_bindings::{RcuSlot, WorkQueue};
use vsock_transport::{Engine, Link, Packet, PacketQueue, Payload, Received};

/// The link of the module; operations of sockets have no argument that leads to it.
pub(crate) static LOOPBACK: RcuSlot<Loopback> = RcuSlot::new();

/// The C table. Tools look for it in kallsyms by the name it has in C.
#[export_name = "loopback_transport"]
static TRANSPORT: Vtable<Engine<Loopback>> = Vtable::new(THIS_MODULE.as_ptr());

/// Packets between sockets of this machine.
#[pin_data]
pub(crate) struct Loopback {
    /// Innermost lock: taken with a socket lock held, or none.
    #[pin]
    queue: SpinLock<PacketQueue<Loopback>>,
    #[pin]
    deliver: Work<Self>,
    worker: WorkQueue,
}

impl_has_work! {
    impl HasWork<Self> for Loopback { self.deliver }
}

impl Loopback {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                queue <- new_spinlock!(PacketQueue::new(), "Loopback::queue"),
                deliver <- new_work!("Loopback::deliver"),
                worker: WorkQueue::per_cpu(c"vsock-loopback")?,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Waits for the worker, and drops what is queued. Nobody may send any more.
    pub(crate) fn stop(&self) {
        self.worker.drain();
        drop(self.queue.lock().take_all());
    }
}

impl WorkItem for Loopback {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let packets = this.queue.lock().take_all();
        for packet in packets {
            deliver(packet);
        }
    }
}

/// Hands a packet to the other end.
fn deliver(mut packet: KBox<Packet<Loopback>>) {
    packet.settle();
    if packet.is_over() {
        return;
    }
    let payload = match packet.take_payload() {
        Some(skb) => {
            deliver_tap(&packet.header, TapPayload::Buffer(&skb));
            Payload::Buffer(skb)
        }
        None => {
            deliver_tap(&packet.header, TapPayload::Bytes(&[]));
            Payload::None
        }
    };
    let Some(sender) = packet.sender() else {
        return;
    };
    Received::new(packet.header, payload, sender.net(), Some(sender)).receive::<Loopback>();
}

impl Link for Loopback {
    fn vtable() -> &'static Vtable<Engine<Self>> {
        &TRANSPORT
    }

    fn local_cid() -> u32 {
        CID_LOCAL
    }

    /// A machine has other CIDs beside that of loopback: who was reached under one answers from it,
    /// or it would not be taken for the peer.
    fn source_cid(bound: u32) -> u32 {
        if bound == CID_ANY {
            CID_LOCAL
        } else {
            bound
        }
    }

    fn stream_allow(_sock: &Sock) -> bool {
        true
    }

    fn seqpacket_allow(sock: &Sock, _cid: u32) -> bool {
        sock.is_global()
    }

    fn send(packet: KBox<Packet<Self>>, _net: Net<'_>) -> Result {
        let loopback = LOOPBACK.get().ok_or(ENODEV)?;
        loopback.queue.lock().push(packet);
        // If it is queued already, it will find this packet, too.
        let _ = loopback.worker.enqueue(loopback.clone());
        Ok(())
    }

    fn cancel(sock: &Sock) -> Result {
        let loopback = LOOPBACK.get().ok_or(ENODEV)?;
        // Dropped outside the lock: that may wake the sender.
        let removed = loopback.queue.lock().remove_from(sock);
        drop(removed);
        Ok(())
    }

    fn with_close_queue(f: impl FnOnce(&WorkQueue)) -> Option<()> {
        LOOPBACK.with(|loopback| f(&loopback.worker))
    }
}
