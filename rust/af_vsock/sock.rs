// SPDX-License-Identifier: GPL-2.0

//! Sockets, by what one holds of them.
//!
//! Lock order: the socket lock is taken first, a listener's before its child's; it is a sleeping
//! lock. Locks of a transport's own nest inside it.

use crate::{
    address::{from_sockaddr, CID_ANY},
    state::{Attached, Attachment, StateRef},
    Net, Transport,
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    sync::{
        aref::{ARef, AlwaysRefCounted},
        ArcBorrow,
    },
    time::Jiffies,
    types::Opaque,
};
use rvsock_bindings::{bindings, WorkQueue};
use vsock_proto::{Address, Kind, ShutdownFlags};

/// A `struct vsock_sock` that exists.
///
/// # Invariants
///
/// The socket is initialized and its reference count is not zero for as long as the borrow lasts.
#[repr(transparent)]
pub struct Sock(Opaque<bindings::vsock_sock>);

// SAFETY: Sockets are shared between threads; whatever is not constant is behind their lock.
unsafe impl Send for Sock {}
// SAFETY: As above.
unsafe impl Sync for Sock {}

// SAFETY: `sock_hold()` and `sock_put()` count references to the whole `vsock_sock`, of which the
// `struct sock` is the first member.
unsafe impl AlwaysRefCounted for Sock {
    fn inc_ref(&self) {
        // SAFETY: By the type invariants the socket is valid.
        unsafe { bindings::sock_hold(self.sk()) }
    }

    unsafe fn dec_ref(socket: NonNull<Self>) {
        // SAFETY: The caller owns the reference that is given up here.
        unsafe { bindings::sock_put(socket.as_ptr().cast()) }
    }
}

/// A counted reference to a socket.
pub type SockRef = ARef<Sock>;

/// How far a socket has come (`sk_state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketState {
    /// `TCP_CLOSE`, and whatever has no name here.
    Closed,
    /// `TCP_LISTEN`.
    Listening,
    /// `TCP_SYN_SENT`.
    Connecting,
    /// `TCP_ESTABLISHED`.
    Established,
    /// `TCP_CLOSING`.
    Closing,
}

impl SocketState {
    fn from_raw(state: u8) -> Self {
        match u32::from(state) {
            bindings::TCP_LISTEN => Self::Listening,
            bindings::TCP_SYN_SENT => Self::Connecting,
            bindings::TCP_ESTABLISHED => Self::Established,
            bindings::TCP_CLOSING => Self::Closing,
            _ => Self::Closed,
        }
    }

    fn as_raw(self) -> u8 {
        let state = match self {
            Self::Closed => bindings::TCP_CLOSE,
            Self::Listening => bindings::TCP_LISTEN,
            Self::Connecting => bindings::TCP_SYN_SENT,
            Self::Established => bindings::TCP_ESTABLISHED,
            Self::Closing => bindings::TCP_CLOSING,
        };
        state as u8
    }
}

/// Why a connection failed, as `errno` says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum SocketError {
    /// The peer refused or ended it.
    ConnectionReset = bindings::ECONNRESET as i32,
    /// The peer said something that makes no sense.
    Protocol = bindings::EPROTO as i32,
    /// The peer sent more than it was allowed to.
    NoBuffers = bindings::ENOBUFS as i32,
}

/// Which directions `shutdown()` or `close()` has shut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Direction(u32);

impl Direction {
    /// Neither.
    pub const NONE: Direction = Direction(0);

    /// Receiving and sending (`SHUTDOWN_MASK`).
    pub const BOTH: Direction = Direction(bindings::SHUTDOWN_MASK);

    pub(crate) fn from_raw(mode: u32) -> Self {
        Self(mode & bindings::SHUTDOWN_MASK)
    }

    pub(crate) fn as_raw(self) -> u32 {
        self.0
    }
}

impl From<Direction> for ShutdownFlags {
    fn from(direction: Direction) -> Self {
        let flag = |mode, flag| {
            if direction.0 & mode != 0 {
                flag
            } else {
                ShutdownFlags::NONE
            }
        };
        flag(bindings::RCV_SHUTDOWN, ShutdownFlags::RECEIVE)
            .union(flag(bindings::SEND_SHUTDOWN, ShutdownFlags::SEND))
    }
}

