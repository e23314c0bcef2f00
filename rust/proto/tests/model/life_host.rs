// SPDX-License-Identifier: GPL-2.0

//! The sockets of one machine, from their first packet to their last: what the engine does
//! (`rust/transport/receive.rs` and `close.rs`) with the actions of this crate, and what the
//! AF_VSOCK core does with system calls.

use std::collections::VecDeque;

use vsock_proto::{
    addressed_to, handle_packet, reset_for, Action, Address, Facts, Finish, Header, Kind,
    Operation, Phase, ShutdownFlags,
};

/// What the application has been told (`enum socket_state`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum User {
    Unconnected,
    Connecting,
    Connected,
    Disconnecting,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Socket {
    pub phase: Phase,
    pub user: User,
    /// `SOCK_DONE`.
    pub done: bool,
    /// Closed by its application (`SOCK_DEAD`).
    pub dead: bool,
    /// A connect that failed has not been told so (`sk_err`).
    error: bool,
    pub shutdown: ShutdownFlags,
    pub peer_shutdown: ShutdownFlags,
    pub unread: u8,
    in_connected_table: bool,
    in_bound_table: bool,
    /// The timer of `close()` runs.
    pub timer: bool,
    /// It has fired, and waits for the lock: too late to be cancelled.
    pub fired: bool,
}

impl Socket {
    fn new(phase: Phase) -> Self {
        Self {
            phase,
            user: User::Unconnected,
            done: false,
            dead: false,
            error: false,
            shutdown: ShutdownFlags::NONE,
            peer_shutdown: ShutdownFlags::NONE,
            unread: 0,
            in_connected_table: false,
            in_bound_table: false,
            timer: false,
            fired: false,
        }
    }

    /// Whether no packet finds it and no timer keeps it.
    pub fn is_gone(&self) -> bool {
        !self.in_connected_table && !self.in_bound_table && !self.timer && !self.fired
    }

    /// Whether its application has given up nothing and knows of no end: it may wait.
    pub fn is_open(&self) -> bool {
        let given_up = self.dead || self.shutdown == ShutdownFlags::ALL;
        let known_to_be_over = self.done || self.peer_shutdown == ShutdownFlags::ALL;
        self.phase == Phase::Established && !given_up && !known_to_be_over
    }

    fn facts(&self, backlog_full: bool) -> Facts {
        Facts {
            done: self.done,
            unread: self.unread > 0,
            backlog_full,
            shut_down: self.shutdown == ShutdownFlags::ALL,
            peer_shutdown: self.peer_shutdown,
        }
    }

    /// `vsock_remove_sock()`.
    fn leave_tables(&mut self) {
        self.in_connected_table = false;
        // A socket that is not closed stays bound.
        self.in_bound_table &= !self.dead;
    }

    /// `remove()` of the engine.
    fn remove(&mut self) {
        self.unread = 0;
        self.leave_tables();
    }

    /// `finish()` of the engine.
    fn finish(&mut self) {
        self.done = true;
        self.peer_shutdown = ShutdownFlags::ALL;
        if self.unread == 0 {
            self.phase = Phase::Closing;
        }
        if core::mem::take(&mut self.timer) {
            self.remove();
        }
    }
}

/// A machine, and the packets on their way to it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Host {
    address: Address,
    peer: Address,
    /// The first one connects or listens; the others are children of it.
    pub sockets: Vec<Socket>,
    /// Children that wait to be accepted.
    pub backlog: VecDeque<usize>,
    /// So many may wait besides one (`sk_max_ack_backlog`).
    max_backlog: usize,
    pub inbox: VecDeque<Header>,
}

impl Host {
    fn new(address: Address, peer: Address, phase: Phase) -> Self {
        let mut first = Socket::new(phase);
        first.in_bound_table = true;
        Self {
            address,
            peer,
            sockets: vec![first],
            backlog: VecDeque::new(),
            max_backlog: 0,
            inbox: VecDeque::new(),
        }
    }

    /// A machine with a socket that can connect to `peer`.
    pub fn client(address: Address, peer: Address) -> Self {
        Self::new(address, peer, Phase::Closed)
    }

    /// A machine with a listener; if it is `full`, a child of somebody else's waits in it.
    pub fn server(address: Address, peer: Address, full: bool) -> Self {
        let mut host = Self::new(address, peer, Phase::Listening);
        if full {
            let mut other = Socket::new(Phase::Closed);
            other.dead = true;
            host.sockets.push(other);
            host.backlog.push_back(1);
        }
        host
    }

