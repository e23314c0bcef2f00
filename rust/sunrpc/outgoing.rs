// SPDX-License-Identifier: GPL-2.0

//! Messages that wait for room in a connection.

use crate::{
    jiffies,
    message::{without_waiting, Message},
};
use kernel::prelude::*;
use socket::Socket;

/// What a server has sent, and the socket has not taken yet.
pub(crate) struct Outgoing {
    first: Option<KBox<Kept>>,
    progress: usize,
    is_closed: bool,
}

struct Kept {
    message: Message,
    next: Option<KBox<Kept>>,
}

impl Outgoing {
    /// Nothing.
    pub(crate) const fn new() -> Self {
        Self {
            first: None,
            progress: 0,
            is_closed: false,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Takes no more; what was kept is dropped.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        while self.pop() {}
    }

    /// Keeps a message behind all others, and the memory it is in. Does not wait for memory.
    pub(crate) fn keep(&mut self, mut message: Message) -> Result {
        message.hold_pages();
        let mut place = &mut self.first;
        if place.is_none() {
            self.progress = jiffies();
        }
        while let Some(kept) = place {
            place = &mut kept.next;
        }
        let kept = Kept {
            message,
            next: None,
        };
        *place = Some(KBox::new(kept, without_waiting())?);
        Ok(())
    }

    fn pop(&mut self) -> bool {
        match self.first.take() {
            Some(mut kept) => {
                self.first = kept.next.take();
                true
            }
            None => false,
        }
    }

    /// Sends what is kept, as far as there is room; whether that was all.
    pub(crate) fn send(&mut self, socket: &Socket) -> Result<bool> {
        while let Some(kept) = &mut self.first {
            let before = kept.message.sent();
            let is_all = kept.message.send(socket)?;
            if kept.message.sent() != before {
                self.progress = jiffies();
            }
            if !is_all {
                return Ok(false);
            }
            self.pop();
        }
        Ok(true)
    }

    /// How long nothing was taken any more.
    pub(crate) fn stalled(&self) -> usize {
        jiffies().wrapping_sub(self.progress)
    }
}
