// SPDX-License-Identifier: GPL-2.0

//! From a packet to the transmit ring, and back when the device has read it.

use crate::{device::Device, link::Guest};
use af_vsock::{deliver_tap, SkBuff, Sock, TapPayload};
use kernel::prelude::*;
use virtio::{OutQueue, Reset};
use vsock_proto::HEADER_LEN;
use vsock_transport::{Packet, PacketQueue};

type Ring = OutQueue<SkBuff, KBox<Packet<Guest>>, HEADER_LEN>;

/// The transmit ring, and what waits for room in it.
pub(crate) struct Transmitter {
    /// Gone once the device was torn down.
    ring: Option<Ring>,
    backlog: PacketQueue<Guest>,
    /// So many waiting replies stop the receiver: it would make more of them.
    reply_limit: usize,
    receiver_waits: bool,
    /// The device broke the rules: nothing is sent any more.
    is_broken: bool,
    /// What will take back what the device has read.
    reclaim: Reclaim,
}

/// Who takes back what the device has read, beside a sender that needs the room.
///
/// A callback costs an interrupt, so there is one only where somebody waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reclaim {
    /// Nobody: nothing is posted, or it was posted since the last look.
    Nobody,
    /// Work that runs in a while.
    Later,
    /// The callback.
    Callback,
}

/// What a transmitter leaves behind when it stops.
pub(crate) struct Transmit {
    ring: Option<Ring>,
    backlog: PacketQueue<Guest>,
}

/// What is left to be done after the lock was given back.
#[must_use]
pub(crate) struct Aftermath {
    /// Packets to be dropped: that wakes their senders.
    done: PacketQueue<Guest>,
    receiver_may_go_on: bool,
    /// What was posted has to be taken back some time.
    reclaim_later: bool,
    /// Something waits, and nothing that is on its way will come back and move it.
    is_stuck: bool,
    /// The device broke the rules.
    is_broken: bool,
}

impl Transmitter {
    pub(crate) fn new(ring: Ring, reply_limit: usize) -> Self {
        Self {
            ring: Some(ring),
            backlog: PacketQueue::new(),
            reply_limit,
            receiver_waits: false,
            reclaim: Reclaim::Nobody,
            is_broken: false,
        }
    }

    /// Takes no packets from now on; whether it took them before.
    pub(crate) fn refuse(&mut self) -> bool {
        !core::mem::replace(&mut self.is_broken, true)
    }

    /// Whether the device broke the rules of the transmit queue.
    pub(crate) fn has_broken_queue(&mut self) -> bool {
        self.ring
            .as_mut()
            .is_some_and(|ring| ring.queue().is_broken())
    }

    /// Whether the receiver may make one more reply. If not, it will be told when.
    pub(crate) fn takes_replies(&mut self) -> bool {
        if self.is_broken {
            return false;
        }
        self.receiver_waits = self.backlog.replies() >= self.reply_limit;
        !self.receiver_waits
    }

    /// Queues a packet behind those that wait. False if the device was torn down, or is broken.
    fn push(&mut self, packet: KBox<Packet<Guest>>) -> bool {
        if self.ring.is_none() || self.is_broken {
            return false;
        }
        self.backlog.push(packet);
        true
    }

    /// Moves what waits into the ring. What the device has read is taken back where that makes
    /// room; otherwise later, unless `prompt`: then the callback does it.
    fn send(&mut self, prompt: bool) -> Aftermath {
        let mut done = PacketQueue::new();
        if let Some(ring) = self.ring.as_mut().filter(|ring| ring.is_half_full()) {
            reclaim(ring, &mut done);
        }
        self.post_all(&mut done);
        let armed = self.reclaim == Reclaim::Callback;
        if !self.backlog.is_empty() || (prompt && !armed) {
            self.reclaim_and_post(&mut done);
        }
        self.finish(done)
    }

    /// Takes back what the device has read, and moves what waits into the ring.
    fn run(&mut self) -> Aftermath {
        let mut done = PacketQueue::new();
        self.reclaim_and_post(&mut done);
        self.finish(done)
    }