impl From<ShutdownFlags> for Direction {
    fn from(flags: ShutdownFlags) -> Self {
        let mode = |flag, mode| if flags.contains(flag) { mode } else { 0 };
        Self(
            mode(ShutdownFlags::RECEIVE, bindings::RCV_SHUTDOWN)
                | mode(ShutdownFlags::SEND, bindings::SEND_SHUTDOWN),
        )
    }
}

impl Sock {
    /// # Safety
    ///
    /// `vsk` has to be a socket that exists for `'a`.
    pub(crate) unsafe fn from_raw<'a>(vsk: *mut bindings::vsock_sock) -> &'a Self {
        // SAFETY: By the requirements of this function; the type is transparent.
        unsafe { &*vsk.cast() }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::vsock_sock {
        self.0.get()
    }

    pub(crate) fn sk(&self) -> *mut bindings::sock {
        self.0.get().cast()
    }

    /// Whether both are the same socket.
    pub fn is(&self, other: &Sock) -> bool {
        core::ptr::eq(self, other)
    }

    /// Stream or seqpacket; transports get no other sockets.
    #[inline]
    pub fn kind(&self) -> Kind {
        // SAFETY: The socket is valid, and its type never changes.
        match u32::from(unsafe { (*self.sk()).sk_type }) {
            bindings::sock_type_SOCK_STREAM => Kind::Stream,
            _ => Kind::Seqpacket,
        }
    }

    /// The network namespace of the socket.
    #[inline]
    pub fn net(&self) -> Net<'_> {
        // SAFETY: A socket keeps its namespace.
        unsafe { Net::from_raw(bindings::sock_net(self.sk())) }
    }

    /// Whether the socket's namespace is in global mode.
    pub fn is_global(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { bindings::vsock_net_mode_global(self.as_raw()) }
    }

    /// A look at state and remote address without the lock: may be out of date, and torn.
    #[inline]
    pub fn peek(&self) -> (SocketState, Address) {
        // SAFETY: The socket is valid; the fields are plain integers that others may be writing,
        // hence the volatile reads.
        unsafe {
            let state = (&raw const (*self.sk()).__sk_common.skc_state).read_volatile();
            let remote = &raw const (*self.as_raw()).remote_addr;
            let cid = (&raw const (*remote).svm_cid).read_volatile();
            let port = (&raw const (*remote).svm_port).read_volatile();
            (SocketState::from_raw(state), Address::new(cid, port))
        }
    }

    /// Whether the connection is over (`SOCK_DONE`).
    #[inline]
    pub fn is_done(&self) -> bool {
        self.flag(bindings::sock_flags_SOCK_DONE)
    }

    fn flag(&self, flag: bindings::sock_flags) -> bool {
        // SAFETY: The socket is valid; flags are bits that are read atomically.
        unsafe { bindings::sock_flag(self.sk(), flag) }
    }

    /// `SO_RCVLOWAT`: fewer bytes than these do not wake a reader.
    pub fn receive_low_water(&self) -> u32 {
        // SAFETY: The socket is valid; the value is read at once. Never negative.
        unsafe { bindings::sock_rcvlowat(self.sk()) as u32 }
    }

    /// Whether somebody may have replaced the socket's callbacks: who does that sets `sk_user_data`.
    pub(crate) fn is_watched(&self) -> bool {
        // SAFETY: The socket is valid; others may be writing, hence the volatile read.
        let data = unsafe { (&raw const (*self.sk()).sk_user_data).read_volatile() };
        !data.is_null()
    }

    /// Takes the socket lock. May sleep, for as long as its owner likes.
    pub fn lock(&self) -> LockedSock<'_> {
        // SAFETY: The socket is valid.
        unsafe { bindings::lock_sock_nested(self.sk(), 0) };
        // SAFETY: The lock was taken just now.
        unsafe { LockedSock::taken(self) }
    }
}

/// The lock of a socket, taken by us; gives it back when dropped.
///
/// # Invariants
///
/// This thread holds the socket's lock, and this value is what will release it.
pub struct LockedSock<'a> {
    sock: &'a Sock,
    _not_send: PhantomData<*mut ()>,
}

