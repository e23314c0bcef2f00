// SPDX-License-Identifier: GPL-2.0

//! How a client receives.

use crate::{
    buffer,
    callback::Callback,
    client::{Client, Link},
    errors::{bad_message, not_connected},
    request::{Direction, PREAMBLE_LEN},
    Family,
};
use kernel::{page::PAGE_SIZE, prelude::*, types::Opaque};
use rvsock_bindings::bindings;
use socket::{Pieces, Socket};
use vsock_proto::{record::MAX_FRAGMENT, Progress, RecordReader, Want, MARKER_LEN};

/// Pieces that are read before others get their turn.
const PIECES_AT_ONCE: usize = 256;

/// What is being received.
pub(crate) struct Incoming {
    reader: RecordReader,
    preamble: [u8; PREAMBLE_LEN],
    body: Body,
    scratch: KVec<u8>,
    is_over: bool,
}

/// Where the bytes of a message go.
enum Body {
    /// Not known yet.
    Unknown,
    /// To the request with the message's number; `true` once some of them did.
    Reply(bool),
    /// To a callback.
    Call(Callback),
    /// Nowhere.
    Nobody,
}

// SAFETY: Callbacks may be used from any thread.
unsafe impl Send for Incoming {}

/// The next bytes of a message: where they lie in it, how many, and how to get them.
struct Next<'a, F: Family> {
    client: &'a Client<F>,
    socket: &'a Socket,
    offset: usize,
    length: usize,
}

impl Incoming {
    pub(crate) const fn new() -> Self {
        Self {
            reader: RecordReader::new(MAX_FRAGMENT),
            preamble: [0; PREAMBLE_LEN],
            body: Body::Unknown,
            scratch: KVec::new(),
            is_over: false,
        }
    }

