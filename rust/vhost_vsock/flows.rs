// SPDX-License-Identifier: GPL-2.0

//! The packets that wait for a guest, and whose turn it is.
//!
//! Packets of one connection stay in order; connections take turns (deficit round robin). Who sends
//! little comes first: a connection that has not used up its share of a round does not wait for the
//! others, so that a bulk transfer keeps no ping waiting. Packets without a socket use the key of
//! the connection they speak of, so that a reset does not overtake, nor is overtaken by, what
//! belongs to the same ports.

use crate::link::Host;
use af_vsock::Sock;
use kernel::{
    prelude::*,
    rbtree::{RBTree, RBTreeNode, RBTreeNodeReservation},
};
use vsock_proto::{Header, HEADER_LEN};
use vsock_transport::{Packet, PacketQueue};

/// Bytes that a connection may send in a round.
const QUANTUM: i64 = 16 * 1024;

/// Both ports; one CID is the host's, the other the guest's.
type Key = u64;

/// Where a flow can be kept in the tree.
pub(crate) type Place = RBTreeNodeReservation<Key, Flow>;

/// Packets of all connections to a guest.
pub(crate) struct Flows {
    flows: RBTree<Key, Flow>,
    /// Those that have no more to send than is left of their share: served first.
    light: Turns,
    /// The others, and those that have nothing to send and a part of their share left.
    regular: Turns,
    /// Those that there was no memory to begin a flow for: before all others, in their order.
    strays: PacketQueue<Host>,
    replies: usize,
    /// Of a flow that ended, for the next one to begin.
    spare: Option<Place>,
}

/// Packets of a connection.
pub(crate) struct Flow {
    packets: PacketQueue<Host>,
    /// Bytes of its packets.
    backlog: i64,
    /// Bytes left of its share.
    deficit: i64,
    light: Link,
    regular: Link,
}

/// Where a flow stands in a list of turns.
#[derive(Default)]
struct Link {
    is_listed: bool,
    next: Option<Key>,
}

/// A list of flows, linked through themselves.
#[derive(Clone, Copy, Default)]
struct Turns {
    first: Option<Key>,
    last: Option<Key>,
}

#[derive(Clone, Copy)]
enum Turn {
    Light,
    Regular,
}

impl Flow {
    fn new() -> Self {
        Self {
            packets: PacketQueue::new(),
            backlog: 0,
            deficit: QUANTUM,
            light: Link::default(),
            regular: Link::default(),
        }
    }

    fn link(&mut self, turn: Turn) -> &mut Link {
        match turn {
            Turn::Light => &mut self.light,
            Turn::Regular => &mut self.regular,
        }
    }

    /// Queues a packet, or its payload with the packet before it: then it is left over.
    fn push(&mut self, mut packet: KBox<Packet<Host>>) -> Option<KBox<Packet<Host>>> {
        let payload = packet.unsent();
        if self.packets.merge(&mut packet) {
            self.backlog = self.backlog.saturating_add(i64::from(payload));
            return Some(packet);
        }
        self.backlog = self.backlog.saturating_add(cost(payload));
        self.packets.push(packet);
        None
    }

    /// The next packet, if there are at most `limit` bytes.
    fn pop(&mut self, limit: i64) -> Option<KBox<Packet<Host>>> {
        if self.backlog > limit {
            return None;
        }
        let packet = self.packets.pop()?;
        self.backlog = self.backlog.saturating_sub(cost(packet.unsent()));
        Some(packet)
    }

    /// Puts the packet that was popped last back, as it was or sent in part.
    fn put_back(&mut self, packet: KBox<Packet<Host>>) {
        self.backlog = self.backlog.saturating_add(cost(packet.unsent()));
        self.packets.push_front(packet);
    }

    fn remove_from(&mut self, sock: &Sock, removed: &mut PacketQueue<Host>) {
        for packet in self.packets.remove_from(sock) {
            self.backlog = self.backlog.saturating_sub(cost(packet.unsent()));
            removed.push(packet);
        }
    }

    /// Where its turn is due.
    fn turn(&self) -> Turn {
        if self.backlog <= self.deficit {
            Turn::Light
        } else {
            Turn::Regular
        }
    }
}

/// What sending `payload` bytes costs of a share.
fn cost(payload: u32) -> i64 {
    i64::from(payload).saturating_add(HEADER_LEN as i64)
}

fn key(header: &Header) -> Key {
    u64::from(header.source.port) << 32 | u64::from(header.destination.port)
}

impl Flows {
    pub(crate) fn new() -> Self {
        Self {
            flows: RBTree::new(),
            light: Turns::default(),
            regular: Turns::default(),
            strays: PacketQueue::new(),
            replies: 0,
            spare: None,
        }
    }

    /// Replies that wait.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Queues a packet; gives it back as an error if it needs a `place` of its own. What is left over,
    /// of one that became a part of a packet that waits, is to be dropped outside of locks. Does not
    /// sleep.
    pub(crate) fn push(
        &mut self,
        packet: KBox<Packet<Host>>,
        place: Option<Place>,
    ) -> Result<Option<KBox<Packet<Host>>>, KBox<Packet<Host>>> {
        let key = key(&packet.header);
        let is_reply = packet.is_reply();
        let (turn, left_over) = match self.flows.get_mut(&key) {
            Some(flow) => {
                let left_over = flow.push(packet);
                (flow.turn(), left_over)
            }
            None => match self.spare.take().or(place) {
                Some(place) => (self.begin(key, packet, place), None),
                None => return Err(packet),
            },
        };
        self.append(turn, key);
        self.replies = self.replies.saturating_add(usize::from(is_reply));
        Ok(left_over)
    }

