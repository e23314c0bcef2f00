// SPDX-License-Identifier: GPL-2.0

//! The connection machine beside a table of letters, along a run of packets.

use super::bytes::Bytes;
use vsock_proto::{
    addressed_to, handle_packet, Action, Address, Facts, Finish, Header, Operation, Phase,
    ShutdownFlags,
};

const PHASES: [Phase; 5] = [
    Phase::Closed,
    Phase::Listening,
    Phase::Connecting,
    Phase::Established,
    Phase::Closing,
];

/// A row for each phase, a column for each operation, the last for all that are unknown: `r`
/// resets, `.` drops, `s` depends on the flags; the other letters are initials.
const TABLE: [&[u8; 9]; 5] = [
    b"rrr.rrrrr",
    b"rar.rrrrr",
    b".pcfppppp",
    b"...eswuq.",
    b"...e.....",
];

/// Phase and facts in a byte each, then packets of an operation and flags.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![2, 0, 2, 0, 5, 0, 4, 3, 3, 0],
        vec![1, 0, 1, 0, 1, 0],
        vec![1, 4, 1, 0],
        vec![1, 8, 1, 0],
        vec![3, 0, 4, 1, 4, 2, 3, 0],
        vec![3, 2, 4, 1, 4, 2, 3, 0],
        vec![3, 1, 5, 0],
        vec![4, 0, 5, 0, 3, 0],
        vec![0, 0, 7, 0, 8, 0, 6, 0],
    ]
}

pub fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let mut phase = PHASES[usize::from(input.u8()) % PHASES.len()];
    let bits = input.u8();
    let mut facts = Facts {
        done: bits & 1 != 0,
        unread: bits & 2 != 0,
        backlog_full: bits & 4 != 0,
        shut_down: bits & 8 != 0,
        peer_shutdown: ShutdownFlags::from_bits(u32::from(bits >> 4)),
    };
    while !input.is_empty() {
        let (operation, flags) = (u16::from(input.u8()), u32::from(input.u8()));
        let header = packet(operation, flags);
        let action = handle_packet(phase, &facts, &header);
        assert_eq!(action, expected(phase, &facts, operation, flags));
        follow(action, &mut phase, &mut facts);
    }
    check_source(bits);
}

fn packet(operation: u16, flags: u32) -> Header {
    Header {
        source: Address::new(3, 1024),
        destination: Address::new(2, 22),
        len: 0,
        kind: 1,
        operation: Operation::from_wire(operation),
        flags,
        buf_alloc: 0,
        fwd_cnt: 0,
    }
}

fn expected(phase: Phase, facts: &Facts, operation: u16, flags: u32) -> Action {
    // What is over is like what never was.
    let phase = if facts.done { Phase::Closed } else { phase };
    let row = PHASES.iter().position(|each| *each == phase).unwrap();
    match TABLE[row][usize::from(operation).min(8)] {
        b'.' => Action::Drop,
        b'a' if facts.backlog_full || facts.shut_down => Action::Reset,
        b'a' => Action::Accept,
        b'c' => Action::Connected,
        b'f' => Action::Refused,
        b'p' => Action::ProtocolError,
        b'w' => Action::Receive,
        b'u' => Action::WriteSpace,
        b'q' => Action::SendCredit,
        b'e' => Action::PeerReset,
        b's' => expected_shutdown(facts, flags & 3),
        _ => Action::Reset,
    }
}

fn expected_shutdown(facts: &Facts, new: u32) -> Action {
    let all = facts.peer_shutdown.bits() | new;
    let finished = match all {
        3 if facts.unread => Finish::Unread,
        3 => Finish::Complete,
        _ if new == 0 => return Action::Drop,
        _ => Finish::Open,
    };
    Action::PeerShutdown {
        flags: ShutdownFlags::from_bits(all),
        finished,
    }
}

/// What the action makes of the socket.
fn follow(action: Action, phase: &mut Phase, facts: &mut Facts) {
    match action {
        Action::Connected => *phase = Phase::Established,
        Action::Refused | Action::ProtocolError => *phase = Phase::Closed,
        Action::Receive => facts.unread = true,
        Action::PeerShutdown { flags, finished } => {
            facts.peer_shutdown = flags;
            facts.done |= finished == Finish::Complete;
        }
        Action::PeerReset => facts.done = true,
        Action::Accept => facts.backlog_full = true,
        Action::Drop | Action::Reset | Action::WriteSpace | Action::SendCredit => {}
    }
}

/// Everybody may talk to a listener, nobody but the peer to others.
fn check_source(bits: u8) {
    let header = packet(1, 0);
    let peer = Address::new(u32::from(bits & 7), 1024 - u32::from(bits >> 7));
    let is_peer = (peer.cid, peer.port) == (3, 1024);
    assert!(addressed_to(true, peer, &header));
    assert_eq!(addressed_to(false, peer, &header), is_peer);
}
