// SPDX-License-Identifier: GPL-2.0

//! Packets for a connection without its socket lock, which somebody holds, perhaps for long, or for
//! which this is not the place to take it.
//!
//! Data and credit need the locks of the connection alone. The rest is left to the holder of the
//! socket lock, as a [`Word`], whose size does not depend on what a peer sends.

use crate::{
    receive::{facts, overrun, perform_connected, phase, Received},
    Engine, Link,
};
use af_vsock::{BusySock, HeldSock, SocketState};
use vsock_proto::{addressed_to, handle_packet, Header, Operation, ShutdownFlags};

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It was delivered.
    Done,
    /// The same, and the peer waits for the end of the connection: it gets a reset.
    Reset,
    /// The lock has to be waited for, to deliver the packet then.
    Waits,
}

/// What the holder of the socket lock has to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    /// The peer has asked for a credit update.
    wants_credit: bool,
    /// What the peer has shut down.
    shutdown: ShutdownFlags,
    /// The peer has reset the connection.
    is_reset: bool,
    /// The peer has sent more than it may, or than there was memory for: bytes are missing.
    is_overrun: bool,
}

impl Word {
    pub(crate) const NONE: Self = Self {
        wants_credit: false,
        shutdown: ShutdownFlags::NONE,
        is_reset: false,
        is_overrun: false,
    };

    /// What a packet says that needs the socket lock.
    fn of(header: &Header) -> Self {
        match header.operation {
            Operation::CreditRequest => Self {
                wants_credit: true,
                ..Self::NONE
            },
            Operation::Shutdown => Self {
                shutdown: header.shutdown_flags(),
                ..Self::NONE
            },
            Operation::Reset => Self {
                is_reset: true,
                ..Self::NONE
            },
            _ => Self::NONE,
        }
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self {
            wants_credit: self.wants_credit || other.wants_credit,
            shutdown: self.shutdown.union(other.shutdown),
            is_reset: self.is_reset || other.is_reset,
            is_overrun: self.is_overrun || other.is_overrun,
        }
    }

    /// Nothing that comes after this counts.
    fn ends_connection(self) -> bool {
        self.is_reset || self.is_overrun
    }

    /// The peer may use its port again.
    fn frees_port(self) -> bool {
        self.is_reset || self.shutdown.contains(ShutdownFlags::ALL)
    }
}

impl Received<'_> {
    /// Does what can be done without the socket lock, and leaves word for the rest.
    pub(crate) fn deliver_busy<L: Link>(&mut self, sock: &BusySock<'_, Engine<L>>) -> Delivery {
        let (state, remote) = sock.peek();
        let is_open = state == SocketState::Established && !sock.is_done();
        if !is_open || !addressed_to(false, remote, &self.header) {
            return Delivery::Waits;
        }
        if sock.shared().word().ends_connection() {
            return Delivery::Done;
        }
        let word = Word::of(&self.header);
        if word != Word::NONE && !leave(sock, word) {
            return Delivery::Waits;
        }
        if sock.shared().is_over() && self.header.operation == Operation::Shutdown {
            return Delivery::Reset;
        }
        let change = sock.shared().handle_peer(&self.header);
        if change.wakes_writers(sock.shared().capacity()) {
            sock.wake_writers();
        }
        if self.header.operation == Operation::ReadWrite && !self.enqueue_busy(sock) {
            return Delivery::Waits;
        }
        Delivery::Done
    }

    /// Queues payload for the reader, or has the holder of the lock end the connection.
    fn enqueue_busy<L: Link>(&mut self, sock: &BusySock<'_, Engine<L>>) -> bool {
        let (kind, low_water) = (sock.kind(), sock.receive_low_water());
        let connection = sock.shared();
        if self.enqueue_in(kind, connection).is_ok() {
            if connection.satisfies_readers(kind, low_water) {
                sock.wake_readers();
            }
            return true;
        }
        let overrun = Word {
            is_overrun: true,
            ..Word::NONE
        };
        leave(sock, overrun)
    }
}

/// Leaves `word` for the holder of the lock, who cannot give it back meanwhile. False if there is
/// none; or if there is no memory to call on it: then whoever waits for the lock has to [`resume`].
fn leave<L: Link>(sock: &BusySock<'_, Engine<L>>, word: Word) -> bool {
    if !sock.is_owned() {
        return false;
    }
    let before = sock.shared().add_word(word);
    if sock.shared().word().frees_port() {
        sock.shared().set_over();
        sock.remove_connected();
    }
    before != Word::NONE || sock.call_back().is_ok()
}

/// Does what was left for the holder of the lock.
pub(crate) fn resume<L: Link>(sock: &mut HeldSock<'_>) {
    let Some(attached) = sock.attached::<Engine<L>>() else {
        return;
    };
    let word = attached.shared.take_word();
    // Whoever ended the connection has told the peer, or is the peer.
    if word == Word::NONE || sock.is_done() {
        return;
    }
    if word.is_overrun {
        return overrun::<L>(sock);
    }
    if word.wants_credit {
        perform::<L>(sock, Operation::CreditRequest, ShutdownFlags::NONE);
    }
    if word.shutdown != ShutdownFlags::NONE {
        perform::<L>(sock, Operation::Shutdown, word.shutdown);
    }
    if word.is_reset {
        perform::<L>(sock, Operation::Reset, ShutdownFlags::NONE);
    }
}

/// Does what a packet of the peer asks for.
fn perform<L: Link>(sock: &mut HeldSock<'_>, operation: Operation, flags: ShutdownFlags) {
    let header = Header {
        source: sock.remote(),
        destination: sock.local(),
        len: 0,
        kind: sock.kind().to_wire(),
        operation,
        flags: flags.bits(),
        buf_alloc: 0,
        fwd_cnt: 0,
    };
    let action = handle_packet(phase(sock), &facts::<L>(sock), &header);
    perform_connected::<L>(sock, action);
}