    // What the engine does.

    fn send(&self, peer: &mut Self, operation: Operation, flags: ShutdownFlags) {
        peer.inbox.push_back(Header {
            source: self.address,
            destination: self.peer,
            len: u32::from(operation == Operation::ReadWrite),
            kind: Kind::Stream.to_wire(),
            operation,
            flags: flags.bits(),
            buf_alloc: 4096,
            fwd_cnt: 0,
        });
    }

    fn send_reset(&self, peer: &mut Self) {
        self.send(peer, Operation::Reset, ShutdownFlags::NONE);
    }

    fn find(&self, header: &Header) -> Option<usize> {
        let connected = |socket: &Socket| socket.in_connected_table;
        let bound = |socket: &Socket| {
            let listening = socket.phase == Phase::Listening;
            socket.in_bound_table && addressed_to(listening, self.peer, header)
        };
        let mut sockets = self.sockets.iter();
        let found = sockets.position(connected);
        found.or_else(|| self.sockets.iter().position(bound))
    }

    /// Receives the next packet.
    pub fn deliver(&mut self, peer: &mut Self) -> bool {
        let Some(header) = self.inbox.pop_front() else {
            return false;
        };
        let full = self.backlog.len() > self.max_backlog;
        let action = self.find(&header).map(|number| {
            let socket = &self.sockets[number];
            (
                number,
                handle_packet(socket.phase, &socket.facts(full), &header),
            )
        });
        match action {
            Some((number, action)) => self.act(peer, number, &header, action),
            None => self.refuse(peer, &header),
        }
        true
    }

    fn refuse(&self, peer: &mut Self, header: &Header) {
        peer.inbox.extend(reset_for(header));
    }

    fn act(&mut self, peer: &mut Self, number: usize, header: &Header, action: Action) {
        let socket = &mut self.sockets[number];
        match action {
            Action::Drop | Action::WriteSpace => {}
            Action::Reset => self.refuse(peer, header),
            Action::Accept => self.accept_request(peer),
            Action::Connected => {
                socket.phase = Phase::Established;
                socket.user = User::Connected;
                socket.in_connected_table = true;
            }
            Action::Refused => fail(socket),
            Action::ProtocolError => {
                fail(socket);
                self.send_reset(peer);
            }
            Action::Receive => socket.unread += 1,
            Action::SendCredit => unreachable!("nobody asks for credit"),
            Action::PeerShutdown { flags, finished } => {
                socket.peer_shutdown = flags;
                match finished {
                    Finish::Open => {}
                    Finish::Unread => socket.leave_tables(),
                    Finish::Complete => {
                        socket.finish();
                        socket.leave_tables();
                        self.send_reset(peer);
                    }
                }
            }
            Action::PeerReset => socket.finish(),
        }
    }

    fn accept_request(&mut self, peer: &mut Self) {
        let mut child = Socket::new(Phase::Established);
        child.in_connected_table = true;
        self.backlog.push_back(self.sockets.len());
        self.sockets.push(child);
        self.send(peer, Operation::Response, ShutdownFlags::NONE);
    }

    // What an application does; false if it cannot.

    /// Calls `connect()`.
    pub fn connect(&mut self, peer: &mut Self) -> bool {
        let socket = &mut self.sockets[0];
        if socket.dead || socket.user != User::Unconnected {
            return false;
        }
        socket.phase = Phase::Connecting;
        socket.user = User::Connecting;
        socket.error = false;
        self.send(peer, Operation::Request, ShutdownFlags::NONE);
        true
    }

    /// A connect that has failed returns.
    pub fn hear_of_failure(&mut self) -> bool {
        let socket = &mut self.sockets[0];
        if socket.dead || !socket.error {
            return false;
        }
        socket.error = false;
        socket.phase = Phase::Closed;
        socket.user = User::Unconnected;
        true
    }

    /// A signal arrives, or the time of connect is up. The request may still be in the queue.
    pub fn interrupt(&mut self, peer: &mut Self, cancelled: bool) -> bool {
        let socket = &mut self.sockets[0];
        if socket.dead || socket.phase != Phase::Connecting {
            return false;
        }
        if cancelled {
            let last = peer.inbox.back().map(|header| header.operation);
            if last != Some(Operation::Request) {
                return false;
            }
            peer.inbox.pop_back();
        }
        socket.phase = Phase::Closed;
        socket.user = User::Unconnected;
        true
    }

