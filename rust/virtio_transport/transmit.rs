// SPDX-License-Identifier: GPL-2.0

//! From a packet to the transmit ring, and back when the device has read it.

use crate::{
    device::Device,
    kicks::{Kicks, When},
    link::Guest,
};
use af_vsock::{deliver_tap, SkBuff, Sock, TapPayload};
use kernel::{
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        Arc,
    },
};
use virtio::{OutQueue, Reset};
use vsock_proto::HEADER_LEN;
use vsock_transport::{Packet, PacketQueue};

type Ring = OutQueue<SkBuff, KBox<Packet<Guest>>, HEADER_LEN>;

/// With so few bytes in a full ring its packets are small: what the device does for each, and what
/// follows from that, costs more than their content.
const SMALL_BYTES: usize = 64 * 1024;
/// Packets that are worth a callback.
const GATHERED_MIN: usize = 64;
/// Packets that do not wait for it.
const GATHERED_MAX: usize = 128;

/// The transmit ring, and what waits for room in it.
///
/// Packets go into the ring as they come, and a device that is idle is told of each. Where small
/// ones come faster than the device reads them, so that they fill the ring, they gather in the
/// backlog until the device has read most of the ring: then it gets them together, with one kick.
pub(crate) struct Transmitter {
    /// Gone once the device was torn down.
    ring: Option<Ring>,
    backlog: PacketQueue<Guest>,
    /// So many waiting replies stop the receiver: it would make more of them.
    reply_limit: usize,
    receiver_waits: bool,
    kicks: Kicks,
    /// Payload that was sent since the ring was looked through.
    bytes: usize,
    /// Packets gather in the backlog: the callback is on its way, or work in its place.
    gathers: bool,
    /// Packets in the ring whose end somebody waits for.
    awaited: usize,
    /// The device broke the rules: nothing is sent any more.
    is_broken: bool,
    reclaim: Reclaim,
}

/// What will take back what the device has read, beside a sender that needs the room.
struct Reclaim {
    by: Reclaimer,
    /// Whether that is work, so that the callback means nothing: where queues share an interrupt, it
    /// comes with those of the others as well. With nothing posted, it means that the device lies.
    ignores_callback: Arc<Atomic<bool>>,
}

impl Reclaim {
    fn leave_to(&mut self, reclaimer: Reclaimer) {
        self.by = reclaimer;
        // The callback is enabled after this, with a barrier in between.
        self.ignores_callback
            .store(reclaimer == Reclaimer::Later, ordering::Relaxed);
    }
}

/// A callback costs an interrupt, so there is one only where somebody waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reclaimer {
    /// Nobody: nothing is posted, or it was posted since the last look.
    Nobody,
    /// Work that runs in a while.
    Later,
    /// The callback.
    Callback,
}

/// Whether there is room for a reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replies {
    /// For one at least.
    Taken,
    /// The receiver will be told when.
    Later,
    /// Nothing is sent any more.
    Refused,
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
    /// Packets gather, and no callback will come.
    transmit_soon: bool,
    /// Something waits, and nothing that is on its way will come back and move it.
    is_stuck: bool,
    /// The device broke the rules.
    is_broken: bool,
}

impl Transmitter {
    /// `ignores_callback` is to say whether the callback of the ring means nothing.
    pub(crate) fn new(
        ring: Ring,
        reply_limit: usize,
        ignores_callback: Arc<Atomic<bool>>,
    ) -> Result<Self> {
        Ok(Self {
            ring: Some(ring),
            backlog: PacketQueue::new(),
            reply_limit,
            receiver_waits: false,
            kicks: Kicks::new()?,
            bytes: 0,
            gathers: false,
            awaited: 0,
            reclaim: Reclaim {
                by: Reclaimer::Nobody,
                ignores_callback,
            },
            is_broken: false,
        })
    }

    /// Takes no packets from now on; whether it took them before.
    pub(crate) fn refuse(&mut self) -> bool {
        !core::mem::replace(&mut self.is_broken, true)
    }

    /// Whether little was sent since the ring was looked through.
    pub(crate) fn holds_little(&self) -> bool {
        self.bytes < SMALL_BYTES
    }

