// SPDX-License-Identifier: GPL-2.0

//! Memory for what cannot be done without.

use crate::bindings;
use core::{mem, ptr::NonNull};
use kernel::prelude::*;

/// Puts a small value into a box, and waits for memory as long as it takes. Sleeps.
///
/// For the rare case that a failure could be told to nobody. The kernel lets only tasks without memory
/// that are being killed for lack of it notice the difference.
pub fn new_nofail<T>(value: T) -> KBox<T> {
    // What `kmalloc()` aligns everything to, and what is small: a page.
    const { assert!(mem::align_of::<T>() <= 8 && mem::size_of::<T>() > 0) };
    const { assert!(mem::size_of::<T>() <= kernel::page::PAGE_SIZE) };
    // SAFETY: The memory is new, never null, and large and aligned enough for a `T`, which is written
    // to it; it came from `kmalloc()`, as that of a `KBox` does.
    unsafe {
        let memory = NonNull::new_unchecked(bindings::kmalloc_nofail(mem::size_of::<T>()));
        let memory = memory.cast::<T>();
        memory.write(value);
        KBox::from_raw(memory.as_ptr())
    }
}
