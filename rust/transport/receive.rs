// SPDX-License-Identifier: GPL-2.0

//! Receiving: from a packet to what it does to a socket.

use crate::{
    busy::{resume, Delivery},
    close::finish,
    connection::{Connection, Data},
    send::{send_control, send_reset, send_reset_without_socket},
    Engine, Link,
};
use af_vsock::{
    find_bound, find_connected, trace_received, Access, Direction, HeldSock, Net, SkBuff, SockRef,
    SocketError, SocketState,
};
use kernel::prelude::*;
use rvsock_bindings::Run;
use vsock_proto::{
    addressed_to, handle_packet, Action, Facts, Finish, Header, Kind, MessageFlags, Operation,
    Phase, ShutdownFlags,
};

/// What a packet carries.
pub enum Payload {
    /// Nothing.
    None,
    /// Something that could not be queued: the connection has to end.
    Lost,
    /// Bytes in a buffer.
    Run(Run),
    /// The sk_buff of a sender on this machine.
    Buffer(SkBuff),
}

/// A packet that came in.
pub struct Received<'a> {
    /// Its header; the link has checked that its addresses are ones the peer may use.
    pub header: Header,
    /// Its payload, of `header.len` bytes.
    pub payload: Payload,
    /// The namespace whose sockets it may be for.
    pub net: Net<'a>,
    /// The socket that sent it, if that is one of this machine.
    pub sender: Option<&'a SockRef>,
}

impl<'a> Received<'a> {
    /// A packet that came in just now.
    pub fn new(
        header: Header,
        payload: Payload,
        net: Net<'a>,
        sender: Option<&'a SockRef>,
    ) -> Self {
        trace_received(&header);
        Self {
            header,
            payload,
            net,
            sender,
        }
    }
}