    /// Accepts the first child that waits.
    pub fn accept(&mut self) -> bool {
        let open = self.sockets[0].phase == Phase::Listening && !self.sockets[0].dead;
        let child = open.then(|| self.backlog.pop_front()).flatten();
        if let Some(child) = child {
            self.sockets[child].user = User::Connected;
        }
        child.is_some()
    }

    /// Sends a byte.
    pub fn write(&mut self, peer: &mut Self, number: usize) -> bool {
        let can = self.sockets.get(number).is_some_and(|socket| {
            socket.user == User::Connected
                && socket.phase == Phase::Established
                && !socket.dead
                && !socket.peer_shutdown.contains(ShutdownFlags::RECEIVE)
        });
        if can {
            self.send(peer, Operation::ReadWrite, ShutdownFlags::NONE);
        }
        can
    }

    /// Reads a byte.
    pub fn read(&mut self, number: usize) -> bool {
        let Some(socket) = self.sockets.get_mut(number) else {
            return false;
        };
        let can = socket.unread > 0
            && !socket.dead
            && socket.phase == Phase::Established
            && matches!(socket.user, User::Connected | User::Disconnecting)
            && !socket.shutdown.contains(ShutdownFlags::RECEIVE);
        socket.unread -= u8::from(can);
        can
    }

    /// Calls `shutdown()`: `vsock_shutdown()`, which forgets that a connection was over.
    pub fn shut_down(&mut self, peer: &mut Self, number: usize, flags: ShutdownFlags) -> bool {
        let Some(socket) = self.sockets.get_mut(number) else {
            return false;
        };
        if socket.dead || socket.user == User::Unconnected {
            return false;
        }
        socket.user = User::Disconnecting;
        socket.shutdown = socket.shutdown.union(flags);
        socket.done = false;
        self.send(peer, Operation::Shutdown, flags);
        true
    }

    /// Closes the socket, one that waits in the backlog only with its listener.
    pub fn close(&mut self, peer: &mut Self, number: usize) -> bool {
        let Some(socket) = self.sockets.get(number) else {
            return false;
        };
        if socket.dead || self.backlog.contains(&number) {
            return false;
        }
        self.release(peer, number);
        if self.sockets[number].phase == Phase::Listening {
            for child in core::mem::take(&mut self.backlog) {
                self.release(peer, child);
            }
        }
        true
    }

    /// `__vsock_release()` and what it calls in the engine. A listener leaves the tables a little
    /// later ([`Self::forget_listener`]): a packet may have found it before.
    fn release(&mut self, peer: &mut Self, number: usize) {
        let socket = &mut self.sockets[number];
        socket.dead = true;
        let told = socket.shutdown == ShutdownFlags::ALL;
        socket.shutdown = ShutdownFlags::ALL;
        if socket.phase == Phase::Listening {
            return;
        }
        let open = matches!(socket.phase, Phase::Established | Phase::Closing);
        let answered = socket.peer_shutdown == ShutdownFlags::ALL;
        if open && !socket.done && !answered {
            socket.timer = true;
            if !told {
                self.send(peer, Operation::Shutdown, ShutdownFlags::ALL);
            }
            return;
        }
        let reset = open && !socket.done;
        socket.done = true;
        socket.remove();
        if reset {
            self.send_reset(peer);
        }
    }

    /// The last packet that had found the listener before it was closed has been handled.
    pub fn forget_listener(&mut self) -> bool {
        let socket = &mut self.sockets[0];
        let waits = socket.phase == Phase::Listening && socket.dead && socket.in_bound_table;
        socket.in_bound_table &= !waits;
        waits
    }

    /// The timer of `close()` fires.
    pub fn fire(&mut self, number: usize) -> bool {
        let socket = self.sockets.get_mut(number);
        let Some(socket) = socket.filter(|socket| socket.timer) else {
            return false;
        };
        (socket.timer, socket.fired) = (false, true);
        true
    }

    /// It gets the lock (`close_timed_out()`).
    pub fn time_out(&mut self, peer: &mut Self, number: usize) -> bool {
        let Some(socket) = self.sockets.get_mut(number) else {
            return false;
        };
        if !core::mem::take(&mut socket.fired) {
            return false;
        }
        let reset = !socket.done;
        if reset {
            socket.finish();
        }
        socket.remove();
        if reset {
            self.send_reset(peer);
        }
        true
    }
}

/// `connect()` will fail.
fn fail(socket: &mut Socket) {
    socket.phase = Phase::Closed;
    socket.error = true;
}
