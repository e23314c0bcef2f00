// SPDX-License-Identifier: GPL-2.0

//! What a transport implements, and the C table made of it.

use crate::{
    busy::{give_backlog_back, take_backlog},
    sock::Direction,
    state::Attachment,
    HeldSock, Message, SkbActor, Sock,
};
use core::marker::PhantomData;
use kernel::{
    error::{from_result, to_result},
    ffi::c_int,
    prelude::*,
    sync::Arc,
};
use rvsock_bindings::bindings;
use vsock_proto::ShutdownFlags;

/// Which sockets a transport is for.
#[derive(Clone, Copy)]
pub struct Features(u32);

impl Features {
    /// Sockets of this machine among each other.
    pub const LOCAL: Features = Features(bindings::VSOCK_TRANSPORT_F_LOCAL);
    /// A guest's, to its host.
    pub const GUEST_TO_HOST: Features = Features(bindings::VSOCK_TRANSPORT_F_G2H);
    /// A host's, to its guests.
    pub const HOST_TO_GUEST: Features = Features(bindings::VSOCK_TRANSPORT_F_H2G);
}

/// A transport for stream and seqpacket sockets.
///
/// Unless said otherwise, operations run in process context with the socket lock held, and may
/// sleep. An operation that gets a [`HeldSock`] finds its state with [`HeldSock::attached`].
///
/// `struct vsock_transport`
pub trait Transport: Sized + Send + Sync + 'static {
    /// The part of a socket's state that anybody with a reference may look at.
    type Shared: Send + Sync;
    /// The part that the socket lock protects.
    type Owned: Send;

    /// Whether the transport may serve CIDs beyond its own peer's ([`Transport::has_remote_cid`]).
    const ROUTES: bool = false;

    /// The table of this transport.
    fn vtable() -> &'static Vtable<Self>;

    /// State for a socket that comes to this transport.
    fn shared(sock: &mut HeldSock<'_>) -> impl PinInit<Self::Shared, Error>;

    /// As [`Transport::shared`], for the other part.
    fn owned() -> Self::Owned;

    /// The socket leaves this transport: forget what was received. Must not sleep.
    fn discard(owned: &mut Self::Owned);

    /// CID of this end; [`CID_ANY`](crate::CID_ANY) if it has none. No lock is held that a socket
    /// lock may nest in; must not take one.
    fn local_cid() -> u32;

    /// Whether `cid` can be reached. Must not take a socket lock.
    fn has_remote_cid(_sock: &Sock, _cid: u32) -> bool {
        false
    }

    /// Whether `sock` may connect a stream. The socket may belong to no transport yet.
    fn stream_allow(sock: &Sock) -> bool;

    /// Whether `sock` may exchange messages with `cid`. The socket belongs to no transport yet.
    fn seqpacket_allow(sock: &Sock, cid: u32) -> bool;

    /// `connect()`: sends a request.
    fn connect(sock: HeldSock<'_>) -> Result;

    /// `connect()` was given up: what waits to be sent for `sock` must not be sent any more.
    fn cancel(sock: HeldSock<'_>) -> Result;

    /// `shutdown()`.
    fn shutdown(sock: HeldSock<'_>, flags: ShutdownFlags) -> Result;

    /// `close()`, or the socket is about to change its transport.
    fn release(sock: HeldSock<'_>);

    /// The delay of [`HeldSock::schedule_close`] is over.
    fn close_timed_out(sock: HeldSock<'_>);

    /// Somebody who met a busy socket has left word ([`BusySock::call_back`]); the lock is about to
    /// be given back.
    fn resume(sock: HeldSock<'_>);

    /// All peers are gone: called for each connected socket by
    /// [`for_each_connected`](crate::for_each_connected), under the table lock and without any
    /// socket lock.
    fn reset_connected(sock: &Sock) {
        sock.reset_unlocked();
    }

    /// Sends what credit allows of `len` bytes; returns how many, 0 if there is no credit.
    fn stream_enqueue(sock: HeldSock<'_>, message: Message<'_, true>, len: usize) -> Result<usize>;

    /// As [`Transport::stream_enqueue`], for the rest of a message, which is called for until the
    /// whole message is sent. `EMSGSIZE` if it can never fit the peer's window.
    fn seqpacket_enqueue(
        sock: HeldSock<'_>,
        message: Message<'_, true>,
        len: usize,
    ) -> Result<usize>;

    /// Receives up to `len` bytes, which stay there if `peek`. An error only if nothing was copied.
    fn stream_dequeue(
        sock: HeldSock<'_>,
        message: Message<'_, false>,
        len: usize,
        peek: bool,
    ) -> Result<usize>;

    /// Receives a message, which stays there if `peek`; returns its length, however much of it
    /// there was room for.
    fn seqpacket_dequeue(
        sock: HeldSock<'_>,
        message: Message<'_, false>,
        peek: bool,
    ) -> Result<usize>;

    /// Received bytes that were not read. Must not sleep.
    fn readable_bytes(shared: &Self::Shared) -> u32;

    /// Received messages that were not read. Must not sleep.
    fn readable_messages(shared: &Self::Shared) -> u32;

    /// A reader of a stream goes to sleep, and has to be woken once `bytes` can be read: fewer than
    /// `SO_RCVLOWAT` if it has got some already. Whether there are so many now. Must not sleep.
    fn reader_waits(shared: &Self::Shared, bytes: u32) -> bool;

    /// Bytes that credit allows to send. Must not sleep.
    fn writable_bytes(shared: &Self::Shared) -> u32;

    /// Bytes that were sent, but have not left this machine's side of the transport. Called
    /// without the socket lock as well; must not sleep.
    fn unsent_bytes(shared: &Self::Shared) -> usize;

    /// `SO_VM_SOCKETS_BUFFER_SIZE`: the window this end offers from now on.
    fn set_window(sock: HeldSock<'_>, window: u32);

    /// `SO_RCVLOWAT` is about to become `value`.
    fn set_receive_low_water(sock: HeldSock<'_>, value: u32) -> Result;

    /// Hands everything that was received to `actor`; called from `sk_data_ready`, hence below a
    /// wake-up of our own.
    fn read_skb(sock: HeldSock<'_>, actor: SkbActor) -> i32;
}

/// The C table of a transport, to be put into a `static`.
#[repr(transparent)]
pub struct Vtable<T>(bindings::vsock_transport, PhantomData<T>);

// SAFETY: The table is never written.
unsafe impl<T> Sync for Vtable<T> {}

impl<T: Transport> Vtable<T> {
    pub(crate) fn as_raw(&self) -> *const bindings::vsock_transport {
        &raw const self.0
    }

    /// Makes the table; `module` is [`ThisModule::as_ptr`] of the module's `THIS_MODULE`.
    pub const fn new(module: *mut kernel::bindings::module) -> Self {
        let mut table: bindings::vsock_transport = pin_init::zeroed();
        table.module = module;
        table.init = Some(Operations::<T>::init);
        table.destruct = Some(Operations::<T>::destruct);
        table.release = Some(Operations::<T>::release);
        table.cancel_pkt = Some(Operations::<T>::cancel_pkt);
        table.connect = Some(Operations::<T>::connect);
        table.dgram_bind = Some(dgram_bind);
        table.dgram_dequeue = Some(dgram_dequeue);
        table.dgram_enqueue = Some(dgram_enqueue);
        table.dgram_allow = Some(dgram_allow);
        table.stream_dequeue = Some(Operations::<T>::stream_dequeue);
        table.stream_enqueue = Some(Operations::<T>::stream_enqueue);
        table.stream_has_data = Some(Operations::<T>::stream_has_data);
        table.stream_has_space = Some(Operations::<T>::stream_has_space);
        table.stream_rcvhiwat = Some(Operations::<T>::stream_rcvhiwat);
        table.stream_is_active = Some(stream_is_active);
        table.stream_allow = Some(Operations::<T>::stream_allow);
        table.seqpacket_dequeue = Some(Operations::<T>::seqpacket_dequeue);
        table.seqpacket_enqueue = Some(Operations::<T>::seqpacket_enqueue);
        table.seqpacket_allow = Some(Operations::<T>::seqpacket_allow);
        table.seqpacket_has_data = Some(Operations::<T>::seqpacket_has_data);
        table.notify_poll_in = Some(Operations::<T>::notify_poll_in);
        table.notify_poll_out = Some(Operations::<T>::notify_poll_out);
        table.notify_recv_init = Some(notify_recv);
        table.notify_recv_pre_block = Some(Operations::<T>::notify_recv_pre_block);
        table.notify_recv_pre_dequeue = Some(notify_recv);
        table.notify_recv_post_dequeue = Some(notify_recv_post_dequeue);
        table.notify_send_init = Some(notify_send);
        table.notify_send_pre_block = Some(notify_send);
        table.notify_send_pre_enqueue = Some(notify_send);
        table.notify_send_post_enqueue = Some(notify_send_post_enqueue);
        table.notify_buffer_size = Some(Operations::<T>::notify_buffer_size);
        table.notify_set_rcvlowat = Some(Operations::<T>::notify_set_rcvlowat);
        table.unsent_bytes = Some(Operations::<T>::unsent_bytes);
        table.shutdown = Some(Operations::<T>::shutdown);
        table.get_local_cid = Some(Operations::<T>::get_local_cid);
        if T::ROUTES {
            table.has_remote_cid = Some(Operations::<T>::has_remote_cid);
        }
        table.read_skb = Some(Operations::<T>::read_skb);
        table.msgzerocopy_allow = Some(msgzerocopy_allow);
        Self(table, PhantomData)
    }
}

/// A transport that the core knows, until this is dropped.
///
/// # Invariants
///
/// The table is registered.
pub struct Registration(*const bindings::vsock_transport);

// SAFETY: Unregistering may happen on any thread.
unsafe impl Send for Registration {}
// SAFETY: There is nothing to be done with a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `T`. `EBUSY` if another transport has one of the features.
    pub fn new<T: Transport>(features: Features) -> Result<Self> {
        let table = T::vtable().as_raw();
        // SAFETY: The table is static; the module cannot go while sockets use it.
        to_result(unsafe { bindings::vsock_core_register(table, features.0 as c_int) })?;
        // INVARIANT: It was registered just now.
        Ok(Self(table))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is registered.
        unsafe { bindings::vsock_core_unregister(self.0) }
    }
}

/// The callbacks behind a table.
///
/// # Safety
///
/// Of all of them: the core passes valid sockets, locked where `struct vsock_transport`'s callers
/// lock them (af_vsock.c), and messages that it uses no more until the callback returns.
struct Operations<T>(PhantomData<T>);

/// The state behind a socket that the core calls us for.
///
/// # Safety
///
/// `vsk` belongs to transport `T`, between its `init` and its `destruct`.
unsafe fn shared<'a, T: Transport>(vsk: *mut bindings::vsock_sock) -> &'a T::Shared {
    // SAFETY: By the requirements of this function `trans` is what `init` put there.
    unsafe { &(*(*vsk).trans.cast::<Attachment<T>>()).shared }
}

#[expect(clippy::missing_safety_doc, reason = "see `Operations`")]
impl<T: Transport> Operations<T> {
    unsafe extern "C" fn init(
        vsk: *mut bindings::vsock_sock,
        _parent: *mut bindings::vsock_sock,
    ) -> c_int {
        from_result(|| {
            // SAFETY: See `Operations`.
            let mut sock = unsafe { HeldSock::from_raw(vsk) };
            let attachment = Attachment::<T>::new(vsk, T::shared(&mut sock), T::owned())?;
            // SAFETY: The lock is held; the reference now belongs to `trans`.
            unsafe { (*vsk).trans = Arc::into_raw(attachment).cast_mut().cast() };
            // SAFETY: The lock is held, `trans` is set, and stays so until `destruct`.
            unsafe { take_backlog::<T>(&sock) };
            Ok(0)
        })
    }

    unsafe extern "C" fn destruct(vsk: *mut bindings::vsock_sock) {
        // SAFETY: See `Operations`: nobody else uses the socket's transport now.
        let original = unsafe { (*vsk).trans.cast::<Attachment<T>>().as_ref() }
            .and_then(|attachment| attachment.backlog_receive);
        if original.is_some() {
            // SAFETY: See `Operations`: the lock is held, or nobody else knows the socket.
            unsafe { give_backlog_back(Sock::from_raw(vsk), original) };
        }
        // SAFETY: See `Operations`: nobody else uses the socket's transport now.
        let trans = unsafe { core::mem::replace(&mut (*vsk).trans, core::ptr::null_mut()) };
        if trans.is_null() {
            return;
        }
        // SAFETY: See `Operations`: the lock is held, or nobody else knows the socket.
        let mut sock = unsafe { HeldSock::from_raw(vsk) };
        if sock.cancel_close() {
            sock.remove();
        }
        // SAFETY: `trans` is what `init` put there, and held a reference.
        let attachment = unsafe { Arc::from_raw(trans.cast::<Attachment<T>>()) };
        // SAFETY: `trans` was the way to it, and this is the end of the socket's use of it.
        T::discard(unsafe { &mut *attachment.owned() });
    }

    unsafe extern "C" fn release(vsk: *mut bindings::vsock_sock) {
        // SAFETY: See `Operations`.
        T::release(unsafe { HeldSock::from_raw(vsk) })
    }

    unsafe extern "C" fn cancel_pkt(vsk: *mut bindings::vsock_sock) -> c_int {
        // SAFETY: See `Operations`.
        from_result(|| T::cancel(unsafe { HeldSock::from_raw(vsk) }).map(|()| 0))
    }

    unsafe extern "C" fn connect(vsk: *mut bindings::vsock_sock) -> c_int {
        // SAFETY: See `Operations`.
        from_result(|| T::connect(unsafe { HeldSock::from_raw(vsk) }).map(|()| 0))
    }

    unsafe extern "C" fn shutdown(vsk: *mut bindings::vsock_sock, mode: c_int) -> c_int {
        let flags = Direction::from_raw(mode as u32).into();
        // SAFETY: See `Operations`.
        from_result(|| T::shutdown(unsafe { HeldSock::from_raw(vsk) }, flags).map(|()| 0))
    }

    unsafe extern "C" fn stream_dequeue(
        vsk: *mut bindings::vsock_sock,
        message: *mut bindings::msghdr,
        len: usize,
        flags: c_int,
    ) -> isize {
        // SAFETY: See `Operations`.
        let (sock, message) = unsafe { (HeldSock::from_raw(vsk), Message::from_raw(message)) };
        count(T::stream_dequeue(sock, message, len, is_peek(flags)))
    }

    unsafe extern "C" fn stream_enqueue(
        vsk: *mut bindings::vsock_sock,
        message: *mut bindings::msghdr,
        len: usize,
    ) -> isize {
        // SAFETY: See `Operations`.
        let (sock, message) = unsafe { (HeldSock::from_raw(vsk), Message::from_raw(message)) };
        count(T::stream_enqueue(sock, message, len))
    }

    unsafe extern "C" fn stream_has_data(vsk: *mut bindings::vsock_sock) -> i64 {
        // SAFETY: See `Operations`.
        i64::from(T::readable_bytes(unsafe { shared::<T>(vsk) }))
    }

    unsafe extern "C" fn stream_has_space(vsk: *mut bindings::vsock_sock) -> i64 {
        // SAFETY: See `Operations`.
        i64::from(T::writable_bytes(unsafe { shared::<T>(vsk) }))
    }

    unsafe extern "C" fn stream_rcvhiwat(vsk: *mut bindings::vsock_sock) -> u64 {
        // SAFETY: See `Operations`.
        unsafe { HeldSock::from_raw(vsk) }.buffer_size()
    }

    unsafe extern "C" fn stream_allow(
        vsk: *mut bindings::vsock_sock,
        _cid: u32,
        _port: u32,
    ) -> bool {
        // SAFETY: See `Operations`.
        T::stream_allow(unsafe { Sock::from_raw(vsk) })
    }

    unsafe extern "C" fn seqpacket_dequeue(
        vsk: *mut bindings::vsock_sock,
        message: *mut bindings::msghdr,
        flags: c_int,
    ) -> isize {
        // SAFETY: See `Operations`.
        let (sock, message) = unsafe { (HeldSock::from_raw(vsk), Message::from_raw(message)) };
        count(T::seqpacket_dequeue(sock, message, is_peek(flags)))
    }

    unsafe extern "C" fn seqpacket_enqueue(
        vsk: *mut bindings::vsock_sock,
        message: *mut bindings::msghdr,
        len: usize,
    ) -> c_int {
        // SAFETY: See `Operations`.
        let (sock, message) = unsafe { (HeldSock::from_raw(vsk), Message::from_raw(message)) };
        count(T::seqpacket_enqueue(sock, message, len)) as c_int
    }

    unsafe extern "C" fn seqpacket_allow(vsk: *mut bindings::vsock_sock, cid: u32) -> bool {
        // SAFETY: See `Operations`.
        T::seqpacket_allow(unsafe { Sock::from_raw(vsk) }, cid)
    }

    unsafe extern "C" fn seqpacket_has_data(vsk: *mut bindings::vsock_sock) -> u32 {
        // SAFETY: See `Operations`.
        T::readable_messages(unsafe { shared::<T>(vsk) })
    }

    unsafe extern "C" fn notify_poll_in(
        vsk: *mut bindings::vsock_sock,
        target: usize,
        ready: *mut bool,
    ) -> c_int {
        // SAFETY: See `Operations`; of messages the core counts whole ones, which may be empty.
        unsafe {
            let enough = target <= 1 || T::readable_bytes(shared::<T>(vsk)) as usize >= target;
            *ready = enough && bindings::vsock_connectible_has_data(vsk) > 0;
        }
        0
    }

    unsafe extern "C" fn notify_recv_pre_block(
        vsk: *mut bindings::vsock_sock,
        target: usize,
        _data: *mut bindings::vsock_transport_recv_notify_data,
    ) -> c_int {
        let bytes = u32::try_from(target).unwrap_or(u32::MAX);
        // SAFETY: See `Operations`.
        if T::reader_waits(unsafe { shared::<T>(vsk) }, bytes) {
            // The reader is in the queue of those that wait: it does not go to sleep now.
            // SAFETY: As above.
            unsafe { bindings::wake_readers(vsk.cast()) };
        }
        0
    }

    unsafe extern "C" fn notify_poll_out(
        vsk: *mut bindings::vsock_sock,
        _target: usize,
        ready: *mut bool,
    ) -> c_int {
        // SAFETY: See `Operations`.
        unsafe { *ready = T::writable_bytes(shared::<T>(vsk)) > 0 };
        0
    }

    unsafe extern "C" fn notify_buffer_size(vsk: *mut bindings::vsock_sock, size: *mut u64) {
        // SAFETY: See `Operations`.
        let sock = unsafe { HeldSock::from_raw(vsk) };
        // SAFETY: The core passes its own variable.
        let window = unsafe {
            *size = (*size).min(u64::from(u32::MAX));
            *size as u32
        };
        T::set_window(sock, window)
    }

    unsafe extern "C" fn notify_set_rcvlowat(
        vsk: *mut bindings::vsock_sock,
        value: c_int,
    ) -> c_int {
        let value = u32::try_from(value).unwrap_or(0);
        // SAFETY: See `Operations`.
        let sock = unsafe { HeldSock::from_raw(vsk) };
        from_result(|| T::set_receive_low_water(sock, value).map(|()| 0))
    }

    unsafe extern "C" fn unsent_bytes(vsk: *mut bindings::vsock_sock) -> isize {
        // SAFETY: See `Operations`.
        isize::try_from(T::unsent_bytes(unsafe { shared::<T>(vsk) })).unwrap_or(isize::MAX)
    }

    extern "C" fn get_local_cid() -> u32 {
        T::local_cid()
    }

    unsafe extern "C" fn has_remote_cid(vsk: *mut bindings::vsock_sock, cid: u32) -> bool {
        // SAFETY: See `Operations`.
        T::has_remote_cid(unsafe { Sock::from_raw(vsk) }, cid)
    }

    unsafe extern "C" fn read_skb(
        vsk: *mut bindings::vsock_sock,
        actor: bindings::skb_read_actor_t,
    ) -> c_int {
        let Some(actor) = SkbActor::from_raw(actor) else {
            return EINVAL.to_errno();
        };
        // SAFETY: See `Operations`; the lock is held by our own receive path below us in the stack,
        // which passed its `HeldSock` on with the wake-up.
        T::read_skb(unsafe { HeldSock::from_raw(vsk) }, actor)
    }
}

fn is_peek(flags: c_int) -> bool {
    flags as u32 & bindings::MSG_PEEK != 0
}

/// A number of bytes, or an error, as C wants it.
fn count(result: Result<usize>) -> isize {
    match result {
        Ok(bytes) => isize::try_from(bytes).unwrap_or(isize::MAX),
        Err(error) => error.to_errno() as isize,
    }
}

extern "C" fn stream_is_active(_vsk: *mut bindings::vsock_sock) -> bool {
    true
}

extern "C" fn msgzerocopy_allow() -> bool {
    true
}

// Datagrams: no virtio transport has them, and the core asks none of ours for them.

extern "C" fn dgram_bind(
    _vsk: *mut bindings::vsock_sock,
    _address: *mut bindings::sockaddr_vm,
) -> c_int {
    -(bindings::EOPNOTSUPP as c_int)
}

extern "C" fn dgram_dequeue(
    _vsk: *mut bindings::vsock_sock,
    _message: *mut bindings::msghdr,
    _len: usize,
    _flags: c_int,
) -> c_int {
    -(bindings::EOPNOTSUPP as c_int)
}

extern "C" fn dgram_enqueue(
    _vsk: *mut bindings::vsock_sock,
    _address: *mut bindings::sockaddr_vm,
    _message: *mut bindings::msghdr,
    _len: usize,
) -> c_int {
    -(bindings::EOPNOTSUPP as c_int)
}

extern "C" fn dgram_allow(_vsk: *mut bindings::vsock_sock, _cid: u32, _port: u32) -> bool {
    false
}

// Notifications that only the VMCI transport has a use for; the core calls them unconditionally.

extern "C" fn notify_recv(
    _vsk: *mut bindings::vsock_sock,
    _target: usize,
    _data: *mut bindings::vsock_transport_recv_notify_data,
) -> c_int {
    0
}

extern "C" fn notify_recv_post_dequeue(
    _vsk: *mut bindings::vsock_sock,
    _target: usize,
    _copied: isize,
    _data_read: bool,
    _data: *mut bindings::vsock_transport_recv_notify_data,
) -> c_int {
    0
}

extern "C" fn notify_send(
    _vsk: *mut bindings::vsock_sock,
    _data: *mut bindings::vsock_transport_send_notify_data,
) -> c_int {
    0
}

extern "C" fn notify_send_post_enqueue(
    _vsk: *mut bindings::vsock_sock,
    _written: isize,
    _data: *mut bindings::vsock_transport_send_notify_data,
) -> c_int {
    0
}
