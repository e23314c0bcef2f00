// SPDX-License-Identifier: GPL-2.0

//! Raw C for the crates that wrap it, and the few base types all of them need.
//!
//! [`bindings`] is what bindgen makes of the AF_VSOCK, socket, virtio and vhost headers, on top of
//! the kernel's own bindings: a type that the `kernel` crate knows is the same type here.
//!
//! Only the subsystem crates (`af_vsock`, `virtio`, …) may use this crate's [`bindings`].

mod alarm;
mod bh_lock;
mod cstatic;
mod nofail;
mod parameter;
mod rcu_slot;
mod run;
mod stable_bytes;
mod work_queue;

pub use alarm::{Alarm, Alarmed};
pub use bh_lock::{BhBackend, BhSpinLock};
pub use cstatic::CStatic;
pub use nofail::new_nofail;
pub use parameter::{Parameter, ParameterEntry, ParameterTable};
pub use rcu_slot::RcuSlot;
pub use run::Run;
pub use stable_bytes::StableBytes;
pub use work_queue::WorkQueue;

/// Raw bindings: ours, and under them the kernel's.
#[allow(
    clippy::all,
    clippy::as_ptr_cast_mut,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ptr_cast_constness,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    clashing_extern_declarations,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
pub mod bindings {
    mod raw {
        use kernel::ffi;
        use pin_init::{MaybeZeroable, Zeroable};

        // Types that are not generated here resolve to the kernel's, through this glob; what is
        // generated here takes precedence over the glob.
        pub use super::helpers::*;
        pub use kernel::bindings::*;
        type __kernel_size_t = usize;
        type __kernel_ssize_t = isize;
        type __kernel_ptrdiff_t = isize;

        // SAFETY: A newtype around `Storage`.
        unsafe impl<Storage> Zeroable for __BindgenBitfieldUnit<Storage> where Storage: Zeroable {}
        // SAFETY: Zero-sized.
        unsafe impl<T> Zeroable for __BindgenUnionField<T> {}
        // SAFETY: Zero-sized.
        unsafe impl<T> Zeroable for __IncompleteArrayField<T> {}

        include!(concat!(env!("RVSOCK_GENERATED"), "/bindings_generated.rs"));
    }
    mod helpers {
        use super::raw::*;
        use kernel::ffi;
        include!(concat!(env!("RVSOCK_GENERATED"), "/helpers_generated.rs"));
    }
    pub use raw::*;
}