    /// Whether the device broke the rules of the transmit queue.
    pub(crate) fn has_broken_queue(&mut self) -> bool {
        self.ring
            .as_mut()
            .is_some_and(|ring| ring.queue().is_broken())
    }

    /// Whether the receiver may make one more reply. `is_answer`: it has received payload since it
    /// asked last.
    pub(crate) fn takes_replies(&mut self, is_answer: bool) -> Replies {
        if is_answer {
            self.kicks.answered();
        }
        if self.is_broken {
            return Replies::Refused;
        }
        self.receiver_waits = self.backlog.replies() >= self.reply_limit;
        if self.receiver_waits {
            Replies::Later
        } else {
            Replies::Taken
        }
    }

    /// Queues a packet behind those that wait, and moves on what it can. None if the device was torn
    /// down, or is broken.
    fn send(&mut self, packet: KBox<Packet<Guest>>) -> Option<Aftermath> {
        if self.ring.is_none() || self.is_broken {
            return None;
        }
        let prompt = packet.is_awaited();
        // Somebody will come to take back what was sent, and tells the device then.
        let can_wait = packet.is_patient() && self.reclaim.by != Reclaimer::Callback;
        let when = if can_wait {
            When::Later
        } else {
            self.kicks.add(&packet)
        };
        self.bytes = self.bytes.saturating_add(packet.unsent() as usize);
        self.backlog.push(packet);
        let mut aftermath = self.post_or_gather(prompt, when == When::Now);
        aftermath.transmit_soon |= when == When::Soon;
        Some(aftermath)
    }

    /// Moves what waits into the ring, unless it gathers, and tells the device if it is to `kick`.
    /// What the device has read is taken back where that makes room; otherwise later, unless
    /// `prompt`: then the callback does it.
    fn post_or_gather(&mut self, prompt: bool, kick: bool) -> Aftermath {
        let mut done = PacketQueue::new();
        let may_gather = !prompt && self.bytes < SMALL_BYTES && self.backlog.len() < GATHERED_MAX;
        if self.gathers && may_gather {
            return self.finish(done);
        }
        let is_half_full = self.ring.as_ref().is_some_and(OutQueue::is_half_full);
        if is_half_full && !may_gather {
            self.reclaim(&mut done);
        }
        self.post_all(&mut done);
        let waits = !self.backlog.is_empty();
        if waits && may_gather {
            return self.gather(done);
        }
        if waits || (prompt && self.reclaim.by != Reclaimer::Callback) {
            self.reclaim_and_post(&mut done);
        }
        if kick || waits {
            self.kick();
        }
        self.finish(done)
    }

    /// Tells the device of what was posted.
    fn kick(&mut self) {
        self.kicks.told();
        if let Some(ring) = &mut self.ring {
            if ring.queue().needs_kick() {
                ring.queue().kick();
            }
        }
    }

    /// Lets packets gather until the callback comes.
    fn gather(&mut self, done: PacketQueue<Guest>) -> Aftermath {
        self.gathers = true;
        self.kick();
        let mut transmit_soon = false;
        if let Some(ring) = self
            .ring
            .as_mut()
            .filter(|_| self.reclaim.by != Reclaimer::Callback)
        {
            self.reclaim.leave_to(Reclaimer::Callback);
            // If most was read already, not at once, either: nothing would gather.
            transmit_soon = !ring.queue().enable_callback_delayed();
        }
        Aftermath {
            transmit_soon,
            ..self.finish(done)
        }
    }

    /// Takes back what the device has read, and moves what waits into the ring. Leaves the callback
    /// armed if anything is out there: that has to come back with nobody sending any more.
    fn run(&mut self) -> Aftermath {
        let mut done = PacketQueue::new();
        self.gathers = false;
        self.reclaim_and_post(&mut done);
        self.kick();
        self.finish(done)
    }