    /// The connection is not used any more.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
        self.body = Body::Unknown;
    }

    fn number(&self) -> Option<[u8; 4]> {
        self.preamble.first_chunk().copied()
    }

    /// Reads a piece.
    fn read<F: Family>(&mut self, client: &Client<F>, socket: &Socket) -> Result {
        let progress = match self.reader.poll_want() {
            Want::Marker(missing) => {
                let mut bytes = [0; MARKER_LEN];
                let room = bytes.get_mut(..missing).ok_or(EMSGSIZE)?;
                let count = nonzero(socket.receive(room)?)?;
                let bytes = bytes.get(..count).ok_or(EMSGSIZE)?;
                self.reader
                    .handle_marker(bytes)
                    .map_err(|_| bad_message())?
            }
            Want::Payload { offset, length } => {
                let next = Next {
                    client,
                    socket,
                    offset: offset as usize,
                    length: length as usize,
                };
                let count = if next.offset < PREAMBLE_LEN {
                    self.read_preamble(&next)?
                } else {
                    self.read_body(&next)?
                };
                self.reader.handle_payload(count as u32)
            }
        };
        if let Progress::Complete(length) = progress {
            self.complete(client, length as usize)?;
        }
        Ok(())
    }

    fn read_preamble<F: Family>(&mut self, next: &Next<'_, F>) -> Result<usize> {
        let end = next.offset.saturating_add(next.length).min(PREAMBLE_LEN);
        let room = self.preamble.get_mut(next.offset..end);
        nonzero(next.socket.receive(room.ok_or(bad_message())?)?)
    }

    fn read_body<F: Family>(&mut self, next: &Next<'_, F>) -> Result<usize> {
        if matches!(self.body, Body::Unknown) {
            self.body = self.find_body(next.client)?;
        }
        match &mut self.body {
            Body::Call(callback) => {
                nonzero(callback.receive(next.socket, next.offset, next.length)?)
            }
            Body::Reply(_) => self.read_reply(next),
            Body::Unknown | Body::Nobody => self.discard(next),
        }
    }

    /// Whom the message is for.
    fn find_body<F: Family>(&self, client: &Client<F>) -> Result<Body> {
        let kind = self.preamble.last_chunk().copied().ok_or(bad_message())?;
        Ok(match Direction::from_wire(kind) {
            Some(Direction::Reply) => Body::Reply(false),
            Some(Direction::Call) => {
                // SAFETY: The transport is valid.
                Body::Call(unsafe { Callback::new(client.xprt(), &self.preamble)? })
            }
            None => Body::Nobody,
        })
    }

    fn discard<F: Family>(&mut self, next: &Next<'_, F>) -> Result<usize> {
        if self.scratch.is_empty() {
            self.scratch = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?;
        }
        let end = next.length.min(self.scratch.len());
        let room = self.scratch.get_mut(..end).ok_or(ENOMEM)?;
        nonzero(next.socket.receive(room)?)
    }

    /// Reads into the request that the message answers.
    fn read_reply<F: Family>(&mut self, next: &Next<'_, F>) -> Result<usize> {
        let (client, offset) = (next.client, next.offset);
        // SAFETY: The transport is valid.
        let Some(request) = (unsafe { self.pin_request(client.xprt()) }) else {
            self.body = Body::Nobody;
            return self.discard(next);
        };
        // SAFETY: The request is pinned, and its buffer is ours to fill.
        let result = unsafe {
            let buffer = &mut (*request).rq_private_buf;
            if offset == PREAMBLE_LEN && !buffer::fill_head(buffer, &self.preamble) {
                Ok(None)
            } else {
                receive_into(buffer, next.socket, offset, next.length)
            }
        };
        let (outcome, received) = match result {
            Ok(Some(count)) => (Ok(count), offset.saturating_add(count)),
            // It is longer than the request has room for: that gets what there was room for.
            Ok(None) => (Ok(0), offset),
            Err(error) => (Err(error), offset),
        };
        // SAFETY: As above.
        unsafe {
            (*request).rq_private_buf.len = received as u32;
            if matches!(result, Ok(None)) {
                bindings::spin_lock(&raw mut (*client.xprt()).queue_lock);
                bindings::xprt_complete_rqst((*request).rq_task, received as i32);
                bindings::spin_unlock(&raw mut (*client.xprt()).queue_lock);
            }
            unpin(client.xprt(), request);
        }
        self.body = if matches!(result, Ok(None)) {
            Body::Nobody
        } else {
            Body::Reply(true)
        };
        match outcome {
            Ok(0) if matches!(self.body, Body::Nobody) => self.discard(next),
            outcome => outcome,
        }
    }

    /// The request that the message answers, pinned; `None` if there is none, or if it was sent
    /// again after some of this answer had been received.
    ///
    /// # Safety
    ///
    /// `xprt` has to be valid.
    unsafe fn pin_request(&self, xprt: *mut bindings::rpc_xprt) -> Option<*mut bindings::rpc_rqst> {
        let number = u32::from_ne_bytes(self.number()?);
        // SAFETY: By the requirements of this function; what is found stays while it is pinned.
        unsafe {
            bindings::spin_lock(&raw mut (*xprt).queue_lock);
            let mut request = bindings::xprt_lookup_rqst(xprt, number);
            let has_begun = matches!(self.body, Body::Reply(true));
            if !request.is_null() && has_begun && (*request).rq_private_buf.len == 0 {
                request = core::ptr::null_mut();
            }
            if !request.is_null() {
                bindings::xprt_pin_rqst(request);
            }
            bindings::spin_unlock(&raw mut (*xprt).queue_lock);
            (!request.is_null()).then_some(request)
        }
    }

    /// A message is complete.
    fn complete<F: Family>(&mut self, client: &Client<F>, length: usize) -> Result {
        if length < PREAMBLE_LEN {
            return Err(bad_message());
        }
        let body = core::mem::replace(&mut self.body, Body::Unknown);
        match body {
            // Not a byte behind the preamble: nothing that anybody waits for.
            Body::Unknown | Body::Nobody | Body::Reply(false) => {}
            Body::Call(callback) => callback.deliver(length),
            Body::Reply(true) => {
                self.body = Body::Reply(true);
                // SAFETY: The transport is valid.
                unsafe {
                    if let Some(request) = self.pin_request(client.xprt()) {
                        bindings::spin_lock(&raw mut (*client.xprt()).queue_lock);
                        bindings::xprt_complete_rqst((*request).rq_task, length as i32);
                        bindings::spin_unlock(&raw mut (*client.xprt()).queue_lock);
                        unpin(client.xprt(), request);
                    }
                }
                self.body = Body::Unknown;
            }
        }
        Ok(())
    }
}

