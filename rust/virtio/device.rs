// SPDX-License-Identifier: GPL-2.0

//! Devices: features, configuration, queues, reset.

use crate::{virtqueue::callback, Driver, Virtqueue};
use core::ptr::NonNull;
use kernel::{error::to_result, prelude::*};
use rvsock_bindings::bindings;

/// A virtio device that is bound to a driver.
///
/// # Invariants
///
/// The device is valid as long as this is used, by the contract of [`Driver`].
#[derive(Clone, Copy)]
pub struct Device(NonNull<bindings::virtio_device>);

// SAFETY: Devices may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: As above.
unsafe impl Sync for Device {}

/// Proof that a device was reset: it works on no buffer any more, and runs no callback.
pub struct Reset(());

impl Device {
    /// # Safety
    ///
    /// `device` is bound to a driver that keeps the contract of [`Driver`].
    pub(crate) unsafe fn from_raw(device: *mut bindings::virtio_device) -> Result<Self> {
        // INVARIANT: By the requirements of this function.
        NonNull::new(device).map(Self).ok_or(ENODEV)
    }

    fn as_raw(self) -> *mut bindings::virtio_device {
        self.0.as_ptr()
    }

    /// Whether feature number `bit` was negotiated.
    pub fn has_feature(self, bit: u32) -> bool {
        // SAFETY: By the type invariants the device is valid.
        unsafe { bindings::virtio_has_feature(self.as_raw(), bit) }
    }

    /// Reads a little-endian number at `offset` of the configuration space. May sleep.
    pub fn read_config_u64(self, offset: u32) -> u64 {
        let mut bytes = [0u8; 8];
        // SAFETY: By the type invariants the device is valid, and all have this operation.
        unsafe {
            if let Some(get) = (*(*self.as_raw()).config).get {
                get(
                    self.as_raw(),
                    offset,
                    bytes.as_mut_ptr().cast(),
                    bytes.len() as u32,
                );
            }
        }
        u64::from_le_bytes(bytes)
    }

    /// Finds the queues that `D` names. Their callbacks may run as soon as the device is
    /// [ready](Self::ready).
    pub fn find_queues<D: Driver, const N: usize>(self) -> Result<[Virtqueue; N]> {
        let mut raw = [core::ptr::null_mut(); N];
        let mut info: [bindings::virtqueue_info; N] = core::array::from_fn(|_| pin_init::zeroed());
        for (info, name) in info.iter_mut().zip(D::QUEUES) {
            info.name = name.as_char_ptr();
            info.callback = Some(callback::<D>);
        }
        // SAFETY: The device is valid; the arrays have `N` elements and are copied from.
        to_result(unsafe {
            let find = (*(*self.as_raw()).config).find_vqs.ok_or(ENODEV)?;
            let none = core::ptr::null_mut();
            find(
                self.as_raw(),
                N as u32,
                raw.as_mut_ptr(),
                info.as_mut_ptr(),
                none,
            )
        })?;
        // SAFETY: The queues were found just now, and exist until `delete_queues`.
        Ok(raw.map(|raw| unsafe { Virtqueue::from_raw(raw) }))
    }

    /// The driver is ready: the device may use the queues.
    pub fn ready(self) {
        // SAFETY: By the type invariants the device is valid.
        unsafe { bindings::virtio_device_ready(self.as_raw()) }
    }

    /// Resets the device: it forgets all buffers. Sleeps until callbacks that run have returned.
    pub fn reset(self) -> Reset {
        // SAFETY: By the type invariants the device is valid.
        unsafe { bindings::virtio_reset_device(self.as_raw()) };
        Reset(())
    }

    /// Deletes the queues, which were given up.
    pub fn delete_queues(self, _reset: Reset) {
        // SAFETY: The device was reset; by the contract of `Driver` nobody uses the queues.
        unsafe {
            if let Some(delete) = (*(*self.as_raw()).config).del_vqs {
                delete(self.as_raw());
            }
        }
    }
}