    /// The same after the callback, which comes again only if somebody waits.
    fn called_back(&mut self) -> Aftermath {
        let mut done = PacketQueue::new();
        // A callback for a few of them costs more than it saves.
        self.gathers &= self.backlog.len() >= GATHERED_MIN;
        if self.gathers || self.awaited > 0 {
            self.reclaim_and_post(&mut done);
            self.kick();
            return self.finish(done);
        }
        if let Some(ring) = &mut self.ring {
            ring.queue().disable_callback();
        }
        self.reclaim.leave_to(Reclaimer::Nobody);
        self.reclaim(&mut done);
        self.post_all(&mut done);
        if !self.backlog.is_empty() {
            return self.gather(done);
        }
        self.kick();
        self.finish(done)
    }

    /// Takes back what the device has read.
    fn reclaim(&mut self, done: &mut PacketQueue<Guest>) {
        self.bytes = 0;
        if let Some(ring) = &mut self.ring {
            while let Some((payload, packet)) = ring.take_used() {
                self.awaited = self
                    .awaited
                    .saturating_sub(usize::from(packet.is_awaited()));
                done.push(complete(payload, packet));
            }
        }
    }

    fn post_all(&mut self, done: &mut PacketQueue<Guest>) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        while let Some(packet) = self.backlog.pop() {
            if packet.is_over() {
                done.push(packet);
                continue;
            }
            let awaited = usize::from(packet.is_awaited());
            if let Err(packet) = post(ring, packet, done) {
                self.backlog.push_front(packet);
                return;
            }
            self.awaited = self.awaited.saturating_add(awaited);
        }
    }

    /// Leaves the callback armed if anything is out there; if not, nothing gathers any more.
    fn reclaim_and_post(&mut self, done: &mut PacketQueue<Guest>) {
        loop {
            if let Some(ring) = &mut self.ring {
                ring.queue().disable_callback();
            }
            self.reclaim(done);
            self.post_all(done);
            let Some(ring) = &mut self.ring else {
                return;
            };
            if !ring.is_busy() {
                self.reclaim.leave_to(Reclaimer::Nobody);
                self.gathers = false;
                self.awaited = 0;
                return;
            }
            self.reclaim.leave_to(Reclaimer::Callback);
            if ring.queue().enable_callback_delayed() || ring.queue().is_broken() {
                return;
            }
        }
    }

    /// Says what is left to be done.
    fn finish(&mut self, done: PacketQueue<Guest>) -> Aftermath {
        let Some(ring) = &mut self.ring else {
            return Aftermath {
                done,
                receiver_may_go_on: false,
                reclaim_later: false,
                transmit_soon: false,
                is_stuck: false,
                is_broken: false,
            };
        };
        let receiver_may_go_on = self.receiver_waits && self.backlog.replies() < self.reply_limit;
        self.receiver_waits &= !receiver_may_go_on;
        let reclaim_later = self.reclaim.by == Reclaimer::Nobody && ring.is_busy();
        if reclaim_later {
            self.reclaim.leave_to(Reclaimer::Later);
        }
        Aftermath {
            done,
            receiver_may_go_on,
            reclaim_later,
            transmit_soon: false,
            is_stuck: !self.backlog.is_empty() && !ring.is_busy(),
            is_broken: !self.is_broken && ring.queue().is_broken(),
        }
    }

    /// The device is about to be torn down.
    pub(crate) fn stop(&mut self) -> Transmit {
        self.kicks.stop();
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
        let aftermath = self.transmitter.lock().send(packet);
        self.finish(aftermath.ok_or(ENODEV)?);
        Ok(())
    }

    /// Takes back what the device has read, and sends what waited for that.
    pub(crate) fn transmit(&self) {
        let aftermath = self.transmitter.lock().run();
        self.finish(aftermath);
    }

    /// The same when the device says so.
    pub(crate) fn transmit_called_back(&self) {
        let aftermath = self.transmitter.lock().called_back();
        self.finish(aftermath);
    }

    /// Tells the device of packets that were held back. False if somebody is sending just now. Any
    /// context.
    pub(crate) fn try_kick(&self) -> bool {
        let Some(mut transmitter) = self.transmitter.try_lock() else {
            return false;
        };
        transmitter.kicks.alarmed();
        transmitter.kick();
        true
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
        if aftermath.transmit_soon {
            self.schedule_transmit();
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
