// SPDX-License-Identifier: GPL-2.0

//! Memory that a device may be told the address of.

/// An owner of bytes that keep their place.
///
/// # Safety
///
/// The memory of [`StableBytes::pieces`] stays valid and is not written to until the value is
/// dropped or borrowed mutably, also if the value itself is moved. It is mapped in the kernel's
/// linear mapping, and each piece is physically contiguous.
pub unsafe trait StableBytes {
    /// The bytes, in order.
    fn pieces(&self) -> impl Iterator<Item = &[u8]>;
}
