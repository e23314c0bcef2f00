// SPDX-License-Identifier: GPL-2.0
//! Packets that should not be.

use std::time::Duration;

use anyhow::Context;
use rand::seq::SliceRandom;
use rand::Rng;

use super::{Attack, Victim, BACKLOG};
use crate::device::Key;
use crate::header::{
    Header, CREDIT_REQUEST, CREDIT_UPDATE, END_OF_MESSAGE, HEADER_LEN, HOST, REQUEST, RESPONSE,
    RST, RW, SEQPACKET, SHUTDOWN, STREAM,
};

const OPERATIONS: [u16; 12] = [
    0,
    REQUEST,
    RESPONSE,
    RST,
    SHUTDOWN,
    RW,
    RW,
    CREDIT_UPDATE,
    CREDIT_REQUEST,
    8,
    255,
    65_535,
];

const LENGTHS: [usize; 8] = [0, 1, 100, 128, 129, 3000, 4096, 40_000];

/// More messages than a window of 256 KiB may hold.
const TOO_MANY_MESSAGES: usize = 4200;

impl Attack<'_> {
    /// Ports of a connection that is not one of those that are left alone.
    fn key(&mut self) -> anyhow::Result<(Key, u16)> {
        match self.victim() {
            Some(victim) if self.rng.random_bool(0.8) => Ok((victim.key, victim.kind)),
            _ => {
                let listener = self.listener()?;
                let port = self.bench.device.fresh_port();
                Ok(((port, listener.port), listener.kind))
            }
        }
    }

    /// A header with wild numbers, on a connection.
    fn wild(&mut self, key: Key, kind: u16, op: u16) -> Header {
        Header {
            flags: self.edge(),
            buf_alloc: self.edge(),
            fwd_cnt: self.edge(),
            ..self.bench.device.header(key, kind, op)
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        let len = self.pick(&LENGTHS);
        vec![self.rng.random(); len]
    }
}

/// An operation that may make no sense, with wild numbers.
pub fn any_operation(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    let kind = if attack.rng.random_bool(0.1) {
        attack.pick(&[0, STREAM, SEQPACKET, 3, 65_535])
    } else {
        kind
    };
    let op = attack.pick(&OPERATIONS);
    let header = attack.wild(key, kind, op);
    let payload = attack.payload();
    attack.bench.device.send(header, &payload)
}

/// Any field at any edge.
pub fn any_header(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    let op = attack.pick(&OPERATIONS);
    let mut header = attack.wild(key, kind, op);
    let wide = (u64::from(attack.edge()) << 32) | u64::from(attack.edge());
    let cid = u64::from(attack.edge());
    let guest = attack.bench.device.cid;
    match attack.rng.random_range(0..7) {
        0 => header.src_cid = attack.pick(&[wide, cid, 0, 1, guest, 0xffff_ffff]),
        1 => header.dst_cid = attack.pick(&[wide, cid, 0, 1, HOST, 0xffff_ffff]),
        2 => header.src_port = attack.edge(),
        3 => header.dst_port = attack.edge(),
        4 => header.kind = attack.rng.random(),
        5 => header.op = attack.rng.random(),
        _ => {
            header.src_cid = wide;
            header.dst_cid = wide.rotate_left(32);
        }
    }
    if attack.bench.kept(&(header.src_port, header.dst_port)) {
        return Ok(());
    }
    let payload = attack.payload();
    attack.bench.device.send(header, &payload)
}

/// Lengths in the header, in the used entry and in truth that do not agree.
pub fn lie_about_length(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    let chain = attack.bench.device.buffer()?;
    let room = chain.room() as u32;
    let payload = attack.payload();
    let truth = (HEADER_LEN + payload.len()) as u32;
    let op = attack.pick(&[RW, RW, CREDIT_UPDATE, SHUTDOWN, RST]);
    let edge = attack.edge();
    let most = room - HEADER_LEN as u32;
    let header = Header {
        len: attack.pick(&[0, 1, truth, truth + 1, most, most + 1, edge]),
        ..attack.wild(key, kind, op)
    };
    let written = attack.pick(&[
        0,
        1,
        43,
        44,
        45,
        truth,
        truth + 1,
        room,
        room + 1,
        edge,
        u32::MAX,
    ]);
    attack
        .bench
        .device
        .fill(&chain, &header, &payload, written)?;
    attack.bench.device.rx.interrupt();
    Ok(())
}

