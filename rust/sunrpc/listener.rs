// SPDX-License-Identifier: GPL-2.0

//! A socket on which a server waits for clients.

use crate::{
    connection::{nothing_to_do, Connection},
    errors::error,
    Family,
};
use core::marker::PhantomData;
use kernel::{ffi::c_int, prelude::*, types::Opaque};
use rvsock_bindings::bindings;
use socket::{Events, Socket, Watched};

/// Connections that wait to be accepted, as for TCP.
const BACKLOG: c_int = 64;

/// A `struct svc_xprt` of a listening socket.
///
/// # Invariants
///
/// `xprt` is the first field, and initialized.
#[repr(C)]
pub(crate) struct Listener<F: Family> {
    xprt: Opaque<bindings::svc_xprt>,
    socket: Watched<Self>,
    _family: PhantomData<F>,
}

// SAFETY: What is not constant is behind locks of C.
unsafe impl<F: Family> Sync for Listener<F> {}

impl<F: Family> Events for Listener<F> {
    fn readable(&self) {
        // SAFETY: The transport is valid while events come.
        unsafe {
            bindings::svc_xprt_set_flag(self.xprt.get(), bindings::XPT_CONN);
            bindings::svc_xprt_enqueue(self.xprt.get());
        }
    }

    fn writable(&self) {}

    fn changed(&self, _is_over: bool) {}
}

/// # Safety
///
/// Of all operations: SUNRPC calls them with a transport of this kind, as it says beside the
/// operation's declaration.
impl<F: Family> Listener<F> {
    /// The table of the operations.
    pub(crate) const fn operations() -> bindings::svc_xprt_ops {
        bindings::svc_xprt_ops {
            xpo_create: Some(Self::create),
            xpo_accept: Some(Self::accept),
            xpo_detach: Some(Self::detach),
            xpo_free: Some(Self::free),
            xpo_has_wspace: Some(has_wspace),
            ..nothing_to_do()
        }
    }

    /// # Safety
    ///
    /// `xprt` has to be a transport with these operations, alive for `'a`.
    unsafe fn from_raw<'a>(xprt: *mut bindings::svc_xprt) -> &'a Self {
        // SAFETY: Such a transport is the first field of a listener.
        unsafe { &*xprt.cast() }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn create(
        server: *mut bindings::svc_serv,
        net: *mut bindings::net,
        address: *mut bindings::sockaddr,
        length: c_int,
        _flags: c_int,
    ) -> *mut bindings::svc_xprt {
        // SAFETY: See above.
        match unsafe { Self::listen(server, net, address, length) } {
            Ok(xprt) => xprt,
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe fn listen(
        server: *mut bindings::svc_serv,
        net: *mut bindings::net,
        address: *const bindings::sockaddr,
        length: c_int,
    ) -> Result<*mut bindings::svc_xprt> {
        // nfsd asks for one of each family, and goes on without INET6.
        // SAFETY: The address is valid for its family.
        let port = unsafe {
            if u32::from((*address).sa_family) != bindings::AF_INET {
                return Err(error(bindings::EAFNOSUPPORT));
            }
            u16::from_be((*address.cast::<bindings::sockaddr_in>()).sin_port)
        };
        // SAFETY: The namespace is the server's.
        let socket = unsafe { Socket::new(net)? };
        socket.bind(u32::from(port))?;
        socket.listen(BACKLOG)?;
        let listener = KBox::new(
            Self {
                xprt: Opaque::uninit(),
                socket: Watched::new(socket)?,
                _family: PhantomData,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The class is registered, for it is being used; the transport is new, and is
        // freed by `free`, which nobody calls before the last reference is gone.
        unsafe {
            let raw = listener.xprt.get();
            bindings::svc_xprt_init(net, F::tables().server(), raw, server);
            // As it was asked for: that is how listeners are looked up.
            bindings::svc_xprt_name_local(raw, address, length as usize);
            for flag in [
                bindings::XPT_CACHE_AUTH,
                bindings::XPT_CONG_CTRL,
                bindings::XPT_LISTENER,
                bindings::XPT_CONN,
            ] {
                bindings::svc_xprt_set_flag(raw, flag);
            }
            let this = KBox::into_raw(listener);
            (*this).socket.watch(this);
            Ok(raw)
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn accept(xprt: *mut bindings::svc_xprt) -> *mut bindings::svc_xprt {
        // SAFETY: See above.
        unsafe {
            let this = Self::from_raw(xprt);
            // Before it is looked: what comes later sets it again.
            bindings::svc_xprt_clear_flag(xprt, bindings::XPT_CONN);
            let Ok(Some(socket)) = this.socket.accept() else {
                return core::ptr::null_mut();
            };
            // There may be more.
            bindings::svc_xprt_set_flag(xprt, bindings::XPT_CONN);
            Connection::<F>::accept(xprt, socket).unwrap_or(core::ptr::null_mut())
        }
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn detach(xprt: *mut bindings::svc_xprt) {
        // SAFETY: See above.
        unsafe { Self::from_raw(xprt) }.socket.unwatch();
    }

    /// # Safety
    ///
    /// See above.
    unsafe extern "C" fn free(xprt: *mut bindings::svc_xprt) {
        // SAFETY: The last reference to what `listen` has made; `detach` was called.
        drop(unsafe { KBox::<Self>::from_raw(xprt.cast()) });
    }
}

/// # Safety
///
/// None.
unsafe extern "C" fn has_wspace(_xprt: *mut bindings::svc_xprt) -> c_int {
    1
}