impl<'a> LockedSock<'a> {
    /// # Safety
    ///
    /// This thread has taken the lock, and nothing else will release it.
    pub(crate) unsafe fn taken(sock: &'a Sock) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            sock,
            _not_send: PhantomData,
        }
    }

    /// As [`Sock::lock`], for the child of a socket that is locked.
    pub(crate) fn lock_child(sock: &'a Sock) -> Self {
        // SAFETY: The socket is valid.
        unsafe { bindings::lock_child(sock.sk()) };
        // SAFETY: The lock was taken just now.
        unsafe { Self::taken(sock) }
    }

    /// The socket, for a call that needs its lock.
    #[inline]
    pub fn hold(&mut self) -> HeldSock<'_> {
        // INVARIANT: The lock is held at least as long as the borrow, which is exclusive.
        HeldSock {
            sock: self.sock,
            _exclusive: PhantomData,
        }
    }
}

impl Drop for LockedSock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants we hold the lock.
        unsafe { bindings::release_sock(self.sock.sk()) }
    }
}

/// A socket whose lock is held.
///
/// Exclusive, as `&mut`: pass it on with [`HeldSock::reborrow`]. Wake-ups may call back into the
/// transport in the same stack (`sk_data_ready` of a psock calls `read_skb`), so they take
/// `&mut self` and cannot be called while the socket's state is borrowed.
///
/// # Invariants
///
/// This thread holds the socket's lock for `'a`, and nobody else has a `HeldSock` of it that is in
/// use meanwhile.
pub struct HeldSock<'a> {
    sock: &'a Sock,
    _exclusive: PhantomData<*mut ()>,
}

impl core::ops::Deref for HeldSock<'_> {
    type Target = Sock;

    fn deref(&self) -> &Sock {
        self.sock
    }
}

