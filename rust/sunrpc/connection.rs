// SPDX-License-Identifier: GPL-2.0

//! A client's connection, as the server has it.
//!
//! No thread of the server ever waits for a client: what cannot be sent at once is kept, with
//! references to its pages, and a worker sends it when there is room. Until then no more calls of
//! the connection are taken up, and a client that takes nothing for [`PATIENCE`] loses it.

use crate::{
    address,
    errors::{bad_message, not_connected},
    message::Message,
    outgoing::Outgoing,
    request::{complete_callback, drop_pages, Direction, Request, PREAMBLE_LEN},
    seconds, Family,
};
use core::{cell::UnsafeCell, marker::PhantomData, mem};
use kernel::{
    ffi::{c_int, c_uint, c_void},
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        Mutex,
    },
    types::Opaque,
};
use rvsock_bindings::bindings;
use socket::{Events, Socket, Watched, CID_LOCAL};
use vsock_proto::{Address, Progress, RecordReader, Want};

/// Pieces that one call of `xpo_recvfrom` reads: others want their turn, too.
const PIECES_AT_ONCE: usize = 64;

/// How long a client may take nothing of what was sent, as for TCP.
const PATIENCE: usize = seconds(30);

/// Bytes that a client may send ahead, and be sent: the largest READ or WRITE by default, so that
/// those need no round trips.
const BUFFER_SIZE: u64 = 1 << 20;

/// A `struct svc_xprt` of a connection, and what belongs to it.
///
/// # Invariants
///
/// `xprt` is the first field, and initialized. What is `incoming` belongs to whoever has the
/// transport's `XPT_BUSY`.
#[repr(C)]
#[pin_data]
pub(crate) struct Connection<F: Family> {
    xprt: Opaque<bindings::svc_xprt>,
    socket: Watched<Self>,
    peer: Address,
    incoming: UnsafeCell<Incoming>,
    #[pin]
    outgoing: Mutex<Outgoing>,
    /// Something is kept in `outgoing`.
    is_full: Atomic<u32>,
    send_more: Opaque<bindings::delayed_work>,
    _family: PhantomData<F>,
}

// SAFETY: What is not constant is behind a lock, or belongs to whoever has `XPT_BUSY`.
unsafe impl<F: Family> Sync for Connection<F> {}

/// A record that is not complete yet.
struct Incoming {
    reader: RecordReader,
    pages: KVVec<*mut bindings::page>,
    was_refused: bool,
}

// SAFETY: Pages may be used from any thread.
unsafe impl Send for Incoming {}

