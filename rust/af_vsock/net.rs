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

    pub(crate) fn as_raw(self) -> *mut bindings::net {
        self.0.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }
}