impl<'a> HeldSock<'a> {
    /// # Safety
    ///
    /// The caller holds the lock of `vsk` for `'a`, and uses it through this value alone.
    pub(crate) unsafe fn from_raw(vsk: *mut bindings::vsock_sock) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            // SAFETY: A locked socket exists.
            sock: unsafe { Sock::from_raw(vsk) },
            _exclusive: PhantomData,
        }
    }

    /// The same for a shorter time.
    #[inline]
    pub fn reborrow(&mut self) -> HeldSock<'_> {
        // INVARIANT: The exclusive borrow of `self` keeps it from being used meanwhile.
        HeldSock {
            sock: self.sock,
            _exclusive: PhantomData,
        }
    }

    /// A counted reference.
    pub fn reference(&self) -> SockRef {
        self.sock.into()
    }

    /// The state that `T` keeps for this socket; `None` if it belongs to another transport or none.
    #[inline]
    pub fn attached<T: Transport>(&mut self) -> Option<Attached<'_, T>> {
        let attachment = self.attachment::<T>()?;
        Some(Attached {
            shared: &attachment.shared,
            // SAFETY: This is the `trans` of the socket whose lock we hold, so by the type
            // invariants nobody else is here, and the borrow of `self` keeps it so.
            owned: unsafe { &mut *attachment.owned() },
        })
    }

    /// A counted reference to the shared part of the state.
    pub fn state_ref<T: Transport>(&self) -> Option<StateRef<T>> {
        let attachment = self.attachment::<T>()?;
        // SAFETY: `trans` came from `Arc::into_raw`, and holds a reference as long as it is set.
        Some(StateRef(unsafe { ArcBorrow::from_raw(attachment) }.into()))
    }

    #[inline]
    fn attachment<T: Transport>(&self) -> Option<&Attachment<T>> {
        // SAFETY: The lock is held, so these do not change.
        let (transport, trans) = unsafe {
            let vsk = self.sock.as_raw();
            ((*vsk).transport, (*vsk).trans)
        };
        if !core::ptr::eq(transport, T::vtable().as_raw()) {
            return None;
        }
        // SAFETY: The transport is `T`, whose `init` put an `Arc<Attachment<T>>` there; it stays
        // until `destruct`, which needs the lock or is the end of the socket.
        unsafe { trans.cast::<Attachment<T>>().as_ref() }
    }

    /// How far the socket has come.
    #[inline]
    pub fn state(&self) -> SocketState {
        // SAFETY: The lock is held.
        SocketState::from_raw(unsafe { (*self.sk()).__sk_common.skc_state })
    }

    /// Sets the state; [`HeldSock::report_state`] tells whoever waits for it.
    pub fn set_state(&mut self, state: SocketState) {
        // SAFETY: The lock is held; `peek` reads this without it.
        unsafe {
            (&raw mut (*self.sk()).__sk_common.skc_state).write_volatile(state.as_raw());
        }
    }

    /// Tells `connect()` and everybody else that the connection is there.
    pub fn set_connected(&mut self) {
        self.set_state(SocketState::Established);
        // SAFETY: The lock is held; a socket that nobody has open any more has no `sk_socket`.
        unsafe {
            if let Some(socket) = (*self.sk()).sk_socket.as_mut() {
                socket.state = bindings::socket_state_SS_CONNECTED;
            }
        }
    }

    /// The connection is over; what was received can still be read.
    pub fn set_done(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::sock_set_flag(self.sk(), bindings::sock_flags_SOCK_DONE) }
    }

    /// Forgets the end of a connection that `connect()` never returned, before it tries again. The
    /// core does so for a socket that changes its transport (`vsock_assign_transport()`).
    pub fn forget_end(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::sock_reset_flag(self.sk(), bindings::sock_flags_SOCK_DONE) }
        self.set_peer_shutdown(Direction::NONE);
    }

    /// Whether `SO_ZEROCOPY` is set.
    pub fn wants_zerocopy(&self) -> bool {
        self.flag(bindings::sock_flags_SOCK_ZEROCOPY)
    }

    /// Address of this end.
    pub fn local(&self) -> Address {
        // SAFETY: The lock is held.
        from_sockaddr(unsafe { &(*self.as_raw()).local_addr })
    }

    /// Address of the other end.
    #[inline]
    pub fn remote(&self) -> Address {
        // SAFETY: The lock is held.
        from_sockaddr(unsafe { &(*self.as_raw()).remote_addr })
    }

    /// Takes over the CID that the peer knows us by: it changes when a guest is migrated. A socket
    /// bound to any CID stays so.
    pub fn update_local_cid(&mut self, cid: u32) {
        // SAFETY: The lock is held.
        unsafe {
            let local = &mut (*self.as_raw()).local_addr;
            if local.svm_cid != CID_ANY {
                local.svm_cid = cid;
            }
        }
    }

    /// What this end has shut (`sk_shutdown`).
    pub fn shutdown(&self) -> Direction {
        // SAFETY: The lock is held.
        Direction::from_raw(u32::from(unsafe { (*self.sk()).sk_shutdown }))
    }

    /// What the other end has shut.
    pub fn peer_shutdown(&self) -> Direction {
        // SAFETY: The lock is held.
        Direction::from_raw(unsafe { (*self.as_raw()).peer_shutdown })
    }

    /// Sets what the other end has shut; the core reads it without the lock.
    pub fn set_peer_shutdown(&mut self, direction: Direction) {
        // SAFETY: The lock is held for writing; the store is a single one.
        unsafe { (&raw mut (*self.as_raw()).peer_shutdown).write_volatile(direction.as_raw()) }
    }

    /// Whether as many children wait for `accept()` as may.
    pub fn backlog_is_full(&self) -> bool {
        // SAFETY: The lock is held.
        unsafe { bindings::sk_acceptq_is_full(self.sk()) }
    }

    /// The window this end offers (`SO_VM_SOCKETS_BUFFER_SIZE`), cut down to what fits a header.
    pub fn clamp_buffer_size(&mut self) -> u32 {
        // SAFETY: The lock is held.
        let size = unsafe { &mut (*self.as_raw()).buffer_size };
        let clamped = u32::try_from(*size).unwrap_or(u32::MAX);
        *size = u64::from(clamped);
        clamped
    }

    /// `SO_VM_SOCKETS_BUFFER_SIZE`.
    pub fn buffer_size(&self) -> u64 {
        // SAFETY: The lock is held.
        unsafe { (*self.as_raw()).buffer_size }
    }

    /// Sets the error that the next call on the socket returns; see [`HeldSock::report_error`].
    pub fn set_error(&mut self, error: SocketError) {
        // SAFETY: The lock is held; readers look without it, hence a single store.
        unsafe { (&raw mut (*self.sk()).sk_err).write_volatile(error as i32) }
    }

    /// Wakes whoever waits for a change of state (`sk_state_change`).
    pub fn report_state(&mut self) {
        // SAFETY: The lock is held; the callback is set as long as the socket exists.
        unsafe {
            if let Some(state_change) = (*self.sk()).sk_state_change {
                state_change(self.sk());
            }
        }
    }

    /// Wakes whoever waits for room to send (`sk_write_space`).
    ///
    /// Not through the core's own callback, which would look at the memory of packets that were
    /// sent and not taken back.
    pub fn report_space(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::wake_writers(self.sk()) };
        if !self.is_watched() {
            return;
        }
        // SAFETY: The lock is held; the callback is set as long as the socket exists.
        unsafe {
            if let Some(write_space) = (*self.sk()).sk_write_space {
                write_space(self.sk());
            }
        }
    }

    /// Wakes who waits to receive or to accept (`sk_data_ready`).
    pub fn report_data(&mut self) {
        // SAFETY: As above.
        unsafe {
            if let Some(data_ready) = (*self.sk()).sk_data_ready {
                data_ready(self.sk());
            }
        }
    }

    /// Wakes everybody for an error (`sk_error_report()`).
    pub fn report_error(&mut self) {
        // SAFETY: The lock is held.
        unsafe { bindings::sk_error_report(self.sk()) }
    }

    /// Waits until everything is sent, as `SO_LINGER` asks. Drops and retakes the lock.
    ///
    /// Nothing is waited for in a task that is exiting: nobody could interrupt it.
    pub fn linger(&mut self) {
        // SAFETY: Reads the flags of the current task.
        if unsafe { bindings::current_is_exiting() } {
            return;
        }
        // SAFETY: The lock is held, and no state of the socket is borrowed.
        unsafe { bindings::vsock_linger(self.sk()) }
    }

    /// Calls [`Transport::close_timed_out`] after `delay` on `queue`, unless cancelled.
    ///
    /// Holds a reference meanwhile. Must not be called while one is scheduled.
    pub fn schedule_close<T: Transport>(&mut self, queue: &WorkQueue, delay: Jiffies) {
        self.inc_ref();
        // SAFETY: The socket is valid, its `close_work` idle and left to transports by the core;
        // the reference taken above belongs to the work.
        unsafe {
            bindings::schedule_close(self.as_raw(), queue.as_raw(), Some(close_work::<T>), delay)
        }
    }

    /// Whether a close is scheduled.
    pub fn close_is_scheduled(&self) -> bool {
        // SAFETY: The lock is held.
        unsafe { (*self.as_raw()).close_work_scheduled }
    }

    /// Cancels a scheduled close; false if there was none, or if it is about to run.
    pub fn cancel_close(&mut self) -> bool {
        // SAFETY: The lock is held, the work was initialized when it was scheduled.
        if !self.close_is_scheduled() || !unsafe { bindings::cancel_close(self.as_raw()) } {
            return false;
        }
        // SAFETY: The lock is held. The reference of the work is ours now; whoever holds the lock
        // has another one.
        unsafe {
            (*self.as_raw()).close_work_scheduled = false;
            bindings::sock_put(self.sk());
        }
        true
    }

    pub(crate) fn as_mut_raw(&mut self) -> *mut bindings::vsock_sock {
        self.as_raw()
    }
}

/// The work function behind [`HeldSock::schedule_close`].
///
/// # Safety
///
/// `work` is the `close_work` of a socket, scheduled there for the same `T`.
unsafe extern "C" fn close_work<T: Transport>(work: *mut bindings::work_struct) {
    // SAFETY: By the requirements of this function.
    let vsk = unsafe { kernel::container_of!(work, bindings::vsock_sock, close_work.work) };
    // SAFETY: The work owned a reference to the socket, which is ours now.
    let sock = unsafe { SockRef::from_raw(NonNull::new_unchecked(vsk.cast())) };
    let mut locked = sock.lock();
    let mut held = locked.hold();
    // It may have gone to another transport while this waited for the lock.
    if held.attached::<T>().is_some() {
        T::close_timed_out(held);
    }
    // SAFETY: The lock is held.
    unsafe { (*sock.as_raw()).close_work_scheduled = false };
}
