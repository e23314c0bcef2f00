// SPDX-License-Identifier: GPL-2.0

//! Pieces of memory as sources and destinations.

use core::{marker::PhantomData, mem::MaybeUninit};
use rvsock_bindings::bindings;

/// A list of pieces of pages.
///
/// # Invariants
///
/// All pieces are valid for `'a`, and hold `length` bytes together, at least.
#[derive(Clone, Copy)]
pub struct Pieces<'a> {
    first: *const bindings::bio_vec,
    count: usize,
    length: usize,
    _memory: PhantomData<&'a [bindings::bio_vec]>,
}

impl<'a> Pieces<'a> {
    /// The first `length` bytes of `pieces`.
    ///
    /// # Safety
    ///
    /// Each piece has to be memory that may be read, and written if something is received into it,
    /// for `'a`; together they have to hold `length` bytes.
    pub unsafe fn new(pieces: &'a [bindings::bio_vec], length: usize) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            first: pieces.as_ptr(),
            count: pieces.len(),
            length,
            _memory: PhantomData,
        }
    }

    /// Bytes in all pieces.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A message whose iterator goes over all but the first `skipped` bytes.
    pub(crate) fn message(&self, direction: u32, skipped: usize) -> bindings::msghdr {
        let mut message = empty_message();
        let skipped = skipped.min(self.length);
        // SAFETY: By the type invariants the pieces are valid and have that many bytes.
        unsafe {
            let iterator = &raw mut message.msg_iter;
            bindings::iov_iter_bvec(iterator, direction, self.first, self.count, self.length);
            bindings::iov_iter_advance(iterator, skipped);
        }
        message
    }
}

/// A message of nothing to nobody.
pub(crate) fn empty_message() -> bindings::msghdr {
    // SAFETY: Null pointers, no flags and an empty iterator are valid in C. (`Zeroable` is not
    // implemented by the kernel's bindings of what is in it.)
    unsafe { MaybeUninit::zeroed().assume_init() }
}
