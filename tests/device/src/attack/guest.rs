// SPDX-License-Identifier: GPL-2.0
//! What makes the guest do something, so that there are sockets in all states.

use rand::Rng;

use super::{Attack, Victim};
use crate::header::{Header, REQUEST, RESPONSE};

/// Windows of sockets, with the smallest there is.
const WINDOWS: [u32; 4] = [128, 4096, 65_536, 262_144];

/// Lengths of what is sent and received.
const LENGTHS: [u32; 6] = [1, 100, 4096, 32_449, 65_536, 200_000];

/// A socket that asks for a connection, which is granted or not.
pub fn let_the_guest_connect(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let kind = attack.kind();
    let id = attack.bench.socket(kind)?;
    let window = attack.pick(&WINDOWS);
    attack.bench.call(&format!("window {id} {window}"))?;
    let port = attack.bench.device.fresh_port();
    attack.bench.ask(&format!("connect {id} {port}"))?;
    let wanted = |header: &Header| header.op == REQUEST && header.dst_port == port;
    let request = attack.bench.device.stray("a request", wanted)?.header;
    let key = (port, request.src_port);
    attack.victims.push(Victim { id, key, kind });
    if attack.rng.random_bool(0.75) {
        let header = Header {
            buf_alloc: attack.edge(),
            fwd_cnt: if attack.rng.random() {
                0
            } else {
                attack.edge()
            },
            ..attack.bench.device.header(key, kind, RESPONSE)
        };
        attack.bench.device.send(header, &[])?;
    }
    if attack.rng.random_bool(0.25) {
        attack.bench.call(&format!("drain {id}"))?;
    }
    Ok(())
}

/// A connection to a listener, which is accepted or not.
pub fn connect_to_the_guest(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let listener = attack.listener()?;
    let key = (attack.bench.device.fresh_port(), listener.port);
    let header = Header {
        buf_alloc: attack.edge(),
        fwd_cnt: if attack.rng.random() {
            0
        } else {
            attack.edge()
        },
        ..attack.bench.device.header(key, listener.kind, REQUEST)
    };
    for _ in 0..attack.pick(&[1, 1, 1, 2]) {
        attack.bench.device.send(header, &[])?;
    }
    attack.bench.barrier()?;
    let id = attack.bench.id();
    // Somebody else may be first in the queue: then that one is accepted.
    let accepted = attack.bench.ask(&format!("accept {} {id}", listener.id))?;
    if accepted.starts_with("ok") {
        let kind = listener.kind;
        attack.victims.push(Victim { id, key, kind });
    }
    Ok(())
}

/// Any call on any socket, whether it can succeed or not.
pub fn use_a_socket(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    let Some(Victim { id, .. }) = attack.victim() else {
        return Ok(());
    };
    let len = attack.pick(&LENGTHS);
    let window = attack.pick(&WINDOWS);
    let order = match attack.rng.random_range(0..14) {
        0..=3 => format!("send {id} {len} {len}"),
        4 => format!("send {id} {len} {len} eor"),
        5..=7 => format!("recv {id} {len}"),
        8 => format!("recv {id} {len} peek"),
        9 => format!("shutdown {id} read"),
        10 => format!("shutdown {id} write"),
        11 => format!("window {id} {window}"),
        12 => format!("low-water {id} {len}"),
        _ => format!("unsent {id}"),
    };
    attack.bench.ask(&order)?;
    Ok(())
}

pub fn close_a_socket(attack: &mut Attack<'_>) -> anyhow::Result<()> {
    if attack.victims.is_empty() {
        return Ok(());
    }
    let at = attack.rng.random_range(0..attack.victims.len());
    let victim = attack.victims.remove(at);
    attack.give_up(victim)
}
