// SPDX-License-Identifier: GPL-2.0

//! What a received packet means for the socket it is for (sections 5.10.6.4 and 5.10.6.5).
//!
//! The decision table of `virtio_transport_recv_pkt()`. By the time a packet gets here, its kind
//! is known and is the socket's, its source is the socket's peer ([`addressed_to()`]), the socket
//! is locked and belongs to this transport, and the credit fields have been taken in.

use crate::{
    flags::ShutdownFlags,
    header::{Address, Header, Operation},
    reply::answers_with_reset,
};

/// How far a socket has come: its `sk_state`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// `TCP_CLOSE`, and any state without a name here.
    Closed,
    /// `TCP_LISTEN`: takes requests.
    Listening,
    /// `TCP_SYN_SENT`: has sent a request.
    Connecting,
    /// `TCP_ESTABLISHED`: can send and receive, as far as neither side has shut down.
    Established,
    /// `TCP_CLOSING`: over for both sides, and nothing left to read.
    Closing,
}

/// What the decision depends on besides the phase.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The connection is over (`SOCK_DONE`), though unread data may keep it
    /// [`Phase::Established`].
    pub done: bool,
    /// Received bytes have not been read (`vsock_stream_has_data()`).
    pub unread: bool,
    /// A listener has as many children to accept as it may (`sk_acceptq_is_full()`).
    pub backlog_full: bool,
    /// A listener was shut down in both directions (`sk_shutdown == SHUTDOWN_MASK`).
    pub shut_down: bool,
    /// What the peer has shut down before this packet (`vsk->peer_shutdown`).
    pub peer_shutdown: ShutdownFlags,
}

/// What there is to do for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the packet has no effect until the action is performed"]
pub enum Action {
    /// Nothing.
    Drop,
    /// Answer with a reset as if there were no socket, and leave the socket alone
    /// (`virtio_transport_reset_no_sock()`, [`reset_for()`](crate::reset_for)).
    Reset,
    /// Make a child, established with the source, queue it for `accept()` and answer with a
    /// response; if that fails, with a reset (`virtio_transport_recv_listen()`).
    Accept,
    /// The request was granted: become established and wake `connect()`
    /// (`virtio_transport_recv_connecting()`).
    Connected,
    /// The request was refused: close with `ECONNRESET`, send nothing
    /// (`virtio_transport_recv_connecting()`).
    Refused,
    /// The answer to the request makes no sense: send a reset and close with `EPROTO`
    /// (`virtio_transport_recv_connecting()`).
    ProtocolError,
    /// Queue the payload, which credit has to admit, and wake readers
    /// (`virtio_transport_recv_enqueue()`).
    Receive,
    /// Wake writers, if the credit that was taken in gives reason to
    /// (`virtio_transport_recv_connected()`).
    WriteSpace,
    /// Send a credit update (`virtio_transport_send_credit_update()`).
    SendCredit,
    /// The peer has shut down (`virtio_transport_recv_connected()`): remember `flags`, do what
    /// `finished` says, report the change of state.
    PeerShutdown {
        /// What the peer has shut down by now, this packet included. Nothing revokes it.
        flags: ShutdownFlags,
        /// Whether that ends the connection.
        finished: Finish,
    },
    /// The peer has ended the connection: finish it, `virtio_transport_do_close()`.
    PeerReset,
}

/// How much of a connection a shutdown by the peer leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish {
    /// One direction is open.
    Open,
    /// Both are shut, and data waits to be read: take the socket out of the tables, so that the
    /// peer can use its port again (`vsock_remove_sock()`), and nothing else.
    Unread,
    /// Both are shut and everything is read: send a reset, finish the connection
    /// (`virtio_transport_do_close()`), take the socket out of the tables.
    Complete,
}

/// Whether a socket of the bound table is who this packet is for.
///
/// That table knows local addresses only. A listener takes packets from anybody, everybody else
/// from its peer `remote` alone; otherwise any machine that guesses a local port could answer for
/// the peer, write into the connection or end it. If this is false, there is no socket. Has to be
/// asked again under the socket lock.
///
/// `vsock_check_source()` of Linux 7.2.13; 7.2.12 has no such check.
#[inline]
pub fn addressed_to(listening: bool, remote: Address, header: &Header) -> bool {
    listening || header.source == remote
}

