// SPDX-License-Identifier: GPL-2.0

//! C objects in Rust statics.

use core::cell::UnsafeCell;

/// A C object in a `static`, which C code writes to under its own rules.
#[repr(transparent)]
pub struct CStatic<T>(UnsafeCell<T>);

// SAFETY: The object is only handed out as a raw pointer; whoever dereferences that vouches for it.
unsafe impl<T> Sync for CStatic<T> {}

impl<T> CStatic<T> {
    /// Wraps `object`.
    pub const fn new(object: T) -> Self {
        Self(UnsafeCell::new(object))
    }

    /// Pointer for C.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }
}
