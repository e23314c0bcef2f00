// SPDX-License-Identifier: GPL-2.0

//! A mount's way to its server.
//!
//! SUNRPC tells the transport to connect, to send and to close, one at a time (`XPRT_LOCKED`); what
//! comes in is read by work of its own.

use crate::{
    address,
    back_channel::{ignore, refuse_swap},
    buffer, callback,
    client_receive::Incoming,
    errors::error,
    names::Names,
    seconds, stats, Family,
};
use core::{cell::UnsafeCell, mem, net::SocketAddrV6, ptr};
use kernel::{
    ffi::{c_int, c_uint, c_ulong},
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        Arc, Mutex,
    },
    types::Opaque,
};
use rvsock_bindings::{bindings, RcuSlot};
use socket::{Events, Watched};

/// Requests under way at first, as for TCP.
const SLOTS: c_uint = 2;
/// Requests under way at most, for sessions that limit them by themselves, and for others.
const MANY_SLOTS: c_uint = bindings::RPC_MAX_SLOT_TABLE_LIMIT;
const FEW_SLOTS: c_uint = 64;

/// A connection that nobody uses is closed after this time, as for TCP.
const IDLE: usize = seconds(5 * 60);

/// A request that got no answer is repeated after this time, as for TCP.
const REPLY: usize = seconds(60);

static TIMEOUT: bindings::rpc_timeout = bindings::rpc_timeout {
    to_initval: REPLY as c_ulong,
    to_maxval: REPLY as c_ulong,
    to_increment: 0,
    to_retries: 2,
    to_exponential: 0,
};

/// A connection to the server.
#[pin_data]
pub(crate) struct Link<F: Family> {
    pub(crate) socket: Watched<Client<F>>,
    #[pin]
    pub(crate) incoming: Mutex<Incoming>,
}

/// A `struct rpc_xprt` of a client, and what belongs to it.
///
/// # Invariants
///
/// `xprt` is the first field; all fields are initialized, and stay where they are. `sent` belongs
/// to whoever has the transport's `XPRT_LOCKED`.
#[repr(C)]
pub(crate) struct Client<F: Family> {
    xprt: Opaque<bindings::rpc_xprt>,
    pub(crate) connect_work: Opaque<bindings::delayed_work>,
    pub(crate) receive_work: Opaque<bindings::work_struct>,
    pub(crate) event_work: Opaque<bindings::work_struct>,
    pub(crate) link: RcuSlot<Link<F>>,
    /// Bytes of the message at hand that were sent.
    pub(crate) sent: UnsafeCell<usize>,
    /// A sender waits for room.
    pub(crate) wants_room: Atomic<u32>,
    /// The connection has ended, and SUNRPC is yet to be told.
    pub(crate) is_over: Atomic<u32>,
    pub(crate) source_port: Atomic<u32>,
    names: Names<F>,
}

// SAFETY: What is not constant is behind a lock, or belongs to whoever has `XPRT_LOCKED`.
unsafe impl<F: Family> Sync for Client<F> {}
// SAFETY: As above.
unsafe impl<F: Family> Send for Client<F> {}

impl<F: Family> Client<F> {
    /// # Safety
    ///
    /// `xprt` has to be a transport that [`Client::create`] has made, alive for `'a`.
    pub(crate) unsafe fn from_raw<'a>(xprt: *mut bindings::rpc_xprt) -> &'a Self {
        // SAFETY: Such a transport is the first field of a client.
        unsafe { &*xprt.cast() }
    }

    pub(crate) fn xprt(&self) -> *mut bindings::rpc_xprt {
        self.xprt.get()
    }

    pub(crate) fn is_connected(&self) -> bool {
        // SAFETY: The transport is valid.
        unsafe { bindings::xprt_is_connected(self.xprt()) }
    }

    /// A reference to the connection, if there is one.
    pub(crate) fn link(&self) -> Option<Arc<Link<F>>> {
        self.link.get()
    }

    /// Lets SUNRPC close the connection.
    pub(crate) fn disconnect(&self) {
        // SAFETY: The transport is valid.
        unsafe { bindings::xprt_force_disconnect(self.xprt()) }
    }

    /// Reads what has come, soon.
    pub(crate) fn receive_soon(&self) {
        // SAFETY: The work is initialized; `destroy` ends it.
        unsafe { bindings::sunrpc_queue(self.receive_work.get()) };
    }

    /// Tells SUNRPC what happened, soon.
    pub(crate) fn report_soon(&self) {
        // SAFETY: As above.
        unsafe { bindings::sunrpc_queue(self.event_work.get()) };
    }

    /// # Safety
    ///
    /// `work` is the `event_work` of a client.
    unsafe extern "C" fn report(work: *mut bindings::work_struct) {
        // SAFETY: A client is there until `destroy` has cancelled its work.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(work), Self, event_work) };
        if this.wants_room.xchg(0, ordering::Full) != 0 {
            // SAFETY: The transport is valid.
            unsafe { bindings::xprt_write_space(this.xprt()) };
        }
        if this.is_over.xchg(0, ordering::Full) != 0 && this.is_connected() {
            this.disconnect();
        }
    }

