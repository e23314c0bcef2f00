// SPDX-License-Identifier: GPL-2.0

//! Spinlocks that are taken in soft interrupts, too.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use crate::bindings;
use kernel::{
    ffi::c_char,
    sync::lock::{spinlock::SpinLockBackend, Backend, Lock},
};

/// A spinlock with bottom halves off while it is held (`spin_lock_bh()`): what runs in them may
/// take it. Not to be used with interrupts off.
pub type BhSpinLock<T> = Lock<T, BhBackend>;

/// Makes a [`BhSpinLock`].
#[macro_export]
macro_rules! new_bh_spinlock {
    ($inner:expr, $name:literal) => {
        $crate::BhSpinLock::new($inner, $name, kernel::static_lock_class!())
    };
}

/// How a [`BhSpinLock`] is taken.
pub struct BhBackend;

// SAFETY: `spinlock_t` ensures mutual exclusion. `relock` takes it as `lock` does.
unsafe impl Backend for BhBackend {
    type State = bindings::spinlock_t;
    type GuardState = ();

    #[inline]
    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: The same requirements.
        unsafe { SpinLockBackend::init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) {
        // SAFETY: By the requirements of this function the lock was initialized.
        unsafe { bindings::spin_lock_bh(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<()> {
        // SAFETY: By the requirements of this function the lock was initialized.
        unsafe { bindings::spin_trylock_bh(ptr) }.then_some(())
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &()) {
        // SAFETY: By the requirements of this function the caller has the lock.
        unsafe { bindings::spin_unlock_bh(ptr) }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The same requirements.
        unsafe { SpinLockBackend::assert_is_held(ptr) }
    }
}