/// Windows and counters that never were.
pub fn lie_about_credit(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    for _ in 0..attack.rng.random_range(1..5) {
        let op = attack.pick(&[CREDIT_UPDATE, CREDIT_UPDATE, CREDIT_REQUEST, RW]);
        let header = Header {
            flags: 0,
            ..attack.wild(key, kind, op)
        };
        attack.bench.device.send(header, &[])?;
    }
    Ok(())
}

/// A window that shrinks below what is in flight, step by step.
pub fn shrink_the_window(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let Some(Victim { id, key, kind }) = attack.victim() else {
        return Ok(());
    };
    let mut window: u32 = attack.pick(&[1000, 65_536, 262_144]);
    while window > 0 {
        let header = Header {
            buf_alloc: window,
            ..attack.bench.device.header(key, kind, CREDIT_UPDATE)
        };
        attack.bench.device.send(header, &[])?;
        attack.bench.ask(&format!("send {id} {window} 1"))?;
        window /= 8;
    }
    Ok(())
}

/// Room for more than there is memory.
pub fn claim_4_gib(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let Some(Victim { id, key, kind }) = attack.victim() else {
        return Ok(());
    };
    for fwd_cnt in [0, attack.edge()] {
        let header = Header {
            buf_alloc: u32::MAX,
            fwd_cnt,
            ..attack.bench.device.header(key, kind, CREDIT_UPDATE)
        };
        attack.bench.device.send(header, &[])?;
        attack.bench.ask(&format!("send {id} 200000 1"))?;
    }
    Ok(())
}

/// More than the window has room for.
pub fn send_too_much(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let Some(Victim { key, kind, .. }) = attack.victim() else {
        return Ok(());
    };
    let size = attack.pick(&[4096, 30_000, 65_536]);
    let payload = vec![0; size];
    let header = attack.bench.device.header(key, kind, RW);
    for _ in 0..=262_144 / size {
        attack.bench.device.send(header, &payload)?;
    }
    Ok(())
}

pub fn flood_with_bytes(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    let flags = attack.pick(&[0, END_OF_MESSAGE]);
    flood(attack, key, kind, flags, b"!")
}

/// Messages that take no credit, as many as memory would hold.
pub fn flood_with_empty_messages(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    let flags = attack.pick(&[0, END_OF_MESSAGE, 3]);
    flood(attack, key, kind, flags, b"")
}

fn flood(
    attack: &mut Attack<'_>,
    key: Key,
    kind: u16,
    flags: u32,
    payload: &[u8],
) -> anyhow::Result<()> {
    let count = if attack.rng.random_bool(0.06) {
        TOO_MANY_MESSAGES
    } else {
        attack.rng.random_range(20..300)
    };
    let header = Header {
        flags,
        buf_alloc: 65_536,
        ..attack.bench.device.header(key, kind, RW)
    };
    for _ in 0..count {
        attack.bench.device.send(header, payload)?;
    }
    Ok(())
}

/// Packets to the connections that are left alone, from addresses that are not their peers'.
pub fn speak_for_others(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let mut kept: Vec<(Key, u16)> = attack
        .bench
        .device
        .peers
        .iter()
        .map(|(key, peer)| (*key, peer.kind))
        .filter(|(key, _)| attack.bench.kept(key))
        .collect();
    kept.sort_unstable();
    let (key, kind) = attack.pick(&kept);
    let op = attack.pick(&OPERATIONS);
    let mut header = attack.wild(key, kind, op);
    if attack.rng.random() {
        header.src_cid = attack.pick(&[0, 1, 4, 77, 0xffff_fffe]);
    } else {
        header.src_port = attack.bench.device.fresh_port();
    }
    let payload = attack.payload();
    attack.bench.device.send(header, &payload)
}

