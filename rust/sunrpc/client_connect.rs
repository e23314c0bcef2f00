// SPDX-License-Identifier: GPL-2.0

//! How a client connects, and connects again.

use crate::{
    client::{Client, Link},
    client_receive::Incoming,
    errors::error,
    jiffies, seconds, Family,
};
use kernel::{
    ffi::{c_int, c_ulong, c_void},
    new_mutex,
    prelude::*,
    sync::{atomic::ordering, Arc},
    types::Opaque,
};
use rvsock_bindings::bindings;
use socket::{Socket, Watched};
use vsock_proto::Address;

/// Between attempts, doubled from one to the next up to the transport's limit; as for TCP.
const FIRST_DELAY: usize = seconds(3);

/// Bytes that may be under way in each direction: the largest READ or WRITE by default.
const BUFFER_SIZE: u64 = 1 << 20;

/// Source ports that only the superuser may use, as for TCP (`xprt_min_resvport` and
/// `xprt_max_resvport`).
const RESERVED_PORTS: core::ops::RangeInclusive<u32> = 665..=1023;

impl<F: Family> Client<F> {
    fn cookie(&self) -> *mut c_void {
        self.xprt().cast()
    }

    /// # Safety
    ///
    /// SUNRPC calls this with such a transport, for the task that has its `XPRT_LOCKED`.
    pub(crate) unsafe extern "C" fn connect(
        xprt: *mut bindings::rpc_xprt,
        task: *mut bindings::rpc_task,
    ) {
        // SAFETY: By the requirements of this function. The work ends with `XPRT_LOCKED` given
        // back, and no later than in `destroy`.
        unsafe {
            let this = Self::from_raw(xprt);
            if bindings::xprt_lock_connect(xprt, task, this.cookie()) {
                let delay = bindings::xprt_reconnect_delay(xprt);
                bindings::sunrpc_queue_delayed(this.connect_work.get(), delay);
            }
        }
    }

    /// # Safety
    ///
    /// `work` is the `connect_work` of a client.
    pub(crate) unsafe extern "C" fn connect_work(work: *mut bindings::work_struct) {
        let work: *mut bindings::delayed_work = work.cast();
        // SAFETY: The work is the first field of its `delayed_work`, and that of a client, which
        // is there until `destroy` has cancelled the work.
        unsafe {
            let this = &*kernel::container_of!(Opaque::cast_from(work), Self, connect_work);
            let flags = bindings::sunrpc_nofs_save();
            let status = this.try_connect();
            bindings::xprt_end_connecting(this.xprt());
            bindings::xprt_unlock_connect(this.xprt(), this.cookie());
            bindings::xprt_wake_pending_tasks(this.xprt(), status);
            bindings::sunrpc_nofs_restore(flags);
        }
    }

    /// Connects; what waiting tasks are told.
    fn try_connect(&self) -> c_int {
        if self.is_connected() {
            return EAGAIN.to_errno();
        }
        self.drop_link();
        let xprt = self.xprt();
        // SAFETY: The transport is valid, and these fields belong to whoever has `XPRT_LOCKED`.
        unsafe {
            (*xprt).stat.connect_count = (*xprt).stat.connect_count.wrapping_add(1);
            (*xprt).stat.connect_start = jiffies() as c_ulong;
        }
        match self.establish() {
            Ok(()) => {
                self.begin();
                EAGAIN.to_errno()
            }
            Err(error) => {
                self.drop_link();
                // SAFETY: As above.
                unsafe { bindings::xprt_reconnect_backoff(xprt, FIRST_DELAY as c_ulong) };
                told(error)
            }
        }
    }

    fn establish(&self) -> Result {
        let server = self
            .address()
            .and_then(F::server)
            .ok_or(error(bindings::EHOSTUNREACH))?;
        // SAFETY: A transport keeps its namespace.
        let socket = unsafe { Socket::new((*self.xprt()).xprt_net)? };
        socket.set_buffer_size(BUFFER_SIZE)?;
        // SAFETY: The transport is valid.
        if unsafe { (*self.xprt()).resvport() } != 0 {
            bind_reserved(&socket)?;
        }
        let link = Arc::pin_init(
            try_pin_init!(Link {
                socket: Watched::new(socket)?,
                incoming <- new_mutex!(Incoming::new(), "Link::incoming"),
            }? Error),
            GFP_KERNEL,
        )?;
        self.link.fill(link.clone()).map_err(|_| EAGAIN)?;
        // SAFETY: The client is there until `drop_link` has unwatched the socket.
        unsafe { link.socket.watch(self) };
        link.socket.connect(server)?;
        let Address { port, .. } = link.socket.local()?;
        self.source_port.store(port, ordering::Relaxed);
        Ok(())
    }

    /// The connection is there.
    fn begin(&self) {
        let xprt = self.xprt();
        // SAFETY: As in `try_connect`.
        unsafe {
            let waited = jiffies().wrapping_sub((*xprt).stat.connect_start);
            (*xprt).stat.connect_time = (*xprt).stat.connect_time.wrapping_add(waited as c_ulong);
            (*xprt).connect_cookie = (*xprt).connect_cookie.wrapping_add(1);
            // A server that hangs up at once is not called again before that time.
            (*xprt).reestablish_timeout = FIRST_DELAY as c_ulong;
            bindings::xprt_mark_connected(xprt);
        }
        // What happened before nobody was told of.
        self.receive_soon();
        if self.link().is_some_and(|link| link.socket.is_over()) {
            self.is_over.store(1, ordering::Relaxed);
            self.report_soon();
        }
    }
}

/// Binds to a port that only the superuser can have had.
fn bind_reserved(socket: &Socket) -> Result {
    for port in RESERVED_PORTS.rev() {
        match socket.bind(port) {
            Err(cause) if cause == error(bindings::EADDRINUSE) => {}
            result => return result,
        }
    }
    Err(error(bindings::EADDRINUSE))
}

/// An error as SUNRPC understands it: one that it does not know ends even what should be repeated
/// for ever.
fn told(error: Error) -> c_int {
    let known = match error.to_errno().wrapping_neg() as u32 {
        // No transport is loaded that leads there.
        bindings::ENODEV => bindings::ENETUNREACH,
        // Nobody listens there.
        bindings::ECONNRESET => bindings::ECONNREFUSED,
        // Nobody is there.
        bindings::ETIMEDOUT | bindings::EADDRNOTAVAIL => bindings::EHOSTUNREACH,
        bindings::ENOMEM => bindings::ENOBUFS,
        errno @ (bindings::ENETDOWN
        | bindings::ENETUNREACH
        | bindings::ECONNREFUSED
        | bindings::ECONNABORTED
        | bindings::EHOSTUNREACH
        | bindings::EPIPE
        | bindings::EPROTO
        | bindings::EADDRINUSE
        | bindings::ENOTCONN
        | bindings::ENOBUFS) => errno,
        _ => bindings::EAGAIN,
    };
    -(known as c_int)
}
