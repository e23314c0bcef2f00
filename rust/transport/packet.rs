// SPDX-License-Identifier: GPL-2.0

//! Packets on their way out.

use crate::{Connection, Engine, Link};
use af_vsock::{SkBuff, Sock, SockRef, StateRef};
use kernel::{alloc::AllocError, prelude::*};
use rvsock_bindings::new_nofail;
use vsock_proto::{Header, Kind, Operation};

/// Largest payload that becomes a part of a packet that waits: it is copied under a spinlock.
pub(crate) const MERGED_MAX: u32 = 1024;

/// A packet to be sent.
///
/// It keeps its socket and its connection alive; wherever it is dropped, its bytes count as unsent
/// no longer, and a zero-copy send completes.
pub struct Packet<L: Link> {
    /// What goes over the wire in front of the payload.
    pub header: Header,
    /// Bytes that count as unsent (`SIOCOUTQ`, `SO_LINGER`).
    counted: usize,
    // The order of these matters when a packet is dropped: the sk_buff may need the socket.
    payload: Option<SkBuff>,
    connection: Option<StateRef<Engine<L>>>,
    sender: Option<SockRef>,
    is_reply: bool,
    is_awaited: bool,
    is_urgent: bool,
    is_patient: bool,
    /// Bytes of payload that a link has sent, which sends packets in parts.
    sent: u32,
    next: Option<KBox<Packet<L>>>,
}

impl<L: Link> Packet<L> {
    /// A packet without payload. May sleep.
    pub(crate) fn control(
        header: Header,
        sender: Option<SockRef>,
        connection: Option<StateRef<Engine<L>>>,
        is_reply: bool,
    ) -> Result<KBox<Self>, AllocError> {
        let packet = Self::without_payload(header, sender, connection, is_reply);
        KBox::new(packet, GFP_KERNEL)
    }

    /// The same for what the peer would wait for in vain: waits until there is memory.
    pub(crate) fn indispensable(
        header: Header,
        sender: Option<SockRef>,
        connection: Option<StateRef<Engine<L>>>,
        is_reply: bool,
    ) -> KBox<Self> {
        new_nofail(Self::without_payload(header, sender, connection, is_reply))
    }

    fn without_payload(
        header: Header,
        sender: Option<SockRef>,
        connection: Option<StateRef<Engine<L>>>,
        is_reply: bool,
    ) -> Self {
        Self {
            header,
            counted: 0,
            payload: None,
            connection,
            sender,
            is_reply,
            is_awaited: false,
            is_urgent: true,
            is_patient: false,
            sent: 0,
            next: None,
        }
    }

    /// A packet with payload; `is_awaited`: somebody waits for its end. May sleep.
    pub(crate) fn data(
        header: Header,
        payload: SkBuff,
        sender: SockRef,
        connection: StateRef<Engine<L>>,
        is_awaited: bool,
    ) -> Result<KBox<Self>, AllocError> {
        let counted = payload.len() as usize;
        connection.add_unsent(counted);
        let packet = Self {
            header,
            counted,
            payload: Some(payload),
            connection: Some(connection),
            sender: Some(sender),
            is_reply: false,
            is_awaited,
            is_urgent: is_awaited,
            is_patient: false,
            sent: 0,
            next: None,
        };
        KBox::new(packet, GFP_KERNEL)
    }

    /// Whether this answers a packet that was received. Links limit the replies they hold: each
    /// makes one side send because the other did.
    pub fn is_reply(&self) -> bool {
        self.is_reply
    }

    /// Whether the sender waits for the end of the packet, as for that of a zero-copy send: a link
    /// must not put it off.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Whether somebody waits for what follows from the packet: a link must not keep the other end
    /// from it until there is more to send.
    pub fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Whether nobody waits for the packet: the other end has to have it soon, but need not be woken
    /// for it.
    pub fn is_patient(&self) -> bool {
        self.is_patient
    }

    /// Nobody waits for it.
    pub(crate) fn set_patient(&mut self) {
        self.is_patient = true;
    }

    /// The sender will wait for the peer.
    pub(crate) fn set_urgent(&mut self) {
        self.is_urgent = true;
    }

    /// Whether the peer has ended the connection of the packet, and may have another one between the
    /// same addresses by now: it is not to be sent any more.
    pub fn is_over(&self) -> bool {
        let connection = self.connection.as_deref();
        connection.is_some_and(Connection::is_over)
    }

    /// The socket that sent it; none for a reset on behalf of no socket.
    pub fn sender(&self) -> Option<&SockRef> {
        self.sender.as_ref()
    }

    /// The payload.
    pub fn payload(&self) -> Option<&SkBuff> {
        self.payload.as_ref()
    }

    /// Takes the payload out, to hand it to a socket of this machine.
    pub fn take_payload(&mut self) -> Option<SkBuff> {
        self.payload.take()
    }

    /// Puts the payload back.
    pub fn put_payload(&mut self, payload: SkBuff) {
        self.payload = Some(payload);
    }