/// # Safety
///
/// The request has to be pinned, by the caller.
unsafe fn unpin(xprt: *mut bindings::rpc_xprt, request: *mut bindings::rpc_rqst) {
    // SAFETY: By the requirements of this function.
    unsafe {
        bindings::spin_lock(&raw mut (*xprt).queue_lock);
        bindings::xprt_unpin_rqst(request);
        bindings::spin_unlock(&raw mut (*xprt).queue_lock);
    }
}

/// Receives into the part of a buffer that `offset` lies in; `None` if it lies behind the end.
///
/// # Safety
///
/// The buffer has to be valid, pinned and prepared.
unsafe fn receive_into(
    buffer: &mut bindings::xdr_buf,
    socket: &Socket,
    offset: usize,
    length: usize,
) -> Result<Option<usize>> {
    let ([head], [tail]) = (buffer.head, buffer.tail);
    if offset < head.iov_len {
        // SAFETY: By the requirements of this function.
        return unsafe { receive_kvec(&head, socket, offset, length) };
    }
    let offset = offset.saturating_sub(head.iov_len);
    let page_len = buffer.page_len as usize;
    if offset < page_len {
        let end = offset.saturating_add(length).min(page_len);
        // SAFETY: As above.
        let end = unsafe { buffer::fill_sparse(buffer, end) };
        if end <= offset {
            return Ok(None);
        }
        let base = buffer.page_base as usize;
        // SAFETY: The buffer is prepared: it has a piece for each page.
        let pieces = unsafe {
            let all = core::slice::from_raw_parts(buffer.bvec, buffer::page_count(buffer));
            Pieces::new(all, base.saturating_add(end))
        };
        let count = socket.receive_pieces(pieces, base.saturating_add(offset))?;
        return nonzero(count).map(Some);
    }
    let offset = offset.saturating_sub(page_len);
    // SAFETY: As above.
    unsafe { receive_kvec(&tail, socket, offset, length) }
}

/// # Safety
///
/// `part` has to be valid memory that is the caller's.
unsafe fn receive_kvec(
    part: &bindings::kvec,
    socket: &Socket,
    offset: usize,
    length: usize,
) -> Result<Option<usize>> {
    if part.iov_base.is_null() || offset >= part.iov_len {
        return Ok(None);
    }
    // SAFETY: By the requirements of this function.
    let room = unsafe { core::slice::from_raw_parts_mut(part.iov_base.cast::<u8>(), part.iov_len) };
    let end = offset.saturating_add(length).min(part.iov_len);
    let room = room.get_mut(offset..end).ok_or(EMSGSIZE)?;
    nonzero(socket.receive(room)?).map(Some)
}

/// Nothing at all is the end of the stream.
fn nonzero(count: usize) -> Result<usize> {
    if count == 0 {
        return Err(not_connected());
    }
    Ok(count)
}

impl<F: Family> Client<F> {
    /// # Safety
    ///
    /// `work` is the `receive_work` of a client.
    pub(crate) unsafe extern "C" fn receive_work(work: *mut bindings::work_struct) {
        // SAFETY: A client is there until `destroy` has cancelled its work.
        unsafe {
            let this = &*kernel::container_of!(Opaque::cast_from(work), Self, receive_work);
            let flags = bindings::sunrpc_nofs_save();
            if let Some(link) = this.link() {
                this.receive(&link);
            }
            bindings::sunrpc_nofs_restore(flags);
        }
    }

    fn receive(&self, link: &Link<F>) {
        let mut incoming = link.incoming.lock();
        for _ in 0..PIECES_AT_ONCE {
            if incoming.is_over {
                return;
            }
            match incoming.read(self, &link.socket) {
                Ok(()) => {}
                // What comes now queues this work again.
                Err(error) if error == EAGAIN => return,
                Err(_) => {
                    incoming.end();
                    drop(incoming);
                    if self.is_connected() {
                        self.disconnect();
                    }
                    return;
                }
            }
        }
        drop(incoming);
        self.receive_soon();
    }
}
