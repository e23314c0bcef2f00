// SPDX-License-Identifier: GPL-2.0

//! How received bytes are kept until they are read.

use crate::deque::Deque;
use af_vsock::{Message, SkBuff};
use kernel::{alloc::AllocError, prelude::*};
use rvsock_bindings::{Run, StableBytes};

/// A piece of what was received, read from the front.
pub(crate) enum Chunk {
    /// Bytes in memory of ours, the buffer they arrived in or a copy among others; read up to
    /// `start`.
    Bytes { data: Run, start: usize },
    /// Bytes in the sk_buff of a sender on this machine.
    Buffer { skb: SkBuff, start: u32 },
}

impl Chunk {
    /// Bytes that were not read.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes { data, start } => data.len().saturating_sub(*start),
            Self::Buffer { skb, start } => skb.len().saturating_sub(*start) as usize,
        }
    }

    /// Copies up to `len` bytes to a reader; returns how many. May sleep.
    ///
    /// `EFAULT` if the reader's memory is not there; how much was copied is unknown then.
    pub(crate) fn copy_to(&self, message: &mut Message<'_, false>, len: usize) -> Result<usize> {
        let len = len.min(self.len());
        match self {
            Self::Bytes { data, start } => {
                let end = start.saturating_add(len);
                let bytes = data.as_slice().get(*start..end).ok_or(EFAULT)?;
                if message.destination().copy_to_iter(bytes) < len {
                    return Err(EFAULT);
                }
            }
            Self::Buffer { skb, start } => {
                skb.copy_to_iter(*start, message.destination(), len as u32)?
            }
        }
        Ok(len)
    }

    /// The first `len` bytes were read.
    fn advance(&mut self, len: usize) {
        match self {
            Self::Bytes { start, .. } => *start = start.saturating_add(len),
            Self::Buffer { start, .. } => *start = start.saturating_add(len as u32),
        }
    }

    /// What was not read, as an sk_buff.
    fn into_skb(self) -> Result<SkBuff> {
        match self {
            Self::Bytes { data, start } => Ok(SkBuff::copy_of(
                data.as_slice().get(start..).unwrap_or(&[]),
            )?),
            Self::Buffer { mut skb, start } => {
                if start > 0 {
                    skb.pull(start)?;
                }
                Ok(skb)
            }
        }
    }
}

/// Chunks in the order of arrival.
pub(crate) struct Chunks {
    chunks: Deque<Chunk>,
    /// Bytes that were copied since a buffer was kept.
    copied: usize,
}

impl Chunks {
    /// A buffer is kept as it is if payload fills 3/4 of it; what fills less is copied. So no more
    /// than 4/3 of the received bytes is held, whatever sizes a peer picks.
    const fn is_worth_keeping(len: usize, held: usize) -> bool {
        len >= held - held / 4
    }

    /// Smaller payload of local senders is copied even if it fills its sk_buff: chunks of copies
    /// between sk_buffs are rarely full, and must not outweigh them.
    const SMALLEST_BUFFER: usize = 16 * 1024;

    /// Room of the first chunk of copies in a row, and the most that later ones have. In between
    /// they grow with what is in those before, so that few bytes do not hold a page, also if there
    /// is a buffer that was kept between any two of them.
    const FIRST_COPY: usize = 256;
    const LAST_COPY: usize = 4096;

