// SPDX-License-Identifier: GPL-2.0

//! From the buffers a guest has filled to the engine.

use crate::{
    guest::{Guest, GuestDevice, TX},
    link::Host,
};
use af_vsock::{deliver_tap, TapPayload, CID_HOST};
use kernel::{
    prelude::*,
    sync::{atomic::ordering, Arc},
};
use rvsock_bindings::Run;
use vhost::{Buffer, Device, Session};
use vsock_proto::{Header, HEADER_LEN, MAX_PAYLOAD};
use vsock_transport::{Payload, Received};

/// Most bytes in one piece of memory: larger ones are hard to get (`PAGE_ALLOC_COSTLY_ORDER`).
const PIECE: usize = 32 * 1024;
/// Pieces of the largest packet.
const PIECES: usize = MAX_PAYLOAD as usize / PIECE;

/// A packet in memory of ours.
struct Packet {
    header: Header,
    pieces: [Option<Run>; PIECES],
}

/// Receives what the guest has sent. Runs in the device's worker.
pub(crate) fn run(device: &Device<GuestDevice>) {
    let guest = device.driver().guest();
    if let Some(session) = device.queue(TX).and_then(|queue| queue.session()) {
        receive_all(guest, session);
    }
}

fn receive_all(guest: &Arc<Guest>, mut session: Session<'_>) {
    loop {
        if must_wait(guest, session.size()) {
            return;
        }
        let Ok(buffer) = session.next_buffer() else {
            return;
        };
        let Some(buffer) = buffer else {
            match session.wait_for_guest() {
                Some(again) => session = again,
                None => return,
            }
            continue;
        };
        let bytes = match take(buffer) {
            Ok(packet) => {
                let bytes = packet.header.len as usize;
                deliver(guest, packet);
                bytes
            }
            // Its packet is still there, and is looked at again when there may be memory.
            Err(error) if error == ENOMEM => return guest.retry_later(),
            Err(_) => {
                session.report_error();
                0
            }
        };
        if session.exceeds_weight(bytes.saturating_add(HEADER_LEN)) {
            return;
        }
    }
}

/// Whether so many replies wait for the guest that it has to take some first: each packet of its
/// may cause another one. The worker comes back to it then.
fn must_wait(guest: &Guest, limit: usize) -> bool {
    let waits = guest.flows.lock().replies() >= limit;
    if waits {
        guest.transmit_waits.store(true, ordering::Release);
    }
    waits
}

/// Copies a packet out of the guest's memory, and gives the buffer back.
///
/// `ENOMEM` if there is no memory: the buffer was put back, nothing is lost. Another error if there
/// is no packet in it.
fn take(mut buffer: Buffer<'_, '_>) -> Result<Packet> {
    match read(&mut buffer) {
        Err(error) if error == ENOMEM => {
            buffer.put_back();
            Err(error)
        }
        result => {
            buffer.used(0);
            result
        }
    }
}

fn read(buffer: &mut Buffer<'_, '_>) -> Result<Packet> {
    let room = buffer.readable().checked_sub(HEADER_LEN).ok_or(EINVAL)?;
    if room > MAX_PAYLOAD as usize || buffer.writable() > 0 {
        return Err(EINVAL);
    }
    buffer.read(|from| {
        let mut wire = [0; HEADER_LEN];
        if from.copy_from_iter(&mut wire) < HEADER_LEN {
            return Err(EFAULT);
        }
        let header = Header::parse(&wire).map_err(|_| EINVAL)?;
        let mut rest = header.len as usize;
        if rest > room {
            return Err(EINVAL);
        }
        let mut pieces = [const { None }; PIECES];
        for piece in &mut pieces {
            if rest == 0 {
                break;
            }
            let len = rest.min(PIECE);
            *piece = Some(Run::copy_of(from, len)?);
            rest = rest.saturating_sub(len);
        }
        Ok(Packet { header, pieces })
    })
}

/// Hands a packet to the engine, if the guest may send it: from its own CID, and to the host.
fn deliver(guest: &Guest, packet: Packet) {
    let Packet { header, pieces } = packet;
    let is_addressed = Some(header.source.cid) == guest.cid() && header.destination.cid == CID_HOST;
    let mut rest = header.len;
    let mut pieces = pieces.into_iter().flatten();
    loop {
        let run = pieces.next().unwrap_or(Run::empty());
        rest = rest.saturating_sub(run.len() as u32);
        let header = header.part(run.len() as u32, rest == 0);
        deliver_tap(&header, TapPayload::Bytes(run.as_slice()));
        if is_addressed {
            Received::new(header, Payload::Run(run), guest.net(), None).receive::<Host>();
        }
        if rest == 0 {
            return;
        }
    }
}
