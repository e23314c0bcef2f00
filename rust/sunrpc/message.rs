// SPDX-License-Identifier: GPL-2.0

//! RPC messages on their way out.

use crate::buffer;
use core::ptr;
use kernel::{
    alloc::{flags, Flags},
    page::PAGE_SIZE,
    prelude::*,
};
use rvsock_bindings::bindings;
use socket::{Pieces, Socket};
use vsock_proto::{Marker, MARKER_LEN};

/// A message with its marker, as pieces of memory.
///
/// # Invariants
///
/// The first piece is `_marker`. The others are valid for as long as whoever made the message says;
/// if `holds_pages`, the message has a reference to the page of each. `length` is the sum of all,
/// and `sent` not more.
pub(crate) struct Message {
    /// Owns what the first piece refers to.
    _marker: KBox<[u8; MARKER_LEN]>,
    pieces: KVVec<bindings::bio_vec>,
    length: usize,
    sent: usize,
    holds_pages: bool,
}

// SAFETY: Pages may be used from any thread.
unsafe impl Send for Message {}

impl Message {
    /// The message in an XDR buffer.
    ///
    /// # Safety
    ///
    /// The buffer has to be valid, and its memory has to stay so until the message is dropped or
    /// has been told to [`Message::hold_pages`].
    pub(crate) unsafe fn of_buffer(buffer: &bindings::xdr_buf, gfp: Flags) -> Result<Self> {
        let length = buffer.len as usize;
        let marker = Marker::of_record(buffer.len).ok_or(EMSGSIZE)?;
        let marker = KBox::new(marker.to_bytes(), gfp)?;
        // SAFETY: The buffer is valid by the requirements of this function.
        let pieces = unsafe { buffer::pieces(&marker[..], buffer, gfp)? };
        // INVARIANT: These are the marker and the buffer.
        Ok(Self {
            _marker: marker,
            pieces,
            length: length.checked_add(MARKER_LEN).ok_or(EMSGSIZE)?,
            sent: 0,
            holds_pages: false,
        })
    }

    /// A message with a copy of the bytes, of which there may be a page. Does not wait for memory.
    pub(crate) fn copy_of(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > PAGE_SIZE {
            return Err(EMSGSIZE);
        }
        let marker = Marker::of_record(bytes.len() as u32).ok_or(EMSGSIZE)?;
        let marker = KBox::new(marker.to_bytes(), without_waiting())?;
        let mut pieces = KVVec::with_capacity(2, without_waiting())?;
        buffer::push(&mut pieces, buffer::piece(&marker[..]))?;
        // SAFETY: A page of ours, with room for the bytes.
        let piece = unsafe {
            let page = bindings::sunrpc_alloc_page(bindings::GFP_NOWAIT | bindings::__GFP_NOWARN);
            if page.is_null() {
                return Err(ENOMEM);
            }
            let memory = bindings::sunrpc_page_address(page).cast::<u8>();
            ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len());
            bindings::bio_vec {
                bv_page: page,
                bv_len: bytes.len() as u32,
                bv_offset: 0,
            }
        };
        buffer::push(&mut pieces, piece)?;
        // INVARIANT: These are the marker and the page, whose only reference is ours.
        Ok(Self {
            _marker: marker,
            pieces,
            length: bytes.len().saturating_add(MARKER_LEN),
            sent: 0,
            holds_pages: true,
        })
    }

    /// Keeps the memory of the message, whatever its owner does with it. All of it has to be pages.
    pub(crate) fn hold_pages(&mut self) {
        if self.holds_pages {
            return;
        }
        for piece in self.pieces.iter().skip(1) {
            // SAFETY: By the type invariants the page is valid.
            unsafe { bindings::sunrpc_get_page(piece.bv_page) }
        }
        // INVARIANT: The references were taken just now.
        self.holds_pages = true;
    }

    /// Sends as much as there is room for; whether that was all. The socket may keep pages beyond
    /// the message.
    pub(crate) fn send(&mut self, socket: &Socket) -> Result<bool> {
        while self.sent < self.length {
            // SAFETY: By the type invariants the pieces are valid, and that many bytes.
            let pieces = unsafe { Pieces::new(&self.pieces, self.length) };
            match socket.splice_pieces(pieces, self.sent) {
                // INVARIANT: No more is sent than there is.
                Ok(count) => self.sent = self.sent.saturating_add(count).min(self.length),
                Err(error) if error == EAGAIN => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Bytes with the marker.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Bytes that were sent.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if self.holds_pages {
            for piece in self.pieces.iter().skip(1) {
                // SAFETY: By the type invariants the reference is ours.
                unsafe { bindings::sunrpc_put_page(piece.bv_page) }
            }
        }
    }
}

/// For messages that must not wait for memory.
pub(crate) fn without_waiting() -> Flags {
    flags::GFP_NOWAIT | flags::__GFP_NOWARN
}
