// SPDX-License-Identifier: GPL-2.0

//! Drivers, and their registration.

use crate::Device;
use core::marker::PhantomData;
use kernel::{
    error::{from_result, to_result},
    ffi::c_int,
    prelude::*,
};
use rvsock_bindings::{bindings, CStatic};

/// A driver for one kind of virtio device.
///
/// # Safety
///
/// [`Driver::remove`] and [`Driver::freeze`] have to reset the device and give up all its queues,
/// and nothing may use the [`Device`] after `remove`, nor between `freeze` and `restore`.
pub unsafe trait Driver: 'static {
    /// Names of the queues, in the device's order.
    const QUEUES: &'static [&'static CStr];

    /// A device appeared.
    fn probe(device: Device) -> Result;

    /// The device goes away, or the driver does.
    fn remove(device: Device);

    /// The machine is about to sleep.
    fn freeze(device: Device) -> Result;

    /// The machine woke up, or failed to sleep.
    fn restore(device: Device) -> Result;

    /// The device used buffers of queue number `queue`. Runs in interrupt context, until the
    /// queues are given up.
    fn notified(queue: usize);
}

/// The C table of a driver, to be put into a `static`.
pub struct DriverTable<D>(CStatic<bindings::virtio_driver>, PhantomData<D>);

// SAFETY: The table is written by C alone, under its own rules.
unsafe impl<D> Sync for DriverTable<D> {}

/// An entry of a table of devices, which ends with an empty one.
pub use bindings::virtio_device_id as DeviceId;

type Ids = [DeviceId; 2];

/// The ids for devices of kind `id`, from any vendor.
pub const fn ids(id: u32) -> CStatic<Ids> {
    CStatic::new([
        bindings::virtio_device_id {
            device: id,
            vendor: u32::MAX,
        },
        bindings::virtio_device_id {
            device: 0,
            vendor: 0,
        },
    ])
}

impl<D: Driver> DriverTable<D> {
    /// Makes the table of a driver that goes by `name` in sysfs and knows `features`.
    pub const fn new(
        name: &'static CStr,
        ids: &'static CStatic<Ids>,
        features: &'static [u32],
    ) -> Self {
        let mut table: bindings::virtio_driver = pin_init::zeroed();
        table.driver.name = kernel::str::as_char_ptr_in_const_context(name);
        table.id_table = ids.get().cast();
        table.feature_table = features.as_ptr();
        table.feature_table_size = features.len() as u32;
        table.probe = Some(Callbacks::<D>::probe);
        table.remove = Some(Callbacks::<D>::remove);
        table.freeze = Some(Callbacks::<D>::freeze);
        table.restore = Some(Callbacks::<D>::restore);
        Self(CStatic::new(table), PhantomData)
    }
}

/// A driver that is registered until this is dropped.
///
/// # Invariants
///
/// The table is registered.
pub struct Registration(*mut bindings::virtio_driver);

// SAFETY: Unregistering may happen on any thread.
unsafe impl Send for Registration {}
// SAFETY: There is nothing to be done with a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers the driver of `table`, which belongs to `module`.
    pub fn new<D: Driver>(
        table: &'static DriverTable<D>,
        module: &'static ThisModule,
    ) -> Result<Self> {
        let raw = table.0.get();
        // SAFETY: The table is static and complete.
        to_result(unsafe { bindings::__register_virtio_driver(raw, module.as_ptr()) })?;
        // INVARIANT: It was registered just now.
        Ok(Self(raw))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is registered.
        unsafe { bindings::unregister_virtio_driver(self.0) }
    }
}

/// The callbacks behind a table.
///
/// # Safety
///
/// Of all of them: virtio passes a device that it bound to this driver.
struct Callbacks<D>(PhantomData<D>);

#[expect(clippy::missing_safety_doc, reason = "see `Callbacks`")]
impl<D: Driver> Callbacks<D> {
    unsafe extern "C" fn probe(device: *mut bindings::virtio_device) -> c_int {
        // SAFETY: See `Callbacks`.
        from_result(|| D::probe(unsafe { Device::from_raw(device) }?).map(|()| 0))
    }

    unsafe extern "C" fn remove(device: *mut bindings::virtio_device) {
        // SAFETY: See `Callbacks`.
        if let Ok(device) = unsafe { Device::from_raw(device) } {
            D::remove(device)
        }
    }

    unsafe extern "C" fn freeze(device: *mut bindings::virtio_device) -> c_int {
        // SAFETY: See `Callbacks`.
        from_result(|| D::freeze(unsafe { Device::from_raw(device) }?).map(|()| 0))
    }

    unsafe extern "C" fn restore(device: *mut bindings::virtio_device) -> c_int {
        // SAFETY: See `Callbacks`.
        from_result(|| D::restore(unsafe { Device::from_raw(device) }?).map(|()| 0))
    }
}
