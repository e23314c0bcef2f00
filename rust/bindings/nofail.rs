// SPDX-License-Identifier: GPL-2.0

//! Memory for what cannot be done without.

use crate::bindings;
use core::{mem, ptr::NonNull};
use kernel::prelude::*;

/// Puts a small value into a box, and waits for memory as long as it takes. Sleeps.
///
/// For what nobody could be told of if it failed. For a request of this size the kernel waits in any
/// case; without `__GFP_NOFAIL` it gives up for a task that is being killed for lack of memory, and for
/// one whose failure is made on purpose.
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
