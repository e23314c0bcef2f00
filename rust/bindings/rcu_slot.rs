// SPDX-License-Identifier: GPL-2.0

//! A place for an object that many read and few replace.

use core::{marker::PhantomData, ptr};
use kernel::{
    bindings,
    sync::{
        atomic::{ordering, Atomic},
        rcu, Arc,
    },
};

/// Holds an object or nothing; readers find it under RCU, without writing to shared memory.
///
/// A module's device or queue lives in a `static` of this type: the operations of a transport have
/// no argument of their own.
///
/// # Invariants
///
/// The address is 0, or came from [`Arc::into_raw`], and the slot owns that reference. A reference
/// taken out is given up only after a grace period.
pub struct RcuSlot<T>(Atomic<usize>, PhantomData<Arc<T>>);

// SAFETY: The slot owns an `Arc<T>` and hands out `&T` to any thread.
unsafe impl<T: Send + Sync> Sync for RcuSlot<T> {}

impl<T: Send + Sync> RcuSlot<T> {
    /// An empty slot.
    pub const fn new() -> Self {
        // INVARIANT: The address is 0.
        Self(Atomic::new(0), PhantomData)
    }

    /// Calls `f` with the object, if there is one. `f` must not sleep.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        let _guard = rcu::read_lock();
        let object: *const T = ptr::with_exposed_provenance(self.0.load(ordering::Acquire));
        // SAFETY: By the type invariants a non-null pointer is valid until a grace period has
        // passed, and the guard above keeps one from passing.
        unsafe { object.as_ref() }.map(f)
    }

    /// A reference of one's own to the object, if there is one.
    pub fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        let object: *const T = ptr::with_exposed_provenance(self.0.load(ordering::Acquire));
        if object.is_null() {
            return None;
        }
        // SAFETY: By the type invariants the pointer came from `into_raw`, and the slot's own
        // reference outlives the guard above.
        let borrowed = unsafe { kernel::sync::ArcBorrow::from_raw(object) };
        Some(borrowed.into())
    }

    /// Puts `object` in if the slot is empty; gives it back otherwise.
    pub fn fill(&self, object: Arc<T>) -> Result<(), Arc<T>> {
        let raw = Arc::into_raw(object);
        // INVARIANT: The reference of `raw` now belongs to the slot, or is taken back below.
        match self.0.cmpxchg(0, raw.expose_provenance(), ordering::Full) {
            Ok(_) => Ok(()),
            // SAFETY: The pointer came from `into_raw`, and the slot did not take it.
            Err(_) => Err(unsafe { Arc::from_raw(raw) }),
        }
    }

    /// Puts `object` in the place of what is there, and gives that up; returns when no
    /// [`RcuSlot::with`] can see it any more. May sleep.
    pub fn replace(&self, object: Arc<T>) {
        let new = Arc::into_raw(object).expose_provenance();
        // INVARIANT: The reference of `object` now belongs to the slot.
        self.give_up(self.0.xchg(new, ordering::Full));
    }

    /// Empties the slot; returns when no [`RcuSlot::with`] can see the object any more. May sleep.
    pub fn take(&self) -> Option<Arc<T>> {
        self.give_up(self.0.xchg(0, ordering::Full))
    }

    /// Takes over the reference behind an address that was taken out of the slot.
    fn give_up(&self, raw: usize) -> Option<Arc<T>> {
        if raw == 0 {
            return None;
        }
        // SAFETY: Always safe to call where sleeping is allowed.
        unsafe { bindings::synchronize_rcu() };
        // SAFETY: By the type invariants the slot owned this reference.
        Some(unsafe { Arc::from_raw(ptr::with_exposed_provenance(raw)) })
    }
}

impl<T> Drop for RcuSlot<T> {
    fn drop(&mut self) {
        let raw = *self.0.get_mut();
        if raw != 0 {
            // SAFETY: By the type invariants the slot owns this reference; nobody borrows the slot.
            drop(unsafe { Arc::from_raw(ptr::with_exposed_provenance::<T>(raw)) });
        }
    }
}

impl<T: Send + Sync> Default for RcuSlot<T> {
    fn default() -> Self {
        Self::new()
    }
}
