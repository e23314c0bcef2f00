// SPDX-License-Identifier: GPL-2.0
//! Errors by the names that manual pages use.

use std::ffi::{c_char, c_int, CStr};
use std::{fmt, io};

extern "C" {
    /// Of glibc since 2.32; the libc crate does not have it.
    fn strerrorname_np(errno: c_int) -> *const c_char;
}

/// Why a system call failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub c_int);

impl Errno {
    pub fn last() -> Self {
        io::Error::last_os_error().into()
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: The function takes any number, and returns a constant string or null.
        let name = unsafe { strerrorname_np(self.0) };
        if name.is_null() {
            return write!(f, "errno {}", self.0);
        }
        // SAFETY: See above.
        f.write_str(&unsafe { CStr::from_ptr(name) }.to_string_lossy())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

/// The result of a system call, which is negative if it failed.
pub fn check<T: Into<i64> + Copy>(result: T) -> Result<T, Errno> {
    if result.into() < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}
