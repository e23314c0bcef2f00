// SPDX-License-Identifier: GPL-2.0

//! The whole life of a connection: a client, a server with a listener, and two applications that
//! do what they like and close in the end.

use crate::{
    life_host::{Host, User},
    search::Model,
};
use vsock_proto::{Address, Phase, ShutdownFlags};

const CLIENT: Address = Address::new(3, 1024);
const SERVER: Address = Address::new(2, 22);

/// One of the two machines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum At {
    Client,
    Server,
}

/// What can happen; sockets are numbered, 0 connects or listens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    Connect,
    HearOfFailure,
    /// A signal or a timeout ends `connect()`; true if that takes back the request.
    Interrupt(bool),
    Accept,
    Deliver(At),
    Write(At, usize),
    Read(At, usize),
    ShutDown(At, usize, ShutdownFlags),
    Close(At, usize),
    ForgetListener,
    /// Eight seconds have passed since `close()`.
    Fire(At, usize),
    /// That is acted on.
    TimeOut(At, usize),
}

/// How often things happen that could happen for ever.
#[derive(Clone, Hash)]
pub struct Budget {
    pub connects: u8,
    pub interrupts: u8,
    /// Of client and server.
    pub writes: [u8; 2],
    pub shutdowns: [u8; 2],
}

/// Two machines.
#[derive(Clone, Hash)]
pub struct Life {
    client: Host,
    server: Host,
    budget: Budget,
    /// The clock runs: timers end what nothing else does.
    clock: bool,
}

impl Life {
    /// Nothing has happened; the listener may be `full`, and without a `clock` no timer fires.
    pub fn new(budget: Budget, full: bool, clock: bool) -> Self {
        Self {
            client: Host::client(CLIENT, SERVER),
            server: Host::server(SERVER, CLIENT, full),
            budget,
            clock,
        }
    }

    fn at(&mut self, at: At) -> (&mut Host, &mut Host) {
        match at {
            At::Client => (&mut self.client, &mut self.server),
            At::Server => (&mut self.server, &mut self.client),
        }
    }

    /// Where the budget for a step is kept, if there is one.
    fn allowance(&mut self, step: Step) -> Option<&mut u8> {
        match step {
            Step::Connect => Some(&mut self.budget.connects),
            Step::Interrupt(_) => Some(&mut self.budget.interrupts),
            Step::Write(at, _) => self.budget.writes.get_mut(at as usize),
            Step::ShutDown(at, ..) => self.budget.shutdowns.get_mut(at as usize),
            _ => None,
        }
    }

    /// Whether a socket is shut down while it connects, and will connect again. The core does not
    /// forget the shutdown (`sk_shutdown`), so that the second connection ends without good-bye,
    /// when the timer fires; in C as here.
    fn is_shut_down_for_good(&self, step: Step) -> bool {
        let connects = self.client.sockets[0].user == User::Connecting;
        let on_client = matches!(step, Step::ShutDown(At::Client, ..));
        on_client && connects && self.budget.connects > 0
    }

    fn try_step(&mut self, step: Step) -> bool {
        match step {
            _ if self.is_shut_down_for_good(step) => false,
            Step::Connect => self.client.connect(&mut self.server),
            Step::HearOfFailure => self.client.hear_of_failure(),
            Step::Interrupt(cancelled) => self.client.interrupt(&mut self.server, cancelled),
            Step::Accept => self.server.accept(),
            Step::ForgetListener => self.server.forget_listener(),
            Step::Deliver(at) => {
                let (here, there) = self.at(at);
                here.deliver(there)
            }
            Step::Write(at, number) => {
                let (here, there) = self.at(at);
                here.write(there, number)
            }
            Step::Read(at, number) => self.at(at).0.read(number),
            Step::ShutDown(at, number, flags) => {
                let (here, there) = self.at(at);
                here.shut_down(there, number, flags)
            }
            Step::Close(at, number) => {
                let (here, there) = self.at(at);
                here.close(there, number)
            }
            Step::Fire(at, number) => self.at(at).0.fire(number),
            Step::TimeOut(at, number) => {
                let (here, there) = self.at(at);
                here.time_out(there, number)
            }
        }
    }

    /// Both links are empty, so that neither end has anything to expect but from the other's
    /// application.
    fn check_silence(&self) {
        let client = &self.client.sockets[0];
        let waits = client.phase == Phase::Connecting && !client.dead;
        assert!(!waits, "a request has no answer");
        let servers = self.server.sockets.iter();
        let open = servers.filter(|socket| socket.is_open()).count();
        let expected = usize::from(client.is_open());
        assert_eq!(open, expected, "one end is open and the other is not");
    }
}

impl Model for Life {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![
            Step::Deliver(At::Client),
            Step::Deliver(At::Server),
            Step::Connect,
            Step::HearOfFailure,
            Step::Interrupt(false),
            Step::Interrupt(true),
            Step::Accept,
            Step::ForgetListener,
        ];
        for (at, host) in [(At::Client, &self.client), (At::Server, &self.server)] {
            for number in 0..host.sockets.len() {
                steps.extend([
                    Step::Write(at, number),
                    Step::Read(at, number),
                    Step::ShutDown(at, number, ShutdownFlags::RECEIVE),
                    Step::ShutDown(at, number, ShutdownFlags::SEND),
                    Step::ShutDown(at, number, ShutdownFlags::ALL),
                    Step::Close(at, number),
                ]);
                if self.clock {
                    steps.extend([Step::Fire(at, number), Step::TimeOut(at, number)]);
                }
            }
        }
        steps
    }

    fn perform(&mut self, step: Step) -> bool {
        if self.allowance(step).is_some_and(|left| *left == 0) || !self.try_step(step) {
            return false;
        }
        if let Some(left) = self.allowance(step) {
            *left -= 1;
        }
        true
    }

    fn is_progress(&self, step: Step) -> bool {
        !matches!(step, Step::Interrupt(_))
    }

    fn check(&self) {
        let under_way = self.client.inbox.len() + self.server.inbox.len();
        assert!(under_way < 20, "packets beget packets");
        if under_way == 0 {
            self.check_silence();
        }
    }

    /// Everybody has closed, all packets have arrived: nothing may be left.
    fn check_end(&self) {
        let sockets = || self.client.sockets.iter().chain(&self.server.sockets);
        // Data that nobody will read, and be it that it came after `close()`, keeps its connection
        // until the timer fires, as in C.
        let waits = !self.clock && sockets().any(|socket| socket.timer && socket.unread > 0);
        for socket in sockets() {
            assert!(socket.dead);
            let allowed = waits && socket.timer;
            assert!(socket.is_gone() || allowed, "{socket:?} waits for ever");
        }
    }
}