/// Requests that nobody will accept.
pub fn fill_the_backlog(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let listener = attack.listener()?;
    for _ in 0..attack.rng.random_range(1..3 * BACKLOG) {
        let key = (attack.bench.device.fresh_port(), listener.port);
        let header = attack.wild(key, listener.kind, REQUEST);
        attack.bench.device.send(header, &[])?;
        if attack.rng.random_bool(0.3) {
            let op = attack.pick(&OPERATIONS);
            let header = attack.wild(key, listener.kind, op);
            attack.bench.device.send(header, b"early")?;
        }
    }
    attack.bench.barrier()?;
    // Or no other step would find room.
    for _ in 0..=BACKLOG {
        let id = attack.bench.id();
        let accepted = attack.bench.ask(&format!("accept {} {id}", listener.id))?;
        if !accepted.starts_with("ok") {
            break;
        }
        attack.bench.ask(&format!("close {id}"))?;
    }
    Ok(())
}

/// The end of a connection, and what should not come after it.
pub fn reset_and_go_on(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    for _ in 0..attack.rng.random_range(1..6) {
        let op = attack.pick(&[RST, RST, SHUTDOWN, RW, RESPONSE, REQUEST, CREDIT_REQUEST]);
        let header = Header {
            flags: attack.rng.random_range(0..5),
            ..attack.wild(key, kind, op)
        };
        attack.bench.device.send(header, b"more")?;
    }
    Ok(())
}

/// The header becomes another one when the driver has it already.
pub fn change_a_header_afterwards(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let (key, kind) = attack.key()?;
    let chain = attack.bench.device.buffer()?;
    let header = Header {
        len: 100,
        flags: 0,
        ..attack.wild(key, kind, RW)
    };
    attack.bench.device.fill(&chain, &header, &[0; 100], 144)?;
    attack.bench.device.rx.interrupt();
    // Only where headers have a place of their own: other memory may be somebody else's by now.
    if chain
        .writable
        .first()
        .is_some_and(|(_, len)| *len as usize == HEADER_LEN)
    {
        for _ in 0..attack.rng.random_range(1..50) {
            let other = Header {
                len: attack.edge(),
                dst_port: key.1,
                ..attack.wild(key, kind, RW)
            };
            attack.bench.device.rx.write(&chain, &other.encode());
        }
    }
    Ok(())
}

/// Allowed, and rare.
pub fn give_buffers_back_out_of_order(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let count = attack.bench.device.buffers.len().min(16);
    let mut chains: Vec<_> = attack.bench.device.buffers.drain(..count).collect();
    chains.shuffle(&mut attack.rng);
    for chain in chains {
        let (key, kind) = attack.key()?;
        let op = attack.pick(&OPERATIONS);
        let header = Header {
            len: 10,
            ..attack.wild(key, kind, op)
        };
        attack.bench.device.fill(&chain, &header, &[0; 10], 54)?;
    }
    attack.bench.device.rx.interrupt();
    Ok(())
}

/// Nothing is taken off the transmit ring, while the guest has much to say.
pub fn fall_silent(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let Some(Victim { id, .. }) = attack.victim() else {
        return Ok(());
    };
    attack.bench.device.silent = true;
    attack.bench.order(&format!("send {id} 200000 1"))?;
    let nobody = (attack.bench.device.fresh_port(), 7);
    for _ in 0..attack.rng.random_range(1..400) {
        // Each wants a reset. The driver stops to receive when it has too many of them to send.
        attack.bench.device.poll()?;
        let Some(chain) = attack.bench.device.buffers.pop_front() else {
            break;
        };
        let header = attack.wild(nobody, STREAM, RW);
        let header = Header { len: 0, ..header };
        attack.bench.device.fill(&chain, &header, &[], 44)?;
        attack.bench.device.rx.notify();
    }
    let pause = attack.rng.random_range(1..20);
    attack.bench.device.pass(Duration::from_millis(pause))?;
    attack.bench.device.silent = false;
    attack.bench.answer().context("after the silence")?;
    Ok(())
}