impl Received<'_> {
    /// Does what the packet asks for (`virtio_transport_recv_pkt()`).
    ///
    /// Process context, no socket lock held; takes that of the packet's socket, but does not wait for
    /// the end of a system call that uses an open connection. Gives back a buffer that was not kept,
    /// to be filled again.
    pub fn receive<L: Link>(mut self) -> Option<Run> {
        match self.find_socket() {
            Some(sock) => self.hand_over::<L>(&sock),
            None => self.refuse::<L>(),
        }
        self.into_buffer()
    }

    /// The same for data and credit of an open connection, in any context but a hard interrupt. An
    /// error, with the packet, if it has to be [received](Self::receive) by somebody who can wait.
    pub fn try_receive<L: Link>(mut self) -> Result<Option<Run>, Self> {
        if self.try_hand_over::<L>() {
            Ok(self.into_buffer())
        } else {
            Err(self)
        }
    }

    fn try_hand_over<L: Link>(&mut self) -> bool {
        let operation = self.header.operation;
        if !matches!(operation, Operation::ReadWrite | Operation::CreditUpdate) {
            return false;
        }
        let kind = Kind::from_wire(self.header.kind);
        let Some(sock) = self
            .find_connected()
            .filter(|sock| Some(sock.kind()) == kind)
        else {
            return false;
        };
        sock.try_access::<Engine<L>>()
            .is_some_and(|busy| self.deliver_busy::<L>(&busy) == Delivery::Done)
    }

    /// The buffer, if it was not kept.
    fn into_buffer(self) -> Option<Run> {
        match self.payload {
            Payload::Run(mut run) => {
                run.clear();
                Some(run)
            }
            _ => None,
        }
    }

    /// The socket the packet is for: the connection between its addresses, or a bound socket that
    /// takes packets from its source.
    fn find_socket(&self) -> Option<SockRef> {
        let kind = Kind::from_wire(self.header.kind)?;
        self.find_connected()
            .or_else(|| {
                find_bound(self.header.destination, self.net).filter(|sock| self.is_for(sock))
            })
            .filter(|sock| sock.kind() == kind)
    }

    fn find_connected(&self) -> Option<SockRef> {
        find_connected(self.header.source, self.header.destination, self.net)
    }

    fn is_for(&self, sock: &SockRef) -> bool {
        let (state, remote) = sock.peek();
        addressed_to(state == SocketState::Listening, remote, &self.header)
    }

    /// There is no socket for this packet.
    fn refuse<L: Link>(&self) {
        send_reset_without_socket::<L>(&self.header, self.net, self.sender);
    }

    /// Whether the locked socket is still the one that was looked up: it may have gone to another
    /// transport since, or to another peer. A listener belongs to no transport.
    fn belongs_to<L: Link>(&self, sock: &mut HeldSock<'_>) -> bool {
        let listening = sock.state() == SocketState::Listening;
        (listening || sock.attached::<Engine<L>>().is_some())
            && addressed_to(listening, sock.remote(), &self.header)
            && sock.accepts_source::<Engine<L>>(self.header.source)
    }

    fn hand_over<L: Link>(&mut self, sock: &SockRef) {
        if let Payload::Buffer(skb) = &mut self.payload {
            // The sender is done with it. This may wake the sender, so not under a spinlock.
            skb.orphan();
        }
        let mut locked = match sock.access::<Engine<L>>() {
            Access::Locked(locked) => locked,
            Access::Busy(busy) => {
                let delivery = self.deliver_busy::<L>(&busy);
                drop(busy);
                match delivery {
                    Delivery::Done => return,
                    Delivery::Reset => return self.refuse::<L>(),
                    Delivery::Waits => {}
                }
                let mut locked = sock.lock();
                resume::<L>(&mut locked.hold());
                locked
            }
        };
        self.deliver::<L>(locked.hold());
    }

    fn deliver<L: Link>(&mut self, mut sock: HeldSock<'_>) {
        if sock.is_done() || !self.belongs_to::<L>(&mut sock) {
            return self.refuse::<L>();
        }
        sock.update_local_cid(self.header.destination.cid);
        self.take_credit::<L>(&mut sock);
        let action = handle_packet(phase(&sock), &facts::<L>(&mut sock), &self.header);
        self.perform::<L>(sock, action);
    }

    /// Takes in the peer's window, which every header has, and wakes writers it makes room for.
    fn take_credit<L: Link>(&self, sock: &mut HeldSock<'_>) {
        if sock.state() == SocketState::Listening {
            return;
        }
        let Some(attached) = sock.attached::<Engine<L>>() else {
            return;
        };
        let change = attached.shared.handle_peer(&self.header);
        if change.wakes_writers(attached.shared.capacity()) {
            sock.report_space();
        }
    }

    fn perform<L: Link>(&mut self, mut sock: HeldSock<'_>, action: Action) {
        match action {
            // Writers were woken when the credit was taken in.
            Action::Drop | Action::WriteSpace => {}
            Action::Reset => self.refuse::<L>(),
            Action::Accept => self.accept::<L>(&mut sock),
            Action::Connected => {
                sock.set_connected();
                sock.insert_connected();
                sock.report_state();
            }
            Action::Refused => fail(&mut sock, SocketError::ConnectionReset),
            Action::ProtocolError => {
                send_reset::<L>(&mut sock, true);
                fail(&mut sock, SocketError::Protocol);
            }
            Action::Receive => self.enqueue::<L>(&mut sock),
            action => perform_connected::<L>(&mut sock, action),
        }
    }

    /// Makes a child for a connection request and queues it for `accept()`
    /// (`virtio_transport_recv_listen()`).
    fn accept<L: Link>(&self, listener: &mut HeldSock<'_>) {
        let Some(child) = listener.create_child() else {
            return self.refuse::<L>();
        };
        let established = {
            let mut locked = child.lock();
            let mut sock = locked.hold();
            let Header {
                source,
                destination,
                ..
            } = self.header;
            let result = sock.establish_child::<Engine<L>>(listener, destination, source);
            if result.is_ok() {
                self.take_credit::<L>(&mut sock);
                sock.insert_connected();
                let operation = Operation::Response;
                let _ = send_control::<L>(&mut sock, operation, ShutdownFlags::NONE, true);
            }
            result
        };
        if established.is_err() {
            return self.refuse::<L>();
        }
        listener.enqueue_child(child);
        listener.report_data();
    }

    /// Queues payload for the reader (`virtio_transport_recv_enqueue()`).
    ///
    /// A peer that sends more than it may, or than there is memory for, loses the connection:
    /// otherwise bytes would be missing in it.
    fn enqueue<L: Link>(&mut self, sock: &mut HeldSock<'_>) {
        let (kind, low_water) = (sock.kind(), sock.receive_low_water());
        let Some(attached) = sock.attached::<Engine<L>>() else {
            return;
        };
        match self.enqueue_in(kind, attached.shared) {
            Ok(()) => {
                if attached.shared.satisfies_readers(kind, low_water) {
                    sock.report_data();
                }
            }
            Err(_) => overrun::<L>(sock),
        }
    }

    /// Moves the payload to `connection`, and what is left of it back here. Does not sleep. An error
    /// is one for good.
    pub(crate) fn enqueue_in(&mut self, kind: Kind, connection: &Connection) -> Result {
        let flags = match kind {
            Kind::Seqpacket => self.header.message_flags(),
            // A stream has no messages, whatever its peer says.
            Kind::Stream => MessageFlags::NONE,
        };
        let data = match core::mem::replace(&mut self.payload, Payload::Lost) {
            Payload::Lost => return Err(ENOMEM),
            Payload::None => Data::Run(Run::empty()),
            Payload::Run(run) => Data::Run(run),
            Payload::Buffer(skb) => Data::Buffer(skb),
        };
        // A buffer that is left goes after the lock of the socket, as a run does.
        self.payload = match connection.enqueue(data, flags)? {
            Some(Data::Run(run)) => Payload::Run(run),
            Some(Data::Buffer(skb)) => Payload::Buffer(skb),
            None => Payload::None,
        };
        Ok(())
    }
}