    /// The address that SUNRPC has for the server now; it may be changed through sysfs.
    pub(crate) fn address(&self) -> Option<SocketAddrV6> {
        // SAFETY: The transport is valid, and has room for any address.
        unsafe {
            let xprt = self.xprt();
            address::from_sockaddr((&raw const (*xprt).addr).cast(), (*xprt).addrlen)
        }
    }

    /// Takes the connection away from everybody. `XPRT_LOCKED` is held.
    pub(crate) fn drop_link(&self) {
        let Some(link) = self.link.take() else {
            return;
        };
        link.socket.unwatch();
        link.socket.shutdown();
        // Who reads just now is waited for, and does not touch a request any more afterwards.
        link.incoming.lock().end();
        // SAFETY: By the type invariants this is ours, as `XPRT_LOCKED` is held.
        unsafe { *self.sent.get() = 0 };
    }
}

impl<F: Family> Events for Client<F> {
    fn readable(&self) {
        self.receive_soon();
    }

    fn writable(&self) {
        if self.wants_room.load(ordering::Relaxed) != 0 {
            self.report_soon();
        }
    }

    fn changed(&self, is_over: bool) {
        if is_over && self.is_connected() {
            self.is_over.store(1, ordering::Relaxed);
            self.report_soon();
        }
    }
}

/// # Safety
///
/// Of all operations: SUNRPC calls them with a transport of this kind, as it says beside the
/// operation's declaration.
impl<F: Family> Client<F> {
    /// The table of the operations.
    pub(crate) const fn operations() -> bindings::rpc_xprt_ops {
        let mut table: bindings::rpc_xprt_ops = pin_init::zeroed();
        table.reserve_xprt = Some(bindings::xprt_reserve_xprt);
        table.release_xprt = Some(bindings::xprt_release_xprt);
        table.alloc_slot = Some(bindings::xprt_alloc_slot);
        table.free_slot = Some(bindings::xprt_free_slot);
        table.connect = Some(Self::connect);
        table.buf_alloc = Some(buffer::alloc);
        table.buf_free = Some(buffer::free);
        table.prepare_request = Some(buffer::prepare);
        table.send_request = Some(Self::send_request);
        table.abort_send_request = Some(Self::abort_send_request);
        table.wait_for_reply_request = Some(bindings::xprt_wait_for_reply_request_def);
        table.close = Some(Self::close);
        table.destroy = Some(Self::destroy);
        table.set_connect_timeout = Some(Self::set_connect_timeout);
        table.print_stats = Some(Self::print_stats);
        table.enable_swap = Some(refuse_swap);
        table.disable_swap = Some(ignore);
        table.inject_disconnect = Some(bindings::xprt_disconnect_done);
        table.bc_setup = Some(bc_setup);
        table.bc_maxpayload = Some(bc_maxpayload);
        table.bc_num_slots = Some(bc_num_slots);
        table.bc_free_rqst = Some(callback::free);
        table.bc_destroy = Some(bc_destroy);
        table
    }