    fn post_all(&mut self, done: &mut PacketQueue<Guest>) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        while let Some(packet) = self.backlog.pop() {
            if let Err(packet) = post(ring, packet, done) {
                self.backlog.push_front(packet);
                return;
            }
        }
    }

    /// Leaves the callback armed if anything is out there: that has to come back with nobody
    /// sending any more.
    fn reclaim_and_post(&mut self, done: &mut PacketQueue<Guest>) {
        loop {
            if let Some(ring) = &mut self.ring {
                ring.queue().disable_callback();
                reclaim(ring, done);
            }
            self.post_all(done);
            let Some(ring) = &mut self.ring else {
                return;
            };
            if !ring.is_busy() {
                self.reclaim = Reclaim::Nobody;
                return;
            }
            self.reclaim = Reclaim::Callback;
            if ring.queue().enable_callback_delayed() || ring.queue().is_broken() {
                return;
            }
        }
    }

    /// Tells the device, and says what is left to be done.
    fn finish(&mut self, done: PacketQueue<Guest>) -> Aftermath {
        let Some(ring) = &mut self.ring else {
            return Aftermath {
                done,
                receiver_may_go_on: false,
                reclaim_later: false,
                is_stuck: false,
                is_broken: false,
            };
        };
        if ring.queue().needs_kick() {
            ring.queue().kick();
        }
        let receiver_may_go_on = self.receiver_waits && self.backlog.replies() < self.reply_limit;
        self.receiver_waits &= !receiver_may_go_on;
        let reclaim_later = self.reclaim == Reclaim::Nobody && ring.is_busy();
        if reclaim_later {
            self.reclaim = Reclaim::Later;
        }
        Aftermath {
            done,
            receiver_may_go_on,
            reclaim_later,
            is_stuck: !self.backlog.is_empty() && !ring.is_busy(),
            is_broken: !self.is_broken && ring.queue().is_broken(),
        }
    }

    /// The device is about to be torn down.
    pub(crate) fn stop(&mut self) -> Transmit {
        Transmit {
            ring: self.ring.take(),
            backlog: self.backlog.take_all(),
        }
    }
}

impl Transmit {
    /// Drops all packets.
    pub(crate) fn give_up(self, reset: &Reset) {
        if let Some(ring) = self.ring {
            ring.give_up(reset, |payload, packet| drop(complete(payload, packet)));
        }
        drop(self.backlog);
    }
}

/// Takes back what the device has read.
fn reclaim(ring: &mut Ring, done: &mut PacketQueue<Guest>) {
    while let Some((payload, packet)) = ring.take_used() {
        done.push(complete(payload, packet));
    }
}

/// Puts a packet together again: it frees its parts in the right order.
fn complete(payload: Option<SkBuff>, mut packet: KBox<Packet<Guest>>) -> KBox<Packet<Guest>> {
    if let Some(payload) = payload {
        packet.put_payload(payload);
    }
    packet
}

/// Posts a packet; gives it back if the ring is full, or if there is no memory for it to be mapped
/// now. One that can never be posted is done.
fn post(
    ring: &mut Ring,
    mut packet: KBox<Packet<Guest>>,
    done: &mut PacketQueue<Guest>,
) -> Result<(), KBox<Packet<Guest>>> {
    let header = packet.header;
    let payload = packet.take_payload();
    match ring.post(header.encode(), payload, packet) {
        Ok(()) => Ok(()),
        Err((error, payload, packet)) => {
            let packet = complete(payload, packet);
            let never = error == E2BIG || (error == ENOSPC && !ring.is_busy());
            if !never && !ring.queue().is_broken() {
                return Err(packet);
            }
            done.push(packet);
            Ok(())
        }
    }
}

impl Device {
    /// Sends a packet, or queues it until there is room in the ring.
    pub(crate) fn send(&self, packet: KBox<Packet<Guest>>) -> Result {
        match packet.payload() {
            Some(skb) => deliver_tap(&packet.header, TapPayload::Buffer(skb)),
            None => deliver_tap(&packet.header, TapPayload::Bytes(&[])),
        }
        let prompt = packet.is_awaited();
        let aftermath = {
            let mut transmitter = self.transmitter.lock();
            if !transmitter.push(packet) {
                return Err(ENODEV);
            }
            transmitter.send(prompt)
        };
        self.finish(aftermath);
        Ok(())
    }

    /// Takes back what the device has read, and sends what waited for that.
    pub(crate) fn transmit(&self) {
        let aftermath = self.transmitter.lock().run();
        self.finish(aftermath);
    }

    /// Drops what waits to be sent for `sock`.
    pub(crate) fn cancel(&self, sock: &Sock) {
        let removed = self.transmitter.lock().backlog.remove_from(sock);
        drop(removed);
        self.transmit();
    }

    fn finish(&self, aftermath: Aftermath) {
        if aftermath.receiver_may_go_on {
            self.schedule_receive();
        }
        if aftermath.reclaim_later {
            self.schedule_reclaim();
        }
        if aftermath.is_stuck {
            self.schedule_retry();
        }
        if aftermath.is_broken {
            // Not here: the caller may hold the lock of a socket.
            self.schedule_events();
        }
        drop(aftermath.done);
    }
}