/// Decides what to do for a packet (`virtio_transport_recv_pkt()`).
#[inline]
pub fn handle_packet(phase: Phase, facts: &Facts, header: &Header) -> Action {
    if facts.done {
        return refuse(header);
    }
    match phase {
        Phase::Closed => refuse(header),
        Phase::Listening => handle_listening(facts, header),
        Phase::Connecting => handle_connecting(header),
        Phase::Established => handle_established(facts, header),
        Phase::Closing => handle_closing(header),
    }
}

/// `virtio_transport_recv_listen()`.
fn handle_listening(facts: &Facts, header: &Header) -> Action {
    match header.operation {
        // A listener that was shut down has emptied its queue already: a child would stay in it.
        Operation::Request if facts.backlog_full || facts.shut_down => Action::Reset,
        Operation::Request => Action::Accept,
        _ => refuse(header),
    }
}

/// `virtio_transport_recv_connecting()`.
fn handle_connecting(header: &Header) -> Action {
    match header.operation {
        Operation::Response => Action::Connected,
        Operation::Reset => Action::Refused,
        Operation::Invalid => Action::Drop,
        _ => Action::ProtocolError,
    }
}

/// `virtio_transport_recv_connected()`.
#[inline]
fn handle_established(facts: &Facts, header: &Header) -> Action {
    match header.operation {
        Operation::ReadWrite => Action::Receive,
        Operation::CreditUpdate => Action::WriteSpace,
        Operation::CreditRequest => Action::SendCredit,
        Operation::Shutdown => handle_shutdown(facts, header.shutdown_flags()),
        Operation::Reset => Action::PeerReset,
        Operation::Invalid | Operation::Request | Operation::Response | Operation::Unknown(_) => {
            Action::Drop
        }
    }
}

/// The part of `virtio_transport_recv_connected()` about `VIRTIO_VSOCK_OP_SHUTDOWN`.
fn handle_shutdown(facts: &Facts, new: ShutdownFlags) -> Action {
    let flags = facts.peer_shutdown.union(new);
    let finished = match (flags.contains(ShutdownFlags::ALL), facts.unread) {
        (false, _) => Finish::Open,
        (true, true) => Finish::Unread,
        (true, false) => Finish::Complete,
    };
    if new == ShutdownFlags::NONE && finished == Finish::Open {
        return Action::Drop;
    }
    Action::PeerShutdown { flags, finished }
}

/// `virtio_transport_recv_disconnecting()`.
fn handle_closing(header: &Header) -> Action {
    match header.operation {
        Operation::Reset => Action::PeerReset,
        _ => Action::Drop,
    }
}