    /// Bytes of payload that were sent.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Bytes of payload that were not.
    pub fn unsent(&self) -> u32 {
        let len = self.payload.as_ref().map_or(0, SkBuff::len);
        len.saturating_sub(self.sent)
    }

    /// The next `len` bytes of payload were sent.
    pub fn advance(&mut self, len: u32) {
        self.sent = self.sent.saturating_add(len);
    }

    /// The packet has left: its bytes are no longer unsent.
    pub fn settle(&mut self) {
        let counted = core::mem::take(&mut self.counted);
        if let Some(connection) = self.connection.as_ref().filter(|_| counted > 0) {
            connection.settle_unsent(counted);
        }
    }

    /// Whether the payload may become a part of a larger one: bytes of a stream that nobody waits for
    /// the end of.
    fn is_mergeable(&self) -> bool {
        self.header.operation == Operation::ReadWrite
            && self.header.kind == Kind::Stream.to_wire()
            && self.sent == 0
            && !self.is_awaited
    }

    /// Takes over the payload of the packet that follows, if that is small and there is room.
    fn absorb(&mut self, next: &mut Self) -> bool {
        let len = next.unsent();
        let same_sender = match (&self.sender, &next.sender) {
            (Some(this), Some(other)) => this.is(other),
            _ => false,
        };
        if len > MERGED_MAX || !same_sender || !self.is_mergeable() || !next.is_mergeable() {
            return false;
        }
        let (Some(payload), Some(more)) = (&mut self.payload, &next.payload) else {
            return false;
        };
        if !payload.append(more) {
            return false;
        }
        self.header = Header {
            len: self.header.len.saturating_add(len),
            ..next.header
        };
        let counted = core::mem::take(&mut next.counted);
        self.counted = self.counted.saturating_add(counted);
        self.is_urgent |= next.is_urgent;
        true
    }

    fn is_from(&self, sock: &Sock) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.is(sock))
    }
}

impl<L: Link> Drop for Packet<L> {
    /// Before the sk_buff is freed: that may wake a lingering close(), which then has to find the bytes
    /// settled.
    fn drop(&mut self) {
        self.settle();
    }
}

/// Packets in the order they were queued, linked through themselves: queueing never fails.
///
/// Two chains, as a list that only links forward needs: the newest first in `back`, and what is
/// next to leave in `front`, turned around when that runs empty.
pub struct PacketQueue<L: Link> {
    front: Option<KBox<Packet<L>>>,
    back: Option<KBox<Packet<L>>>,
    len: usize,
    replies: usize,
}

impl<L: Link> PacketQueue<L> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            front: None,
            back: None,
            len: 0,
            replies: 0,
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.front.is_none() && self.back.is_none()
    }

    /// How many packets wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Replies among the packets.
    pub fn replies(&self) -> usize {
        self.replies
    }

    /// Appends a packet.
    pub fn push(&mut self, mut packet: KBox<Packet<L>>) {
        self.count(&packet);
        packet.next = self.back.take();
        self.back = Some(packet);
    }

    /// Appends the payload of `packet` to that of the packet that was queued last; whether it did. Then
    /// `packet` is to be dropped, outside of spinlocks.
    pub fn merge(&mut self, packet: &mut Packet<L>) -> bool {
        // One that has moved to the front is not looked for.
        self.back.as_mut().is_some_and(|last| last.absorb(packet))
    }

    /// Puts a packet back that was taken out last.
    pub fn push_front(&mut self, packet: KBox<Packet<L>>) {
        self.count(&packet);
        self.link_front(packet);
    }

    fn count(&mut self, packet: &Packet<L>) {
        self.len = self.len.saturating_add(1);
        self.replies = self.replies.saturating_add(usize::from(packet.is_reply()));
    }

    fn link_front(&mut self, mut packet: KBox<Packet<L>>) {
        packet.next = self.front.take();
        self.front = Some(packet);
    }

    /// Takes the packet that was queued first.
    pub fn pop(&mut self) -> Option<KBox<Packet<L>>> {
        if self.front.is_none() {
            while let Some(mut packet) = self.back.take() {
                self.back = packet.next.take();
                self.link_front(packet);
            }
        }
        let mut packet = self.front.take()?;
        self.front = packet.next.take();
        self.len = self.len.saturating_sub(1);
        self.replies = self.replies.saturating_sub(usize::from(packet.is_reply()));
        Some(packet)
    }

    /// Takes all packets.
    pub fn take_all(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Takes out what `sock` has queued, for the caller to drop outside its locks.
    pub fn remove_from(&mut self, sock: &Sock) -> Self {
        let mut removed = Self::new();
        let mut all = self.take_all();
        while let Some(packet) = all.pop() {
            if packet.is_from(sock) {
                removed.push(packet);
            } else {
                self.push(packet);
            }
        }
        removed
    }
}

impl<L: Link> Default for PacketQueue<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: Link> Drop for PacketQueue<L> {
    fn drop(&mut self) {
        // One by one: dropping a chain as a whole would recurse as deep as it is long.
        while self.pop().is_some() {}
    }
}

impl<L: Link> Iterator for PacketQueue<L> {
    type Item = KBox<Packet<L>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.pop()
    }
}
