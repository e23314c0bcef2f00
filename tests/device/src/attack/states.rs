// SPDX-License-Identifier: GPL-2.0
//! Each operation in each state of a socket, and what has to come back.

use anyhow::ensure;

use super::Attack;
use crate::bench::WINDOW;
use crate::device::Key;
use crate::header::{
    Header, CREDIT_REQUEST, CREDIT_UPDATE, NOTHING_MORE, REQUEST, RESPONSE, RST, RW, SEQPACKET,
    SHUTDOWN, STREAM,
};

#[derive(Clone, Copy, Debug)]
enum State {
    Listening,
    Connecting,
    Established,
    /// The guest does not send any more.
    HalfShut,
    /// Over, with bytes that were not read.
    ResetUnread,
    Closed,
}

const STATES: [State; 6] = [
    State::Listening,
    State::Connecting,
    State::Established,
    State::HalfShut,
    State::ResetUnread,
    State::Closed,
];
const KINDS: [u16; 2] = [STREAM, SEQPACKET];
/// The last is not one.
const OPERATIONS: u16 = 9;

/// What has to be answered: an operation, or nothing.
fn answer(state: State, op: u16) -> Option<u16> {
    let refused = (op != RST).then_some(RST);
    match state {
        State::Listening if op == REQUEST => Some(RESPONSE),
        State::Connecting if matches!(op, 0 | RESPONSE) => None,
        State::Established | State::HalfShut => match op {
            SHUTDOWN => Some(RST),
            CREDIT_REQUEST => Some(CREDIT_UPDATE),
            _ => None,
        },
        _ => refused,
    }
}

/// The next combination of a state and an operation.
pub fn one_operation_in_one_state(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let number = attack.states;
    attack.states += 1;
    let op = (number % usize::from(OPERATIONS)) as u16;
    let rest = number / usize::from(OPERATIONS);
    let state = STATES[rest % STATES.len()];
    let kind = KINDS[rest / STATES.len() % KINDS.len()];
    let (id, key) = enter(attack, state, kind)?;
    attack.bench.device.strays.clear();
    let header = Header {
        buf_alloc: WINDOW,
        flags: if op == SHUTDOWN { NOTHING_MORE } else { 0 },
        ..attack.bench.device.header(key, kind, op)
    };
    let payload: &[u8] = if op == RW { b"here" } else { b"" };
    attack.bench.device.send(header, payload)?;
    attack.bench.barrier()?;
    let device = &attack.bench.device;
    let answers: Vec<u16> = device
        .strays
        .iter()
        .filter(|packet| (packet.header.dst_port, packet.header.src_port) == key)
        .map(|packet| packet.header.op)
        .collect();
    let expected: Vec<u16> = answer(state, op).into_iter().collect();
    ensure!(
        answers == expected,
        "operation {op} in {state:?}, type {kind}: answered {answers:?}, not {expected:?}"
    );
    attack.bench.ask(&format!("close {id}"))?;
    let header = attack.bench.device.header(key, kind, RST);
    attack.bench.device.send(header, &[])
}

/// A socket in a state, and the ports that packets for it have.
fn enter(attack: &mut Attack<'_>, state: State, kind: u16) -> anyhow::Result<(u32, Key)> {
    let bench = &mut *attack.bench;
    if matches!(state, State::Listening) {
        let (id, port) = bench.listener(kind, 1)?;
        return Ok((id, (bench.device.fresh_port(), port)));
    }
    let (id, port) = bench.asking(kind)?;
    let wanted = |header: &Header| header.op == REQUEST && header.dst_port == port;
    let request = bench.device.stray("a request", wanted)?.header;
    let key = (port, request.src_port);
    if matches!(state, State::Connecting) {
        return Ok((id, key));
    }
    let packet = |op| Header {
        buf_alloc: WINDOW,
        ..bench.device.header(key, kind, op)
    };
    let (response, data, reset) = (packet(RESPONSE), packet(RW), packet(RST));
    bench.device.send(response, &[])?;
    bench.expect_event(id, "out")?;
    match state {
        State::HalfShut => {
            bench.call(&format!("shutdown {id} write"))?;
        }
        State::ResetUnread => {
            bench.device.send(data, b"unread")?;
            bench.device.send(reset, &[])?;
        }
        State::Closed => {
            bench.call(&format!("close {id}"))?;
            bench.device.send(reset, &[])?;
        }
        _ => {}
    }
    bench.barrier()?;
    Ok((id, key))
}