impl<F: Family> Connection<F> {
    /// Takes over a connection that `listener` accepted; the result is one reference.
    ///
    /// # Safety
    ///
    /// `listener` has to be a transport that is accepting.
    pub(crate) unsafe fn accept(
        listener: *mut bindings::svc_xprt,
        socket: Socket,
    ) -> Result<*mut bindings::svc_xprt> {
        // SAFETY: A transport belongs to a server, which is there as long as its threads.
        let (server, net) = unsafe { ((*listener).xpt_server, (*listener).xpt_net) };
        let (peer, local) = (socket.peer()?, socket.local()?);
        socket.set_buffer_size(BUFFER_SIZE)?;
        // SAFETY: The server is valid.
        let limit = unsafe { (*server).sv_max_mesg };
        let incoming = Incoming {
            reader: RecordReader::new(limit),
            pages: KVVec::with_capacity((limit as usize).div_ceil(PAGE_SIZE) + 1, GFP_KERNEL)?,
            was_refused: false,
        };
        let socket = Watched::new(socket)?;
        let connection = KBox::pin_init(
            pin_init!(Self {
                xprt: Opaque::uninit(),
                socket,
                peer,
                incoming: UnsafeCell::new(incoming),
                outgoing <- new_mutex!(Outgoing::new(), "Connection::outgoing"),
                is_full: Atomic::new(0),
                send_more: Opaque::uninit(),
                _family: PhantomData,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The class is registered, since there is a listener; the transport is new, and
        // is freed by `free`, which nobody calls before the last reference is gone.
        unsafe {
            let raw = connection.xprt.get();
            bindings::svc_xprt_init(net, F::tables().server(), raw, server);
            (*raw).xpt_ops = F::tables().connection_operations();
            bindings::sunrpc_init_delayed_work(
                connection.send_more.get(),
                Some(Self::send_more_work),
            );
            Self::introduce(raw, peer, local);
            let this = KBox::into_raw(Pin::into_inner_unchecked(connection));
            (*this).begin();
            Ok(raw)
        }
    }

    /// Says who is at the ends, and what kind of connection it is.
    ///
    /// # Safety
    ///
    /// `xprt` has to be a new transport.
    unsafe fn introduce(xprt: *mut bindings::svc_xprt, peer: Address, local: Address) {
        let remote = address::to_sockaddr(F::client_address(peer));
        let local = address::to_sockaddr(F::client_address(local));
        // SAFETY: The transport is valid by the requirements of this function, and nobody's yet.
        unsafe {
            bindings::svc_xprt_name_remote(xprt, (&raw const remote).cast(), address::LEN);
            bindings::svc_xprt_name_local(xprt, (&raw const local).cast(), address::LEN);
            bindings::svc_xprt_set_flag(xprt, bindings::XPT_CACHE_AUTH);
            // NFSv4 is refused to a transport without it.
            bindings::svc_xprt_set_flag(xprt, bindings::XPT_CONG_CTRL);
            if peer.cid == CID_LOCAL {
                bindings::svc_xprt_set_flag(xprt, bindings::XPT_LOCAL);
            }
        }
    }

    /// From here on, events are attended to.
    fn begin(&self) {
        // SAFETY: This is valid until `detach` has unwatched the socket.
        unsafe { self.socket.watch(self) };
        // It may have been there before.
        self.set(bindings::XPT_DATA);
        if self.socket.is_over() {
            self.close();
        }
    }

    /// # Safety
    ///
    /// `xprt` has to be a transport with [`Tables::connection_operations`](crate::Tables), alive
    /// for `'a`.
    pub(crate) unsafe fn from_raw<'a>(xprt: *mut bindings::svc_xprt) -> &'a Self {
        // SAFETY: Such a transport is the first field of a connection.
        unsafe { &*xprt.cast() }
    }

    fn set(&self, flag: c_uint) {
        // SAFETY: The transport is valid.
        unsafe { bindings::svc_xprt_set_flag(self.xprt.get(), flag) }
    }

    /// Ends the connection, soon.
    fn close(&self) {
        // SAFETY: The transport is valid.
        unsafe { bindings::svc_xprt_deferred_close(self.xprt.get()) }
    }

    // --- receiving ---

    /// Reads from the stream; a record's length if one is complete.
    fn read(&self, incoming: &mut Incoming, request: &mut Request) -> Result<Option<u32>> {
        for _ in 0..PIECES_AT_ONCE {
            let progress = match incoming.reader.poll_want() {
                Want::Marker(missing) => {
                    let mut bytes = [0; vsock_proto::MARKER_LEN];
                    let room = bytes.get_mut(..missing).ok_or(EMSGSIZE)?;
                    let count = self.received(self.socket.receive(room)?)?;
                    let bytes = bytes.get(..count).ok_or(EMSGSIZE)?;
                    incoming.reader.handle_marker(bytes).map_err(|_| EMSGSIZE)?
                }
                Want::Payload { offset, length } => {
                    let (room, skipped) = request.room(offset, length)?;
                    let count = self.received(self.socket.receive_pieces(room, skipped)?)?;
                    incoming.reader.handle_payload(count as u32)
                }
            };
            if let Progress::Complete(length) = progress {
                return Ok(Some(length));
            }
        }
        self.set(bindings::XPT_DATA);
        Ok(None)
    }

    fn received(&self, count: usize) -> Result<usize> {
        if count == 0 {
            return Err(not_connected());
        }
        Ok(count)
    }

    /// Receives a message; the length of a call that is to be carried out.
    fn receive(&self, incoming: &mut Incoming, request: &mut Request) -> Result<Option<u32>> {
        request.take_pages(&mut incoming.pages);
        let length = match self.read(incoming, request) {
            Ok(Some(length)) => length,
            result => {
                let received = incoming.reader.received();
                request.give_pages(&mut incoming.pages, received);
                // Calls that will be refused fit into a page.
                if received as usize > PAGE_SIZE && !F::admits(self.peer) {
                    return Err(EPERM);
                }
                return match result {
                    Err(error) if error != EAGAIN => Err(error),
                    _ => Ok(None),
                };
            }
        };
        // There may be more.
        self.set(bindings::XPT_DATA);
        self.sort(incoming, request, length)
    }

    /// What becomes of a message.
    fn sort(
        &self,
        incoming: &mut Incoming,
        request: &mut Request,
        length: u32,
    ) -> Result<Option<u32>> {
        if (length as usize) < PREAMBLE_LEN {
            return Err(bad_message());
        }
        let (xid, direction) = request.preamble().ok_or(bad_message())?;
        match Direction::from_wire(direction).ok_or(bad_message())? {
            Direction::Reply => {
                // No reply to a callback is as long as a page.
                let message = request.head(length as usize).ok_or(bad_message())?;
                // SAFETY: The transport is valid; its back channel, if any, goes with it.
                unsafe {
                    let back = (*self.xprt.get()).xpt_bc_xprt;
                    if !back.is_null() {
                        complete_callback(back, xid, message);
                    }
                }
                Ok(None)
            }
            Direction::Call if F::admits(self.peer) => {
                let is_privileged = self.peer.port < 1024;
                request.deliver(length, is_privileged, self.peer.cid == CID_LOCAL);
                Ok(Some(length))
            }
            Direction::Call => {
                if !mem::replace(&mut incoming.was_refused, true) {
                    self.report_refusal();
                }
                self.refuse(xid)?;
                Ok(None)
            }
        }
    }

    fn report_refusal(&self) {
        // SAFETY: Always safe to call.
        if unsafe { bindings::net_ratelimit() } != 0 {
            pr_notice!("CID {} calls, and is not allowed to\n", self.peer.cid);
        }
    }

    /// Answers a call with a refusal (`AUTH_BADCRED`): a client that is merely disconnected tries
    /// again for a long time.
    fn refuse(&self, xid: [u8; 4]) -> Result {
        /// REPLY, MSG_DENIED, AUTH_ERROR, AUTH_BADCRED.
        const DENIAL: [u32; 4] = [1, 1, 1, 1];
        let mut message = [0; 20];
        let words = DENIAL.iter().map(|word| word.to_be_bytes());
        let bytes = Iterator::chain(core::iter::once(xid), words).flatten();
        for (to, from) in message.iter_mut().zip(bytes) {
            *to = from;
        }
        self.send(Message::copy_of(&message)?)
    }

    // --- sending ---

    /// Sends a message, now or when there is room for it.
    fn send(&self, mut message: Message) -> Result {
        let mut outgoing = self.outgoing.lock();
        if outgoing.is_closed() {
            return Err(not_connected());
        }
        let is_first = outgoing.is_empty();
        if is_first && message.send(&self.socket)? {
            return Ok(());
        }
        outgoing.keep(message)?;
        if is_first {
            self.is_full.store(1, ordering::Relaxed);
            self.wait_for_room();
        }
        Ok(())
    }

    /// Sends a copy of the bytes; for callbacks, whose senders try again if there is no memory.
    ///
    /// # Safety
    ///
    /// `xprt` has to be a valid transport with the connection's operations.
    pub(crate) unsafe fn send_copy(xprt: *mut bindings::svc_xprt, bytes: &[u8]) -> Result {
        // SAFETY: By the requirements of this function.
        let this = unsafe { Self::from_raw(xprt) };
        let message = Message::copy_of(bytes)?;
        this.send(message).inspect_err(|error| {
            if *error != not_connected() {
                this.close();
            }
        })
    }

    /// Runs the work that sends what is kept when there is room, or the client's time is up.
    fn wait_for_room(&self) {
        // SAFETY: The work is initialized; `detach` ends it. If it is waiting already, it goes on to
        // do so: it may have been told to run at once.
        unsafe { bindings::sunrpc_queue_delayed(self.send_more.get(), PATIENCE) };
        // Room may have come before anybody looked for it.
        kernel::sync::barrier::smp_mb();
        if self.socket.is_writable() {
            self.try_now();
        }
    }

    /// Runs the work that sends what is kept.
    fn try_now(&self) {
        // SAFETY: As above.
        unsafe { bindings::sunrpc_requeue_delayed(self.send_more.get(), 0) };
    }

    /// # Safety
    ///
    /// `work` is the `send_more` of a connection.
    unsafe extern "C" fn send_more_work(work: *mut bindings::work_struct) {
        let work: *mut bindings::delayed_work = work.cast();
        // SAFETY: The work is the first field of its `delayed_work`, and that of a connection,
        // which is there until `detach` has cancelled the work.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(work), Self, send_more) };
        this.send_more();
    }

    fn send_more(&self) {
        let mut outgoing = self.outgoing.lock();
        if outgoing.is_closed() {
            return;
        }
        match outgoing.send(&self.socket) {
            Ok(true) => {
                self.is_full.store(0, ordering::Release);
                drop(outgoing);
                // Calls may have waited for it.
                // SAFETY: The transport is valid.
                unsafe { bindings::svc_xprt_enqueue(self.xprt.get()) }
            }
            Ok(false) if outgoing.stalled() < PATIENCE => self.wait_for_room(),
            _ => self.close(),
        }
    }
}

impl<F: Family> Events for Connection<F> {
    fn readable(&self) {
        let xprt = self.xprt.get();
        // SAFETY: The transport is valid while events come.
        unsafe {
            if !bindings::svc_xprt_test_and_set_flag(xprt, bindings::XPT_DATA) {
                bindings::svc_xprt_enqueue(xprt);
            }
        }
    }

    fn writable(&self) {
        if self.is_full.load(ordering::Relaxed) != 0 {
            self.try_now();
        }
    }

    fn changed(&self, is_over: bool) {
        if is_over {
            self.close();
        }
    }
}

/// The operations of a connection.
///
/// # Safety
///
/// Of all of them: SUNRPC calls them with a transport of this kind, as it says beside the
/// operation's declaration.
impl<F: Family> Connection<F> {
    /// The table of the operations.
    pub(crate) const fn operations() -> bindings::svc_xprt_ops {
        bindings::svc_xprt_ops {
            xpo_recvfrom: Some(Self::recvfrom),
            xpo_sendto: Some(Self::sendto),
            xpo_detach: Some(Self::detach),
            xpo_free: Some(Self::free),
            xpo_has_wspace: Some(Self::has_wspace),
            ..nothing_to_do()
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn recvfrom(raw: *mut bindings::svc_rqst) -> c_int {
        // SAFETY: The request is being received for by a thread that has `XPT_BUSY`, so what is
        // incoming is its own.
        unsafe {
            let xprt = (*raw).rq_xprt;
            let this = Self::from_raw(xprt);
            bindings::svc_xprt_clear_flag(xprt, bindings::XPT_DATA);
            let result = this.receive(&mut *this.incoming.get(), &mut Request::from_raw(raw));
            if result.is_err() {
                this.close();
            }
            // Exactly once, and the last use of what `XPT_BUSY` protects.
            bindings::svc_xprt_received(xprt);
            result.ok().flatten().map_or(0, |length| length as c_int)
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn sendto(raw: *mut bindings::svc_rqst) -> c_int {
        // SAFETY: The request has a reply, whose memory are pages that the request gives up only
        // after this function has returned.
        unsafe {
            let xprt = (*raw).rq_xprt;
            let this = Self::from_raw(xprt);
            if bindings::svc_xprt_dead(xprt) {
                return not_connected().to_errno();
            }
            let message = Message::of_buffer(Request::from_raw(raw).reply(), GFP_KERNEL);
            let length = message.as_ref().map_or(0, Message::length);
            match message.and_then(|message| this.send(message)) {
                Ok(()) => length as c_int,
                Err(error) if error == not_connected() => error.to_errno(),
                Err(_) => {
                    // A part of it may have been sent.
                    this.close();
                    EAGAIN.to_errno()
                }
            }
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn has_wspace(xprt: *mut bindings::svc_xprt) -> c_int {
        // SAFETY: See above.
        let this = unsafe { Self::from_raw(xprt) };
        c_int::from(this.is_full.load(ordering::Acquire) == 0)
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn detach(xprt: *mut bindings::svc_xprt) {
        // SAFETY: Called once, by the thread that has `XPT_BUSY` and keeps it.
        let (this, incoming) = unsafe {
            let this = Self::from_raw(xprt);
            (this, &mut *this.incoming.get())
        };
        this.socket.unwatch();
        this.outgoing.lock().close();
        // SAFETY: The work is initialized; nobody queues it any more.
        unsafe { bindings::cancel_delayed_work_sync(this.send_more.get()) };
        drop_pages(&mut incoming.pages);
        this.socket.shutdown();
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn free(xprt: *mut bindings::svc_xprt) {
        // SAFETY: The last reference to what `accept` has made; `detach` was called.
        drop(unsafe { KBox::<Self>::from_raw(xprt.cast()) });
    }
}

/// What SUNRPC calls of each transport of a server, and we have nothing to do for.
pub(crate) const fn nothing_to_do() -> bindings::svc_xprt_ops {
    let mut table: bindings::svc_xprt_ops = pin_init::zeroed();
    table.xpo_result_payload = Some(result_payload);
    table.xpo_release_ctxt = Some(release_context);
    table.xpo_kill_temp_xprt = Some(kill_temporary);
    table
}

/// # Safety
///
/// None.
unsafe extern "C" fn result_payload(
    _request: *mut bindings::svc_rqst,
    _offset: c_uint,
    _length: c_uint,
) -> c_int {
    0
}

/// # Safety
///
/// None.
unsafe extern "C" fn release_context(_xprt: *mut bindings::svc_xprt, _context: *mut c_void) {}

/// # Safety
///
/// None.
unsafe extern "C" fn kill_temporary(_xprt: *mut bindings::svc_xprt) {}