/// Answers a packet that the socket cannot take.
fn refuse(header: &Header) -> Action {
    if answers_with_reset(header.operation) {
        Action::Reset
    } else {
        Action::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: Address = Address::new(3, 1024);
    const OPEN: Facts = Facts {
        done: false,
        unread: false,
        backlog_full: false,
        shut_down: false,
        peer_shutdown: ShutdownFlags::NONE,
    };

    fn header(operation: Operation) -> Header {
        Header {
            source: PEER,
            destination: Address::new(2, 22),
            len: 0,
            kind: 1,
            operation,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    fn shutdown(flags: ShutdownFlags) -> Header {
        Header {
            flags: flags.bits(),
            ..header(Operation::Shutdown)
        }
    }

    /// The actions for the operations 0 to 8, the last of which is unknown.
    fn row(phase: Phase, facts: &Facts) -> [Action; 9] {
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
            .map(|value| handle_packet(phase, facts, &header(Operation::from_wire(value))))
    }

    use Action::{
        Accept, Connected, Drop, PeerReset, ProtocolError, Receive, Refused, Reset, SendCredit,
        WriteSpace,
    };

    /// What a socket does that takes no packets: it resets everything but a reset.
    const NOBODY: [Action; 9] = [Reset, Reset, Reset, Drop, Reset, Reset, Reset, Reset, Reset];

    #[test]
    fn a_closed_socket_resets_everything_but_a_reset() {
        assert_eq!(row(Phase::Closed, &OPEN), NOBODY);
    }

    #[test]
    fn a_listener_takes_requests_only() {
        let mut expected = NOBODY;
        expected[1] = Accept;
        assert_eq!(row(Phase::Listening, &OPEN), expected);
    }

    #[test]
    fn a_listener_that_is_full_or_shut_down_takes_nothing() {
        let full = Facts {
            backlog_full: true,
            ..OPEN
        };
        let shut_down = Facts {
            shut_down: true,
            ..OPEN
        };
        assert_eq!(row(Phase::Listening, &full), NOBODY);
        assert_eq!(row(Phase::Listening, &shut_down), NOBODY);
    }

    #[test]
    fn a_connecting_socket_waits_for_a_response_or_a_reset() {
        let e = ProtocolError;
        let expected = [Drop, e, Connected, Refused, e, e, e, e, e];
        assert_eq!(row(Phase::Connecting, &OPEN), expected);
    }

    #[test]
    fn an_established_socket_ignores_what_it_does_not_expect() {
        let expected = [
            Drop, Drop, Drop, PeerReset, Drop, Receive, WriteSpace, SendCredit, Drop,
        ];
        assert_eq!(row(Phase::Established, &OPEN), expected);
    }

    #[test]
    fn a_closing_socket_waits_for_a_reset() {
        let mut expected = [Drop; 9];
        expected[3] = PeerReset;
        assert_eq!(row(Phase::Closing, &OPEN), expected);
    }

    #[test]
    fn a_half_shutdown_leaves_the_connection_open() {
        for flags in [ShutdownFlags::RECEIVE, ShutdownFlags::SEND] {
            let expected = Action::PeerShutdown {
                flags,
                finished: Finish::Open,
            };
            let action = handle_packet(Phase::Established, &OPEN, &shutdown(flags));
            assert_eq!(action, expected);
        }
    }

    #[test]
    fn two_half_shutdowns_complete_each_other() {
        let facts = Facts {
            peer_shutdown: ShutdownFlags::RECEIVE,
            ..OPEN
        };
        let expected = Action::PeerShutdown {
            flags: ShutdownFlags::ALL,
            finished: Finish::Complete,
        };
        let action = handle_packet(Phase::Established, &facts, &shutdown(ShutdownFlags::SEND));
        assert_eq!(action, expected);
    }

    #[test]
    fn unread_data_outlives_a_full_shutdown() {
        let facts = Facts {
            unread: true,
            ..OPEN
        };
        let expected = Action::PeerShutdown {
            flags: ShutdownFlags::ALL,
            finished: Finish::Unread,
        };
        let action = handle_packet(Phase::Established, &facts, &shutdown(ShutdownFlags::ALL));
        assert_eq!(action, expected);
    }

    #[test]
    fn flags_without_a_meaning_shut_nothing_down() {
        let packet = Header {
            flags: !ShutdownFlags::ALL.bits(),
            ..header(Operation::Shutdown)
        };
        assert_eq!(handle_packet(Phase::Established, &OPEN, &packet), Drop);
    }

    #[test]
    fn only_a_listener_takes_packets_from_strangers() {
        let packet = header(Operation::Response);
        for stranger in [Address { cid: 4, ..PEER }, Address { port: 1025, ..PEER }] {
            assert!(addressed_to(true, stranger, &packet));
            assert!(!addressed_to(false, stranger, &packet));
        }
        assert!(addressed_to(false, PEER, &packet));
    }

    fn any_phase() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Closed),
            Just(Phase::Listening),
            Just(Phase::Connecting),
            Just(Phase::Established),
            Just(Phase::Closing),
        ]
    }

    prop_compose! {
        fn any_facts()(
            (done, unread, backlog_full, shut_down) in any::<(bool, bool, bool, bool)>(),
            peer_shutdown in 0..4u32,
        ) -> Facts {
            let peer_shutdown = ShutdownFlags::from_bits(peer_shutdown);
            Facts { done, unread, backlog_full, shut_down, peer_shutdown }
        }
    }

    proptest! {
        #[test]
        fn a_reset_is_never_answered(phase in any_phase(), facts in any_facts()) {
            let action = handle_packet(phase, &facts, &header(Operation::Reset));
            prop_assert!(matches!(action, Drop | Refused | PeerReset));
        }

        #[test]
        fn a_connection_that_is_over_stays_over(
            phase in any_phase(),
            facts in any_facts(),
        ) {
            prop_assert_eq!(row(phase, &Facts { done: true, ..facts }), NOBODY);
        }

        #[test]
        fn a_shutdown_is_never_revoked(facts in any_facts(), flags: u32) {
            let packet = Header { flags, ..header(Operation::Shutdown) };
            let action = handle_packet(Phase::Established, &facts, &packet);
            if let Action::PeerShutdown { flags, .. } = action {
                prop_assert!(flags.contains(facts.peer_shutdown));
                prop_assert!(flags.contains(packet.shutdown_flags()));
            }
        }
    }
}
