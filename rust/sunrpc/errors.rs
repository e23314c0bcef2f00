// SPDX-License-Identifier: GPL-2.0

//! Errors that the kernel crate has no names for.

use kernel::{error::Error, ffi::c_int};
use rvsock_bindings::bindings;

/// An error by its number.
pub(crate) fn error(number: u32) -> Error {
    Error::from_errno((number as c_int).wrapping_neg())
}

/// The connection is gone (`ENOTCONN`).
pub(crate) fn not_connected() -> Error {
    error(bindings::ENOTCONN)
}

/// What the peer sent makes no sense (`EBADMSG`).
pub(crate) fn bad_message() -> Error {
    error(bindings::EBADMSG)
}
