// SPDX-License-Identifier: GPL-2.0

//! The packets that wait for a guest, and whose turn it is.
//!
//! Packets of one connection stay in order; connections take turns (deficit round robin, with
//! those first that had nothing to send lately): a bulk transfer does not keep a ping waiting for
//! as much as its window holds. Packets without a socket use the key of the connection they speak
//! of, so that a reset does not overtake, nor is overtaken by, what belongs to the same ports.

use crate::link::Host;
use af_vsock::Sock;
use kernel::{
    prelude::*,
    rbtree::{RBTree, RBTreeNode, RBTreeNodeReservation},
};
use vsock_proto::Header;
use vsock_transport::{Packet, PacketQueue};

/// Bytes that a connection may send before it is the next one's turn. With eight bulk transfers
/// this makes 128 KiB for a connection that has used up its turn.
const QUANTUM: i64 = 16 * 1024;

/// Both ports; one CID is the host's, the other the guest's.
type Key = u64;

/// Packets of all connections to a guest.
pub(crate) struct Flows {
    flows: RBTree<Key, Flow>,
    /// Those that had nothing to send when their first packet came: served first, once.
    fresh: Turns,
    /// The others, in the order of their turns.
    regular: Turns,
    replies: usize,
    /// Of a flow that ended, for the next one to begin.
    spare: Option<RBTreeNodeReservation<Key, Flow>>,
}

/// Packets of a connection.
struct Flow {
    packets: PacketQueue<Host>,
    /// Bytes left of its turn.
    deficit: i64,
    /// Next in its list of turns.
    next: Option<Key>,
}

/// A list of flows, linked through themselves.
#[derive(Clone, Copy, Default)]
struct Turns {
    first: Option<Key>,
    last: Option<Key>,
}

fn key(header: &Header) -> Key {
    u64::from(header.source.port) << 32 | u64::from(header.destination.port)
}

impl Flows {
    pub(crate) fn new() -> Self {
        Self {
            flows: RBTree::new(),
            fresh: Turns::default(),
            regular: Turns::default(),
            replies: 0,
            spare: None,
        }
    }

    /// Replies that wait.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Queues a packet. `ENOMEM` if it is the first of its connection and there is no memory. Does
    /// not sleep.
    pub(crate) fn push(&mut self, packet: KBox<Packet<Host>>) -> Result {
        let key = key(&packet.header);
        let is_reply = packet.is_reply();
        match self.flows.get_mut(&key) {
            Some(flow) => flow.packets.push(packet),
            None => self.begin(key, packet)?,
        }
        self.replies = self.replies.saturating_add(usize::from(is_reply));
        Ok(())
    }

    /// A connection has something to send again.
    fn begin(&mut self, key: Key, packet: KBox<Packet<Host>>) -> Result {
        let place = match self.spare.take() {
            Some(place) => place,
            None => RBTreeNodeReservation::new(GFP_ATOMIC)?,
        };
        let mut flow = Flow {
            packets: PacketQueue::new(),
            deficit: QUANTUM,
            next: None,
        };
        flow.packets.push(packet);
        self.flows.insert(place.into_node(key, flow));
        let mut fresh = self.fresh;
        self.append(&mut fresh, key);
        self.fresh = fresh;
        Ok(())
    }

    /// Takes the packet whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<KBox<Packet<Host>>> {
        loop {
            let is_fresh = self.fresh.first.is_some();
            let key = self.fresh.first.or(self.regular.first)?;
            let flow = self.flows.get_mut(&key)?;
            if flow.deficit <= 0 {
                flow.deficit = flow.deficit.saturating_add(QUANTUM);
                self.take_first(is_fresh);
                self.append_regular(key);
                continue;
            }
            match flow.packets.pop() {
                Some(packet) => {
                    self.replies = self.replies.saturating_sub(usize::from(packet.is_reply()));
                    return Some(packet);
                }
                // A fresh flow that has nothing more waits behind the others once, or it could
                // keep them waiting for ever by being fresh again and again.
                None if is_fresh && self.regular.first.is_some() => {
                    self.take_first(true);
                    self.append_regular(key);
                }
                None => {
                    self.take_first(is_fresh);
                    self.end(key);
                }
            }
        }
    }

    /// Puts a packet back that was popped last, as it was or sent in part.
    pub(crate) fn put_back(&mut self, packet: KBox<Packet<Host>>) {
        self.replies = self.replies.saturating_add(usize::from(packet.is_reply()));
        // The flow is there: it ends only when it is found empty.
        if let Some(flow) = self.flows.get_mut(&key(&packet.header)) {
            flow.packets.push_front(packet);
        }
    }

    /// Bytes of the connection of `header` were sent.
    pub(crate) fn charge(&mut self, header: &Header, bytes: usize) {
        if let Some(flow) = self.flows.get_mut(&key(header)) {
            flow.deficit = flow
                .deficit
                .saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Takes out what `sock` has waiting here, for the caller to drop outside its locks.
    pub(crate) fn remove_from(&mut self, sock: &Sock) -> PacketQueue<Host> {
        let mut removed = PacketQueue::new();
        for flow in self.flows.values_mut() {
            for packet in flow.packets.remove_from(sock) {
                removed.push(packet);
            }
        }
        self.replies = self.replies.saturating_sub(removed.replies());
        removed
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

    fn append_regular(&mut self, key: Key) {
        let mut regular = self.regular;
        self.append(&mut regular, key);
        self.regular = regular;
    }

    fn append(&mut self, turns: &mut Turns, key: Key) {
        match turns.last.and_then(|last| self.flows.get_mut(&last)) {
            Some(last) => last.next = Some(key),
            None => turns.first = Some(key),
        }
        turns.last = Some(key);
    }

    /// Takes the first flow out of its list.
    fn take_first(&mut self, is_fresh: bool) {
        let turns = if is_fresh {
            &mut self.fresh
        } else {
            &mut self.regular
        };
        let Some(flow) = turns.first.and_then(|first| self.flows.get_mut(&first)) else {
            return;
        };
        turns.first = flow.next.take();
        if turns.first.is_none() {
            turns.last = None;
        }
    }
}
