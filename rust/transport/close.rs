// SPDX-License-Identifier: GPL-2.0

//! The end of a connection, from this side or the other.

use crate::{
    send::{send_control, send_reset},
    Engine, Link,
};
use af_vsock::{Direction, HeldSock, SocketState};
use kernel::time::{msecs_to_jiffies, Jiffies};
use vsock_proto::{Operation, ShutdownFlags};

/// How long a closed socket waits for its peer to answer, in milliseconds (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: u32 = 8000;

/// `close()`, or a change of transport (`virtio_transport_release()`).
pub(crate) fn release<L: Link>(mut sock: HeldSock<'_>) {
    if close::<L>(&mut sock) {
        sock.set_done();
        remove::<L>(&mut sock);
    }
}

/// Says good-bye to the peer; false if its answer has to be waited for
/// (`virtio_transport_close()`).
fn close<L: Link>(sock: &mut HeldSock<'_>) -> bool {
    if !matches!(
        sock.state(),
        SocketState::Established | SocketState::Closing
    ) {
        return true;
    }
    // Whoever ended the connection has told the peer, or is the peer; its port may have a new owner.
    if sock.is_done() {
        return true;
    }
    if sock.peer_shutdown() == Direction::BOTH {
        send_reset::<L>(sock, false);
        return true;
    }
    if sock.shutdown() != Direction::BOTH {
        let _ = send_control::<L>(sock, Operation::Shutdown, ShutdownFlags::ALL, false);
    }
    sock.linger();
    if sock.is_done() {
        return true;
    }
    let scheduled = L::with_close_queue(|queue| {
        sock.schedule_close::<Engine<L>>(queue, close_timeout());
    });
    scheduled.is_none()
}

fn close_timeout() -> Jiffies {
    msecs_to_jiffies(CLOSE_TIMEOUT)
}

/// The peer did not answer in time (`virtio_transport_close_timeout()`).
pub(crate) fn close_timed_out<L: Link>(mut sock: HeldSock<'_>) {
    if !sock.is_done() {
        send_reset::<L>(&mut sock, false);
        finish::<L>(&mut sock);
    }
    // Also where the peer's answer came while this waited for the lock, and found no timer to
    // cancel.
    remove::<L>(&mut sock);
}

/// The connection is over; what was received can still be read (`virtio_transport_do_close()`).
pub(crate) fn finish<L: Link>(sock: &mut HeldSock<'_>) {
    sock.set_done();
    sock.set_peer_shutdown(Direction::BOTH);
    let unread = sock
        .attached::<Engine<L>>()
        .is_some_and(|attached| attached.shared.readable_bytes() > 0);
    if !unread {
        sock.set_state(SocketState::Closing);
    }
    sock.report_state();
    if sock.cancel_close() {
        remove::<L>(sock);
    }
}

/// Nobody will read any more: forgets what was received, and takes the socket out of the tables
/// (`virtio_transport_remove_sock()`).
fn remove<L: Link>(sock: &mut HeldSock<'_>) {
    if let Some(attached) = sock.attached::<Engine<L>>() {
        attached.owned.clear();
        attached.shared.discard();
    }
    sock.remove();
}
