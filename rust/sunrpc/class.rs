// SPDX-License-Identifier: GPL-2.0

//! The classes of transports, and their registration.

use crate::{back_channel, client::Client, connection::Connection, listener::Listener, Family};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::{c_char, c_int},
    prelude::*,
};
use rvsock_bindings::{bindings, CStatic};

/// Names at the end of an `xprt_class`; the last is empty.
const NAMES: usize = 3;

/// A `struct xprt_class` with room for its names.
#[repr(C)]
struct Class {
    class: bindings::xprt_class,
    names: [*const c_char; NAMES],
}

impl Class {
    const fn new() -> Self {
        Self {
            class: pin_init::zeroed(),
            names: [kernel::str::as_char_ptr_in_const_context(c""); NAMES],
        }
    }
}

/// The C tables of a family, to be put into a `static`.
pub struct Tables<F> {
    module: *mut bindings::module,
    server: CStatic<bindings::svc_xprt_class>,
    listener: bindings::svc_xprt_ops,
    connection: bindings::svc_xprt_ops,
    client: CStatic<Class>,
    back_channel: CStatic<Class>,
    client_operations: bindings::rpc_xprt_ops,
    back_channel_operations: bindings::rpc_xprt_ops,
    _family: PhantomData<F>,
}

// SAFETY: Operations are never written; classes are, by C and by registrations, of which there is
// one at a time.
unsafe impl<F> Sync for Tables<F> {}

impl<F: Family> Tables<F> {
    /// Makes the tables; `module` is [`ThisModule::as_ptr`] of the module's `THIS_MODULE`.
    pub const fn new(module: *mut bindings::module) -> Self {
        Self {
            module,
            server: CStatic::new(pin_init::zeroed()),
            listener: Listener::<F>::operations(),
            connection: Connection::<F>::operations(),
            client: CStatic::new(Class::new()),
            back_channel: CStatic::new(Class::new()),
            client_operations: Client::<F>::operations(),
            back_channel_operations: back_channel::operations::<F>(),
            _family: PhantomData,
        }
    }

    pub(crate) fn server(&self) -> *mut bindings::svc_xprt_class {
        self.server.get()
    }

    pub(crate) fn connection_operations(&'static self) -> *const bindings::svc_xprt_ops {
        &self.connection
    }

    pub(crate) fn client_operations(&'static self) -> *const bindings::rpc_xprt_ops {
        &self.client_operations
    }

    pub(crate) fn back_channel_operations(&'static self) -> *const bindings::rpc_xprt_ops {
        &self.back_channel_operations
    }

    pub(crate) fn client(&self) -> *const bindings::xprt_class {
        self.client.get().cast()
    }

    pub(crate) fn back_channel(&self) -> *const bindings::xprt_class {
        self.back_channel.get().cast()
    }

    /// A reference to the module, for a transport of a client; servers' are counted by the core.
    pub(crate) fn hold_module(&self) -> Result {
        // SAFETY: The module is ours.
        if unsafe { bindings::try_module_get(self.module) } {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// Gives a reference up that [`Tables::hold_module`] took.
    pub(crate) fn release_module(&self) {
        // SAFETY: The module is ours.
        unsafe { bindings::module_put(self.module) }
    }
}

type SetUp = unsafe extern "C" fn(*mut bindings::xprt_create) -> *mut bindings::rpc_xprt;

/// Registers a class of clients' transports.
///
/// # Safety
///
/// `class` has to be static, and not registered.
unsafe fn register(
    class: *mut Class,
    module: *mut bindings::module,
    ident: c_int,
    label: &'static CStr,
    names: [&'static CStr; 2],
    set_up: SetUp,
) -> Result {
    // SAFETY: The class is ours by the requirements of this function. The names are followed by
    // an empty one.
    to_result(unsafe {
        let head = &raw mut (*class).class;
        (*head).list.next = &raw mut (*head).list;
        (*head).list.prev = &raw mut (*head).list;
        (*head).owner = module;
        (*head).ident = ident;
        (*head).setup = Some(set_up);
        for (to, from) in (*head).name.iter_mut().zip(label.to_bytes_with_nul()) {
            *to = *from as c_char;
        }
        for (to, from) in (*class).names.iter_mut().zip(names) {
            *to = from.as_char_ptr();
        }
        bindings::xprt_register_transport(head)
    })
}

/// The server class, and that of its back channels; registered until this is dropped.
pub struct ServerRegistration<F: Family>(PhantomData<F>);

impl<F: Family> ServerRegistration<F> {
    /// Registers both. `EEXIST` if others have their names.
    pub fn new() -> Result<Self> {
        let tables = F::tables();
        let class = tables.server.get();
        // SAFETY: The tables are static; nothing else of the module registers them.
        unsafe {
            register(
                tables.back_channel.get(),
                tables.module,
                F::SERVER_IDENT | bindings::XPRT_TRANSPORT_BC as c_int,
                c"vsock back channel",
                [c"", c""],
                back_channel::set_up::<F>,
            )?;
            (*class).xcl_name = F::SERVER_NAME.as_char_ptr();
            (*class).xcl_owner = tables.module;
            (*class).xcl_ops = &tables.listener;
            (*class).xcl_list.next = &raw mut (*class).xcl_list;
            (*class).xcl_list.prev = &raw mut (*class).xcl_list;
            (*class).xcl_max_payload = bindings::RPCSVC_MAXPAYLOAD_TCP;
            (*class).xcl_ident = F::SERVER_IDENT;
            // If this fails, dropping takes the other back.
            let registration = Self(PhantomData);
            to_result(bindings::svc_reg_xprt_class(class))?;
            Ok(registration)
        }
    }
}

impl<F: Family> Drop for ServerRegistration<F> {
    fn drop(&mut self) {
        let tables = F::tables();
        // SAFETY: They were registered, or are alone on their lists; no transport of them is left,
        // for each holds the module.
        unsafe {
            bindings::svc_unreg_xprt_class(tables.server.get());
            bindings::xprt_unregister_transport(tables.back_channel.get().cast());
        }
    }
}

/// The client class; registered until this is dropped.
pub struct ClientRegistration<F: Family>(PhantomData<F>);

impl<F: Family> ClientRegistration<F> {
    /// Registers the class. `EEXIST` if another has its number.
    pub fn new() -> Result<Self> {
        let tables = F::tables();
        // SAFETY: The tables are static; nothing else of the module registers them.
        unsafe {
            register(
                tables.client.get(),
                tables.module,
                F::CLIENT_IDENT,
                F::CLIENT_NAME,
                F::CLIENT_NETIDS,
                Client::<F>::set_up,
            )?;
        }
        Ok(Self(PhantomData))
    }
}

impl<F: Family> Drop for ClientRegistration<F> {
    fn drop(&mut self) {
        // SAFETY: It was registered; no transport of it is left, for each holds the module.
        unsafe { bindings::xprt_unregister_transport(F::tables().client.get().cast()) };
    }
}

const _: () =
    assert!(core::mem::offset_of!(Class, names) == core::mem::size_of::<bindings::xprt_class>());
