// SPDX-License-Identifier: GPL-2.0

//! Network namespaces.

use core::ptr::NonNull;
use rvsock_bindings::bindings;

/// The network namespace a packet comes from.
///
/// # Invariants
///
/// If there is a pointer, the namespace is valid for `'a`.
#[derive(Clone, Copy)]
pub struct Net<'a>(
    Option<NonNull<bindings::net>>,
    core::marker::PhantomData<&'a ()>,
);

// SAFETY: A namespace may be used from any thread, and this does nothing else with it.
unsafe impl Send for Net<'_> {}
// SAFETY: As above.
unsafe impl Sync for Net<'_> {}

impl<'a> Net<'a> {
    /// Any namespace in global mode: what has no namespace of its own, such as the device of a
    /// guest, is reached from all of these (`NULL` in C).
    pub const GLOBAL: Net<'static> = Net(None, core::marker::PhantomData);

    /// # Safety
    ///
    /// The namespace has to be valid for `'a`.
    pub(crate) unsafe fn from_raw(net: *mut bindings::net) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(NonNull::new(net), core::marker::PhantomData)
    }

    /// Whether sockets of both can talk to each other (`vsock_net_check_mode()`).
    pub fn reaches(self, other: Net<'_>) -> bool {
        // SAFETY: Both namespaces are valid, or none.
        unsafe { bindings::vsock_net_check_mode(self.as_raw(), other.as_raw()) }
    }

    pub(crate) fn as_raw(self) -> *mut bindings::net {
        self.0.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }
}

/// A counted reference to a network namespace.
///
/// # Invariants
///
/// The pointer is valid, and this value holds a reference to it.
pub struct OwnedNet(NonNull<bindings::net>);

// SAFETY: Namespaces may be used from any thread.
unsafe impl Send for OwnedNet {}
// SAFETY: As above.
unsafe impl Sync for OwnedNet {}

impl OwnedNet {
    /// The namespace of the current task.
    pub fn current() -> Self {
        // INVARIANT: The function takes a reference for us.
        // SAFETY: A task that runs has a namespace.
        Self(unsafe { NonNull::new_unchecked(bindings::get_current_net()) })
    }

    /// The namespace.
    pub fn borrow(&self) -> Net<'_> {
        // SAFETY: By the type invariants it is valid as long as `self`.
        unsafe { Net::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedNet {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the reference is ours.
        unsafe { bindings::put_net(self.0.as_ptr()) }
    }
}