/// Does for an open connection what a packet of its peer asks for.
pub(crate) fn perform_connected<L: Link>(sock: &mut HeldSock<'_>, action: Action) {
    match action {
        Action::SendCredit => {
            let operation = Operation::CreditUpdate;
            let _ = send_control::<L>(sock, operation, ShutdownFlags::NONE, true);
        }
        Action::PeerShutdown { flags, finished } => shut_down::<L>(sock, flags, finished),
        Action::PeerReset => finish::<L>(sock),
        _ => {}
    }
}

/// Something is missing in what one side gets to read: the connection is over.
pub(crate) fn overrun<L: Link>(sock: &mut HeldSock<'_>) {
    send_reset::<L>(sock, true);
    finish::<L>(sock);
    sock.set_error(SocketError::NoBuffers);
    sock.report_error();
    sock.remove();
}

pub(crate) fn phase(sock: &HeldSock<'_>) -> Phase {
    match sock.state() {
        SocketState::Closed => Phase::Closed,
        SocketState::Listening => Phase::Listening,
        SocketState::Connecting => Phase::Connecting,
        SocketState::Established => Phase::Established,
        SocketState::Closing => Phase::Closing,
    }
}

pub(crate) fn facts<L: Link>(sock: &mut HeldSock<'_>) -> Facts {
    let unread = sock
        .attached::<Engine<L>>()
        .is_some_and(|attached| attached.shared.readable_bytes() > 0);
    Facts {
        done: sock.is_done(),
        unread,
        backlog_full: sock.backlog_is_full(),
        shut_down: sock.shutdown() == Direction::BOTH,
        peer_shutdown: sock.peer_shutdown().into(),
    }
}

/// `connect()` fails.
fn fail(sock: &mut HeldSock<'_>, error: SocketError) {
    sock.set_state(SocketState::Closed);
    sock.set_error(error);
    sock.report_error();
}

/// The peer has shut down in one direction or both.
fn shut_down<L: Link>(sock: &mut HeldSock<'_>, flags: ShutdownFlags, finished: Finish) {
    sock.set_peer_shutdown(flags.into());
    match finished {
        Finish::Open => {}
        // The peer may use its port again at once, so our end must not stand in the table.
        Finish::Unread => sock.remove(),
        Finish::Complete => {
            send_reset::<L>(sock, false);
            finish::<L>(sock);
            sock.remove();
        }
    }
    sock.report_state();
}
