// SPDX-License-Identifier: GPL-2.0

//! Parameters of modules that can be read and changed while the module is loaded, below
//! `/sys/module/MODULE/parameters`.
//!
//! Those of `module!` are numbers, and cannot.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::bindings;
use kernel::{
    ffi::{c_char, c_int, c_void},
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
};

/// A parameter. Its functions are called one at a time, [`Parameter::set`] perhaps before the
/// module is initialized, and [`Parameter::forget`] last of all, even if it never was.
pub trait Parameter {
    /// Takes a new value over. May sleep.
    fn set(text: &[u8]) -> Result;

    /// The value as text, without an end of line.
    fn show() -> Result<CString>;

    /// Gives up what the value holds.
    fn forget();
}

/// What the kernel finds in the section `__param`.
#[repr(transparent)]
pub struct ParameterEntry(bindings::kernel_param);

// SAFETY: Never written.
unsafe impl Sync for ParameterEntry {}

/// How the kernel gets at a parameter.
pub struct ParameterTable(bindings::kernel_param_ops);

// SAFETY: Never written.
unsafe impl Sync for ParameterTable {}

/// Readable for all, writable for root.
const MODE: u16 = 0o644;

impl ParameterTable {
    /// The table of `P`.
    pub const fn new<P: Parameter>() -> Self {
        Self(bindings::kernel_param_ops {
            flags: 0,
            set: Some(set::<P>),
            get: Some(get::<P>),
            free: Some(free::<P>),
        })
    }
}

impl ParameterEntry {
    /// The entry of a parameter; `module` is [`ThisModule::as_ptr`] of the module's `THIS_MODULE`.
    pub const fn new(
        module: *mut bindings::module,
        name: &'static CStr,
        table: &'static ParameterTable,
    ) -> Self {
        let mut entry: bindings::kernel_param = pin_init::zeroed();
        entry.name = kernel::str::as_char_ptr_in_const_context(name);
        entry.mod_ = module;
        entry.ops = &table.0;
        entry.perm = MODE;
        entry.level = -1;
        Self(entry)
    }
}

/// Makes `$parameter`, which implements [`Parameter`], a parameter of the module.
#[macro_export]
macro_rules! module_parameter {
    ($name:literal, $parameter:ty, $module:expr) => {
        const _: () = {
            static TABLE: $crate::ParameterTable = $crate::ParameterTable::new::<$parameter>();
            #[link_section = "__param"]
            #[used]
            static ENTRY: $crate::ParameterEntry =
                $crate::ParameterEntry::new($module, $name, &TABLE);
        };
    };
}

/// # Safety
///
/// The kernel calls this with a text, or nothing.
unsafe extern "C" fn set<P: Parameter>(
    text: *const c_char,
    _parameter: *const bindings::kernel_param,
) -> c_int {
    if text.is_null() {
        return EINVAL.to_errno();
    }
    // SAFETY: By the requirements of this function.
    let text = unsafe { core::slice::from_raw_parts(text.cast(), bindings::strlen(text)) };
    P::set(text).map_or_else(|error| error.to_errno(), |()| 0)
}

/// # Safety
///
/// The kernel calls this with a page to write to.
unsafe extern "C" fn get<P: Parameter>(
    page: *mut c_char,
    _parameter: *const bindings::kernel_param,
) -> c_int {
    let text = match P::show() {
        Ok(text) => text,
        Err(error) => return error.to_errno(),
    };
    // SAFETY: By the requirements of this function there is room for that, an end of line and a
    // NUL.
    let page = unsafe { core::slice::from_raw_parts_mut(page.cast::<u8>(), PAGE_SIZE) };
    let text = text
        .to_bytes_with_nul()
        .iter()
        .take_while(|byte| **byte != 0);
    let line = Iterator::chain(text.take(PAGE_SIZE - 2), b"\n");
    let mut length = 0;
    for (to, from) in page.iter_mut().zip(line) {
        *to = *from;
        length += 1;
    }
    length
}

/// # Safety
///
/// None.
unsafe extern "C" fn free<P: Parameter>(_value: *mut c_void) {
    P::forget();
}