    /// The same where there is no memory for a place. Does not sleep.
    pub(crate) fn push_anyway(&mut self, packet: KBox<Packet<Host>>) -> Option<KBox<Packet<Host>>> {
        self.push(packet, None).unwrap_or_else(|packet| {
            self.replies = self.replies.saturating_add(usize::from(packet.is_reply()));
            self.strays.push(packet);
            None
        })
    }

    /// A connection has something to send again.
    fn begin(&mut self, key: Key, packet: KBox<Packet<Host>>, place: Place) -> Turn {
        let mut flow = Flow::new();
        // Alone, it cannot become a part of another one.
        flow.push(packet);
        let turn = flow.turn();
        self.flows.insert(place.into_node(key, flow));
        turn
    }

    /// Takes the packet whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<KBox<Packet<Host>>> {
        let packet = loop {
            if let Some(packet) = self.strays.pop() {
                break packet;
            }
            if let Some(key) = self.light.first {
                let flow = self.flows.get_mut(&key)?;
                if let Some(packet) = flow.pop(flow.deficit) {
                    break packet;
                }
                self.take_first(Turn::Light);
                self.append(Turn::Regular, key);
                continue;
            }
            let key = self.regular.first?;
            let flow = self.flows.get_mut(&key)?;
            let is_due = flow.deficit > 0;
            if is_due {
                if let Some(packet) = flow.pop(i64::MAX) {
                    break packet;
                }
            }
            // Its round is over. Who is in debt stays, packets or not.
            flow.deficit = flow.deficit.saturating_add(QUANTUM);
            self.take_first(Turn::Regular);
            if is_due {
                self.end(key);
            } else {
                self.append(Turn::Regular, key);
            }
        };
        self.replies = self.replies.saturating_sub(usize::from(packet.is_reply()));
        Some(packet)
    }

    /// Puts a packet back that was popped last, as it was or sent in part.
    pub(crate) fn put_back(&mut self, packet: KBox<Packet<Host>>) {
        self.replies = self.replies.saturating_add(usize::from(packet.is_reply()));
        // Before strays that came behind it. The flow of any other packet is there: it ends only when it
        // is found empty.
        match self.flows.get_mut(&key(&packet.header)) {
            Some(flow) if self.strays.is_empty() => flow.put_back(packet),
            _ => self.strays.push_front(packet),
        }
    }

    /// `payload` bytes of the connection of `header` were sent.
    pub(crate) fn charge(&mut self, header: &Header, payload: u32) {
        if let Some(flow) = self.flows.get_mut(&key(header)) {
            flow.deficit = flow.deficit.saturating_sub(cost(payload));
        }
    }

    /// Takes out what `sock` has waiting here, for the caller to drop outside its locks.
    pub(crate) fn remove_from(&mut self, sock: &Sock) -> PacketQueue<Host> {
        let mut removed = PacketQueue::new();
        for flow in self.flows.values_mut() {
            flow.remove_from(sock, &mut removed);
        }
        for packet in self.strays.remove_from(sock) {
            removed.push(packet);
        }
        self.replies = self.replies.saturating_sub(removed.replies());
        if !removed.is_empty() {
            self.end_empty();
        }
        removed
    }

    /// Ends flows that have nothing to send. Their turn may never come, if the guest takes nothing.
    fn end_empty(&mut self) {
        for turn in [Turn::Light, Turn::Regular] {
            let mut next = core::mem::take(self.turns(turn)).first;
            while let Some(flow) = next.and_then(|key| self.flows.get_mut(&key)) {
                let key = next;
                next = core::mem::take(flow.link(turn)).next;
                if let (Some(key), false) = (key, flow.packets.is_empty()) {
                    self.append(turn, key);
                }
            }
        }
        let mut cursor = self.flows.cursor_front_mut();
        while let Some(current) = cursor {
            cursor = if current.current().1.packets.is_empty() {
                current.remove_current().0
            } else {
                current.move_next()
            };
        }
    }

    /// Takes out everything.
    pub(crate) fn take_all(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }

    fn end(&mut self, key: Key) {
        if let Some(node) = self.flows.remove_node(&key) {
            self.spare = Some(RBTreeNode::into_reservation(node));
        }
    }

    fn turns(&mut self, turn: Turn) -> &mut Turns {
        match turn {
            Turn::Light => &mut self.light,
            Turn::Regular => &mut self.regular,
        }
    }

    /// Puts a flow at the end of a list, unless it is there already.
    fn append(&mut self, turn: Turn, key: Key) {
        let Some(flow) = self.flows.get_mut(&key) else {
            return;
        };
        if core::mem::replace(&mut flow.link(turn).is_listed, true) {
            return;
        }
        let last = self.turns(turn).last.replace(key);
        match last.and_then(|last| self.flows.get_mut(&last)) {
            Some(last) => last.link(turn).next = Some(key),
            None => self.turns(turn).first = Some(key),
        }
    }

    /// Takes the first flow out of a list.
    fn take_first(&mut self, turn: Turn) {
        let first = self.turns(turn).first;
        let Some(flow) = first.and_then(|first| self.flows.get_mut(&first)) else {
            return;
        };
        let next = core::mem::take(flow.link(turn)).next;
        let turns = self.turns(turn);
        turns.first = next;
        if next.is_none() {
            turns.last = None;
        }
    }
}
