// SPDX-License-Identifier: GPL-2.0

//! Reading what was received.

use crate::{
    connection::{Boundary, Reading},
    receive::overrun,
    send::update_credit_after_read,
    Connection, Engine, Link,
};
use af_vsock::{HeldSock, Message, SkBuff, SkbActor};
use kernel::prelude::*;

/// Reads up to `len` bytes (`virtio_transport_stream_dequeue()`).
pub(crate) fn read_stream<L: Link>(
    sock: &mut HeldSock<'_>,
    message: &mut Message<'_, false>,
    len: usize,
    peek: bool,
) -> Result<usize> {
    let attached = sock.attached::<Engine<L>>().ok_or(ENODEV)?;
    if peek {
        attached.shared.move_to(attached.owned)?;
        return partial(attached.owned.copy(message, len));
    }
    let (bytes, result) = attached.owned.consume(attached.shared, message, len);
    attached.shared.consume(bytes, 0);
    update_credit_after_read::<L>(sock);
    partial((bytes, result))
}

/// A stream reader gets what there was before an error, and the error the next time.
fn partial((bytes, result): (usize, Result)) -> Result<usize> {
    match result {
        Err(error) if bytes == 0 => Err(error),
        _ => Ok(bytes),
    }
}

/// Reads a message; returns its length, of which the reader may have got less
/// (`virtio_transport_seqpacket_dequeue()`).
///
/// A message whose reader's memory is not there is lost as a whole, with `EFAULT`.
pub(crate) fn read_message<L: Link>(
    sock: &mut HeldSock<'_>,
    message: &mut Message<'_, false>,
    peek: bool,
) -> Result<usize> {
    let attached = sock.attached::<Engine<L>>().ok_or(ENODEV)?;
    attached.shared.move_to(attached.owned)?;
    let Some(boundary) = attached.owned.boundaries.front().copied() else {
        return Ok(0);
    };
    let len = attached.owned.message_len(&boundary);
    let room = message.room();
    let (_, copied) = attached.owned.copy(message, room.min(len));
    if copied.is_ok() && boundary.ends_record {
        message.set_ends_record();
    }
    if !peek {
        attached.owned.drop_message(len);
        attached.shared.consume(len, 1);
        update_credit_after_read::<L>(sock);
    }
    copied.map(|()| len)
}

/// Hands everything to `actor` (`virtio_transport_read_skb()`).
///
/// All of it, where C hands over a packet: the actor is called for each wake-up, and one wake-up
/// stands for everything that arrived by then.
pub(crate) fn read_skb<L: Link>(sock: &mut HeldSock<'_>, actor: SkbActor) -> i32 {
    let mut result = EAGAIN.to_errno();
    loop {
        let Some(attached) = sock.attached::<Engine<L>>() else {
            return result;
        };
        if attached.shared.move_to(attached.owned).is_err() {
            return end_for_want_of_memory::<L>(sock);
        }
        let Some(skb) = attached.owned.pop_skb(attached.shared) else {
            return result;
        };
        update_credit_after_read::<L>(sock);
        result = match skb {
            Ok(skb) => actor.call(sock, skb),
            Err(_) => return end_for_want_of_memory::<L>(sock),
        };
        if result < 0 {
            return result;
        }
    }
}

/// Bytes are missing, or are there and nobody comes back for them: the connection is over.
fn end_for_want_of_memory<L: Link>(sock: &mut HeldSock<'_>) -> i32 {
    overrun::<L>(sock);
    ENOMEM.to_errno()
}

impl Reading {
    /// Copies up to `len` bytes, which stay; says how many, and what stopped it.
    fn copy(&self, message: &mut Message<'_, false>, len: usize) -> (usize, Result) {
        let mut copied: usize = 0;
        for chunk in self.chunks.iter() {
            let rest = len.saturating_sub(copied);
            if rest == 0 {
                break;
            }
            match chunk.copy_to(message, rest) {
                Ok(bytes) => copied = copied.saturating_add(bytes),
                Err(error) => return (copied, Err(error)),
            }
        }
        (copied, Ok(()))
    }

    /// Takes up to `len` bytes, from what arrives meanwhile, too; says how many, and what stopped
    /// it. Of a chunk that could not be copied as a whole nothing is taken.
    fn consume(
        &mut self,
        connection: &Connection,
        message: &mut Message<'_, false>,
        len: usize,
    ) -> (usize, Result) {
        let mut taken: usize = 0;
        while taken < len {
            if self.chunks.is_empty() {
                if let Err(error) = connection.move_to(self) {
                    return (taken, Err(error));
                }
            }
            let Some(chunk) = self.chunks.front() else {
                break;
            };
            match chunk.copy_to(message, len.saturating_sub(taken)) {
                Ok(bytes) => {
                    self.advance(bytes);
                    taken = taken.saturating_add(bytes);
                }
                Err(error) => return (taken, Err(error)),
            }
        }
        (taken, Ok(()))
    }

    fn advance(&mut self, bytes: usize) {
        self.chunks.advance(bytes);
        self.position = self.position.saturating_add(bytes as u64);
    }

    fn message_len(&self, boundary: &Boundary) -> usize {
        boundary.end.saturating_sub(self.position) as usize
    }

    /// The first message, of `len` bytes, was read.
    fn drop_message(&mut self, len: usize) {
        self.advance(len);
        self.boundaries.pop_front();
    }

    /// Takes out a chunk, or as much of it as belongs to one message.
    fn pop_skb(&mut self, connection: &Connection) -> Option<Result<SkBuff>> {
        let end = self.boundaries.front().map(|boundary| boundary.end);
        let limit = end.map_or(usize::MAX, |end| end.saturating_sub(self.position) as usize);
        let (bytes, skb) = self.chunks.pop_skb(limit)?;
        self.position = self.position.saturating_add(bytes as u64);
        let mut messages: u32 = 0;
        while self
            .boundaries
            .front()
            .is_some_and(|boundary| boundary.end <= self.position)
        {
            self.boundaries.pop_front();
            messages = messages.saturating_add(1);
        }
        connection.consume(bytes, messages);
        Some(skb)
    }
}
