// SPDX-License-Identifier: GPL-2.0

//! From what waits for a guest to the buffers it has posted.

use crate::{
    guest::{Guest, GuestDevice, RX, TX},
    link::Host,
};
use af_vsock::{deliver_tap, TapPayload};
use kernel::{prelude::*, sync::atomic::ordering};
use vhost::{Buffer, Device, Session};
use vsock_proto::{Header, HEADER_LEN};
use vsock_transport::Packet;

/// Bytes after which the guest is signalled, so that it works while we do. It is not interrupted if it
/// works already.
const SIGNAL_BYTES: usize = 64 * 1024;
/// As many bytes a packet counts for, however small: it makes work, too.
const SIGNAL_BYTES_MIN: usize = 4 * 1024;

/// Sends what waits, as far as the guest has posted buffers. Runs in the device's worker.
pub(crate) fn run(device: &Device<GuestDevice>) {
    let guest = device.driver().guest();
    if let Some(session) = device.queue(RX).and_then(|queue| queue.session()) {
        send_all(guest, session);
    }
    resume_transmit(device);
}

/// Goes on with the guest's packets if they waited for replies to be taken, and these were.
fn resume_transmit(device: &Device<GuestDevice>) {
    let guest = device.driver().guest();
    if !guest.transmit_waits.load(ordering::Acquire) {
        return;
    }
    if let Some(queue) = device.queue(TX) {
        if guest.flows.lock().replies() < queue.size() {
            guest.transmit_waits.store(false, ordering::Release);
            queue.poll();
        }
    }
}

fn send_all(guest: &Guest, mut session: Session<'_>) {
    let mut unsignalled: usize = 0;
    loop {
        // Nothing to send. Notifications stay off: the guest's buffers are of no interest now.
        let Some(packet) = guest.flows.lock().pop() else {
            return;
        };
        if packet.is_over() {
            continue;
        }
        let Ok(buffer) = session.next_buffer() else {
            return guest.flows.lock().put_back(packet);
        };
        let Some(buffer) = buffer else {
            guest.flows.lock().put_back(packet);
            match session.wait_for_guest() {
                Some(again) => session = again,
                None => return,
            }
            continue;
        };
        let Ok(sent) = send(guest, buffer, packet) else {
            return session.report_error();
        };
        unsignalled = unsignalled.saturating_add(sent.max(SIGNAL_BYTES_MIN));
        if unsignalled >= SIGNAL_BYTES {
            session.signal();
            unsignalled = 0;
        }
        if session.exceeds_weight(sent) {
            return;
        }
    }
}

/// Sends as much of a packet as fits the buffer; the rest waits for the next turn of its
/// connection. Returns the bytes of payload.
///
/// `EINVAL` or `EFAULT` if the buffer is none to send with: it is lost, and so is the packet.
fn send(
    guest: &Guest,
    mut buffer: Buffer<'_, '_>,
    mut packet: KBox<Packet<Host>>,
) -> Result<usize> {
    let room = buffer.writable().checked_sub(HEADER_LEN).ok_or(EINVAL)?;
    if buffer.readable() > 0 {
        return Err(EINVAL);
    }
    let rest = packet.unsent();
    let len = rest.min(u32::try_from(room).unwrap_or(u32::MAX));
    let header = packet.header.part(len, len == rest);
    write(&mut buffer, &header, &packet, len)?;
    tap(&header, &packet, len);
    buffer.used(len.saturating_add(HEADER_LEN as u32));
    packet.advance(len);
    let mut flows = guest.flows.lock();
    flows.charge(&header, len);
    if len < rest {
        flows.put_back(packet);
    } else {
        // Not under the lock: dropping the packet wakes its sender.
        drop(flows);
        drop(packet);
    }
    Ok(len as usize)
}

fn write(buffer: &mut Buffer<'_, '_>, header: &Header, packet: &Packet<Host>, len: u32) -> Result {
    buffer.write(|to| {
        if to.copy_to_iter(&header.encode()) < HEADER_LEN {
            return Err(EFAULT);
        }
        match packet.payload() {
            Some(skb) if len > 0 => skb.copy_to_iter(packet.sent(), to, len),
            _ => Ok(()),
        }
    })
}

fn tap(header: &Header, packet: &Packet<Host>, len: u32) {
    match packet.payload() {
        Some(skb) => deliver_tap(header, TapPayload::Part(skb, packet.sent(), len)),
        None => deliver_tap(header, TapPayload::Bytes(&[])),
    }
}