    pub(crate) const fn new() -> Self {
        Self {
            chunks: Deque::new(),
            copied: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter()
    }

    pub(crate) fn front(&self) -> Option<&Chunk> {
        self.chunks.front()
    }

    /// Queues the bytes of a buffer; gives the buffer back, emptied, if it was not kept. Does not
    /// sleep.
    pub(crate) fn push_run(&mut self, mut run: Run) -> Result<Option<Run>, AllocError> {
        // A chunk costs a place in the queue as well, so that one of less than a page is no bargain.
        if Self::is_worth_keeping(run.len(), run.held().max(Self::LAST_COPY)) {
            self.copied = 0;
            self.chunks.push_back(
                Chunk::Bytes {
                    data: run,
                    start: 0,
                },
                GFP_ATOMIC,
            )?;
            return Ok(None);
        }
        self.copy(run.as_slice())?;
        run.clear();
        Ok(Some(run))
    }

    /// Queues the bytes of an sk_buff; gives it back if it was not kept, to be freed where that is
    /// allowed. Does not sleep.
    pub(crate) fn push_buffer(&mut self, skb: SkBuff) -> Result<Option<SkBuff>> {
        let len = skb.len() as usize;
        if len >= Self::SMALLEST_BUFFER && Self::is_worth_keeping(len, skb.truesize() as usize) {
            self.copied = 0;
            self.chunks
                .push_back(Chunk::Buffer { skb, start: 0 }, GFP_ATOMIC)?;
            return Ok(None);
        }
        for piece in skb.pieces() {
            self.copy(piece)?;
        }
        Ok(Some(skb))
    }

    /// Appends a copy of `bytes` to the last chunk, as far as that has room, and then to new ones.
    fn copy(&mut self, bytes: &[u8]) -> Result<(), AllocError> {
        let mut rest = match self.chunks.back_mut() {
            Some(Chunk::Bytes { data, .. }) => data.append(bytes),
            _ => bytes,
        };
        while !rest.is_empty() {
            // A page at most: more would be rounded up by as much as it is.
            let wanted = rest.len().min(Self::LAST_COPY).checked_next_power_of_two();
            let capacity = self.next_copy_capacity().max(wanted.unwrap_or(0));
            let mut data = Run::new(capacity, GFP_ATOMIC)?;
            rest = data.append(rest);
            self.copied = self.copied.saturating_add(capacity);
            self.chunks
                .push_back(Chunk::Bytes { data, start: 0 }, GFP_ATOMIC)?;
        }
        Ok(())
    }

    /// Room of the next chunk of copies: at most a third of what is in those before it is wasted.
    fn next_copy_capacity(&self) -> usize {
        // Less than twice a sixth.
        let fitting = (self.copied / 6).checked_next_power_of_two();
        fitting
            .unwrap_or(Self::LAST_COPY)
            .clamp(Self::FIRST_COPY, Self::LAST_COPY)
    }

    /// Moves all chunks of `other` behind ours. A first chunk that fits into our last one is
    /// copied there: a reader who looks after each byte must not leave a chunk for each.
    pub(crate) fn append(&mut self, other: &mut Self) -> Result<(), AllocError> {
        other.copied = 0;
        if let (Some(Chunk::Bytes { data, .. }), Some(first)) =
            (self.chunks.back_mut(), other.chunks.front_mut())
        {
            if let Chunk::Bytes { data: more, start } = first {
                let bytes = more.as_slice().get(*start..).unwrap_or(&[]);
                let copied = bytes.len().saturating_sub(data.append(bytes).len());
                first.advance(copied);
            }
            if first.len() == 0 {
                other.chunks.pop_front();
            }
        }
        self.chunks.append(&mut other.chunks, GFP_ATOMIC)
    }

    /// The first `len` bytes were read, or are not wanted.
    pub(crate) fn advance(&mut self, mut len: usize) {
        while len > 0 {
            let Some(first) = self.chunks.front_mut() else {
                return;
            };
            let step = len.min(first.len());
            first.advance(step);
            len = len.saturating_sub(step);
            if first.len() == 0 {
                self.chunks.pop_front();
            }
        }
    }

    /// Takes up to `limit` bytes of the first chunk, as an sk_buff; says how many.
    pub(crate) fn pop_skb(&mut self, limit: usize) -> Option<(usize, Result<SkBuff>)> {
        let first = self.chunks.front()?;
        if let Chunk::Bytes { data, start } = first {
            if first.len() > limit {
                let end = start.saturating_add(limit);
                let skb = SkBuff::copy_of(data.as_slice().get(*start..end).unwrap_or(&[]));
                self.advance(limit);
                return Some((limit, skb.map_err(Error::from)));
            }
        }
        let chunk = self.chunks.pop_front()?;
        Some((chunk.len(), chunk.into_skb()))
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
    }
}