    /// # Safety
    ///
    /// SUNRPC calls this with valid arguments.
    pub(crate) unsafe extern "C" fn set_up(
        arguments: *mut bindings::xprt_create,
    ) -> *mut bindings::rpc_xprt {
        // SAFETY: By the requirements of this function.
        match unsafe { Self::create(&*arguments) } {
            Ok(xprt) => xprt,
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// The arguments have to be valid.
    unsafe fn create(arguments: &bindings::xprt_create) -> Result<*mut bindings::rpc_xprt> {
        // SAFETY: By the requirements of this function.
        let address = unsafe { address::from_sockaddr(arguments.dstaddr, arguments.addrlen) };
        // Referrals and mistyped mounts come here with addresses of the network.
        let address = address
            .filter(|address| F::server(*address).is_some())
            .ok_or(error(bindings::EADDRNOTAVAIL))?;
        let names = Names::<F>::new(address)?;
        let is_session = arguments.flags & bindings::XPRT_CREATE_INFINITE_SLOTS != 0;
        let slots = if is_session { MANY_SLOTS } else { FEW_SLOTS };
        F::tables().hold_module()?;
        let size = mem::size_of::<Self>();
        // SAFETY: The arguments are valid; the size is that of a structure which begins with the
        // transport.
        let xprt = unsafe { bindings::xprt_alloc(arguments.net, size, SLOTS, slots) };
        if xprt.is_null() {
            F::tables().release_module();
            return Err(ENOMEM);
        }
        // SAFETY: The memory is new and of that size.
        unsafe { Self::initialize(xprt, arguments, address, names) };
        Ok(xprt)
    }

    /// # Safety
    ///
    /// `xprt` has to be new, and of the size of a client.
    unsafe fn initialize(
        xprt: *mut bindings::rpc_xprt,
        arguments: &bindings::xprt_create,
        address: SocketAddrV6,
        names: Names<F>,
    ) {
        let this: *mut Self = xprt.cast();
        // SAFETY: By the requirements of this function; each field is written before it is used.
        unsafe {
            (&raw mut (*this).link).write(RcuSlot::new());
            (&raw mut (*this).sent).write(UnsafeCell::new(0));
            (&raw mut (*this).wants_room).write(Atomic::new(0));
            (&raw mut (*this).is_over).write(Atomic::new(0));
            (&raw mut (*this).source_port).write(Atomic::new(0));
            (&raw mut (*this).names).write(names);
            let work = (&raw mut (*this).connect_work).cast();
            bindings::sunrpc_init_delayed_work(work, Some(Self::connect_work));
            let work = (&raw mut (*this).receive_work).cast();
            bindings::sunrpc_init_work(work, Some(Self::receive_work));
            let work = (&raw mut (*this).event_work).cast();
            bindings::sunrpc_init_work(work, Some(Self::report));
            (*this).names.give(xprt);

            let to = address::to_sockaddr(address);
            (&raw mut (*xprt).addr)
                .cast::<bindings::sockaddr_in6>()
                .write(to);
            (*xprt).addrlen = address::LEN;
            (*xprt).prot = bindings::IPPROTO_TCP as c_int;
            (*xprt).xprt_class = F::tables().client();
            (*xprt).ops = F::tables().client_operations();
            (*xprt).max_payload = vsock_proto::record::MAX_FRAGMENT as usize;
            (*xprt).timeout = &TIMEOUT;
            (*xprt).bind_timeout = REPLY as c_ulong;
            (*xprt).idle_timeout = if arguments.flags & bindings::XPRT_CREATE_NO_IDLE_TIMEOUT != 0 {
                0
            } else {
                IDLE as c_ulong
            };
            (*xprt).connect_timeout = or_default(arguments.connect_timeout, 3 * REPLY);
            (*xprt).max_reconnect_timeout = or_default(arguments.reconnect_timeout, REPLY);
            bindings::xprt_mark_bound(xprt);
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn close(xprt: *mut bindings::rpc_xprt) {
        // SAFETY: See above; `XPRT_LOCKED` is held.
        unsafe {
            let this = Self::from_raw(xprt);
            this.drop_link();
            (*xprt).connect_cookie = (*xprt).connect_cookie.wrapping_add(1);
            bindings::xprt_forget_closing(xprt);
            bindings::xprt_disconnect_done(xprt);
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn destroy(xprt: *mut bindings::rpc_xprt) {
        let this: *mut Self = xprt.cast();
        // SAFETY: See above: nobody uses the transport any more, except its own work, which ends
        // here; connecting first, because it queues the others.
        unsafe {
            bindings::cancel_delayed_work_sync((*this).connect_work.get());
            (*this).drop_link();
            bindings::cancel_work_sync((*this).receive_work.get());
            bindings::cancel_work_sync((*this).event_work.get());
            ptr::drop_in_place(&raw mut (*this).link);
            let names = (&raw const (*this).names).read();
            bindings::xprt_free(xprt);
            drop(names);
        }
        F::tables().release_module();
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn set_connect_timeout(
        xprt: *mut bindings::rpc_xprt,
        connect: c_ulong,
        reconnect: c_ulong,
    ) {
        // SAFETY: The transport is valid.
        unsafe {
            bindings::spin_lock(&raw mut (*xprt).transport_lock);
            (*xprt).connect_timeout = (*xprt).connect_timeout.min(connect);
            (*xprt).max_reconnect_timeout = (*xprt).max_reconnect_timeout.min(reconnect);
            bindings::spin_unlock(&raw mut (*xprt).transport_lock);
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn print_stats(xprt: *mut bindings::rpc_xprt, file: *mut bindings::seq_file) {
        // SAFETY: See above.
        unsafe {
            let port = Self::from_raw(xprt).source_port.load(ordering::Relaxed);
            stats::print(xprt, file, port);
        }
    }
}

/// A time, if one is given.
fn or_default(time: c_ulong, default: usize) -> c_ulong {
    if time == 0 {
        default as c_ulong
    } else {
        time
    }
}

/// Requests of servers are allocated as they come.
///
/// # Safety
///
/// None.
unsafe extern "C" fn bc_setup(_xprt: *mut bindings::rpc_xprt, _count: c_uint) -> c_int {
    0
}

/// # Safety
///
/// None.
unsafe extern "C" fn bc_maxpayload(_xprt: *mut bindings::rpc_xprt) -> usize {
    PAGE_SIZE
}

/// # Safety
///
/// None.
unsafe extern "C" fn bc_num_slots(_xprt: *mut bindings::rpc_xprt) -> c_uint {
    callback::SLOTS
}

/// # Safety
///
/// None.
unsafe extern "C" fn bc_destroy(_xprt: *mut bindings::rpc_xprt, _count: c_uint) {}
