// SPDX-License-Identifier: GPL-2.0

//! The character device, and the files opened on it.
//!
//! Not `kernel::miscdevice`: that has neither fixed minor numbers nor `poll`, and no owner, so that
//! a module could be removed under an open file.

use crate::{Device, Driver};
use core::{ffi::c_void, marker::PhantomData, pin::Pin};
use kernel::{
    error::to_result,
    ffi::{c_int, c_long, c_uint, c_ulong},
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};
use rvsock_bindings::{bindings, CStatic};

/// The C tables of a driver, to be put into a `static`.
pub struct Table<D> {
    operations: bindings::file_operations,
    device: CStatic<bindings::miscdevice>,
    _driver: PhantomData<D>,
}

// SAFETY: The operations are never written; the device is, by C under its own rules.
unsafe impl<D> Sync for Table<D> {}

impl<D: Driver> Table<D> {
    /// Makes the tables of a device `/dev/name`; `module` is [`ThisModule::as_ptr`] of the module's
    /// `THIS_MODULE`.
    pub const fn new(module: *mut bindings::module, name: &'static CStr, minor: u32) -> Self {
        let mut operations: bindings::file_operations = pin_init::zeroed();
        operations.owner = module;
        operations.open = Some(Files::<D>::open);
        operations.release = Some(Files::<D>::release);
        operations.llseek = Some(bindings::noop_llseek);
        operations.unlocked_ioctl = Some(Files::<D>::ioctl);
        operations.compat_ioctl = bindings::compat_ptr_ioctl;
        operations.read_iter = Some(Files::<D>::read_iter);
        operations.write_iter = Some(Files::<D>::write_iter);
        operations.poll = Some(Files::<D>::poll);
        let mut device: bindings::miscdevice = pin_init::zeroed();
        device.minor = minor as c_int;
        device.name = kernel::str::as_char_ptr_in_const_context(name);
        Self {
            operations,
            device: CStatic::new(device),
            _driver: PhantomData,
        }
    }
}

/// A character device that exists until this is dropped.
///
/// # Invariants
///
/// The device is registered.
pub struct Registration(*mut bindings::miscdevice);

// SAFETY: Unregistering may happen on any thread.
unsafe impl Send for Registration {}
// SAFETY: There is nothing to be done with a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers the device. `EBUSY` if its minor number is taken.
    pub fn new<D: Driver>(table: &'static Table<D>) -> Result<Self> {
        let device = table.device.get();
        // SAFETY: The tables are static; nobody else uses the device before it is registered.
        to_result(unsafe {
            (*device).fops = &table.operations;
            bindings::misc_register(device)
        })?;
        // INVARIANT: It was registered just now.
        Ok(Self(device))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is registered.
        unsafe { bindings::misc_deregister(self.0) }
    }
}

/// Backend features that the guest's monitor may ask for: messages of the IOTLB in version 2.
const BACKEND_FEATURES: u64 = 1 << bindings::VHOST_BACKEND_F_IOTLB_MSG_V2;

/// Commands are numbered by the width of what they point to, too.
const GET_FEATURES: u32 = kernel::ioctl::_IOR::<u64>(bindings::VHOST_VIRTIO, 0x00);
const SET_FEATURES: u32 = kernel::ioctl::_IOW::<u64>(bindings::VHOST_VIRTIO, 0x00);
const SET_BACKEND_FEATURES: u32 = kernel::ioctl::_IOW::<u64>(bindings::VHOST_VIRTIO, 0x25);
const GET_BACKEND_FEATURES: u32 = kernel::ioctl::_IOR::<u64>(bindings::VHOST_VIRTIO, 0x26);

impl<D: Driver> Device<D> {
    fn features() -> u64 {
        // SAFETY: A constant.
        unsafe { bindings::vhost_features() | D::FEATURES }
    }

    fn ioctl(&self, command: u32, argument: UserPtr) -> Result<c_long> {
        let width = core::mem::size_of::<u64>();
        match command {
            GET_FEATURES => UserSlice::new(argument, width)
                .writer()
                .write(&Self::features())?,
            SET_FEATURES => self.set_features(UserSlice::new(argument, width).reader().read()?)?,
            GET_BACKEND_FEATURES => UserSlice::new(argument, width)
                .writer()
                .write(&BACKEND_FEATURES)?,
            SET_BACKEND_FEATURES => {
                self.set_backend_features(UserSlice::new(argument, width).reader().read()?)?
            }
            _ => match D::ioctl(self, command, argument) {
                Err(error) if error == ENOIOCTLCMD => return self.vhost_ioctl(command, argument),
                result => result?,
            },
        }
        Ok(0)
    }

    fn set_features(&self, features: u64) -> Result {
        if features & !Self::features() != 0 {
            return Err(Error::from_errno(-(bindings::EOPNOTSUPP as c_int)));
        }
        self.lock().set_features(features)
    }

    fn set_backend_features(&self, features: u64) -> Result {
        if features & !BACKEND_FEATURES != 0 {
            return Err(Error::from_errno(-(bindings::EOPNOTSUPP as c_int)));
        }
        // SAFETY: The device is initialized; the function takes its lock.
        unsafe { bindings::vhost_set_backend_features(self.as_raw(), features) };
        Ok(())
    }

    /// The commands of the vhost core.
    fn vhost_ioctl(&self, command: u32, argument: UserPtr) -> Result<c_long> {
        let _guard = self.lock();
        let argument = argument.as_const_ptr().cast_mut().cast::<c_void>();
        // SAFETY: The device is initialized and locked; the functions check the argument.
        let result = unsafe { bindings::vhost_dev_ioctl(self.as_raw(), command, argument) };
        if result != ENOIOCTLCMD.to_errno() as c_long {
            self.flush();
            return Ok(result);
        }
        // SAFETY: As above.
        Ok(unsafe { bindings::vhost_vring_ioctl(self.as_raw(), command, argument) })
    }
}

/// The operations behind a table.
///
/// # Safety
///
/// Of all of them: the file is one of ours, whose `private_data` `open` has set to a [`Device<D>`],
/// which `release` frees when nobody uses the file any more.
struct Files<D>(PhantomData<D>);

impl<D: Driver> Files<D> {
    /// # Safety
    ///
    /// See [`Files`].
    unsafe fn device<'a>(file: *mut bindings::file) -> &'a Device<D> {
        // SAFETY: See `Files`.
        unsafe { &*(*file).private_data.cast() }
    }

    /// # Safety
    ///
    /// See [`Files`].
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        kernel::error::from_result(|| {
            let device = Device::<D>::new()?;
            // SAFETY: The file is being opened by us. Unpinned only to be put back in `release`.
            unsafe {
                let device = KVBox::into_raw(Pin::into_inner_unchecked(device));
                (*file).private_data = device.cast();
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Files`].
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: See `Files`; this is the end of the file.
        drop(unsafe { KVBox::<Device<D>>::from_raw((*file).private_data.cast()) });
        0
    }

    /// # Safety
    ///
    /// See [`Files`].
    unsafe extern "C" fn ioctl(
        file: *mut bindings::file,
        command: c_uint,
        argument: c_ulong,
    ) -> c_long {
        // SAFETY: See `Files`.
        let device = unsafe { Self::device(file) };
        match device.ioctl(command, UserPtr::from_addr(argument)) {
            Ok(result) => result,
            Err(error) => error.to_errno() as c_long,
        }
    }

    /// # Safety
    ///
    /// See [`Files`].
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: See `Files`.
        unsafe {
            let file = (*kiocb).ki_filp;
            let nonblocking = ((*file).f_flags & bindings::O_NONBLOCK) as c_int;
            bindings::vhost_chr_read_iter(Self::device(file).as_raw(), to, nonblocking)
        }
    }

    /// # Safety
    ///
    /// See [`Files`].
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: See `Files`.
        unsafe { bindings::vhost_chr_write_iter(Self::device((*kiocb).ki_filp).as_raw(), from) }
    }

    /// # Safety
    ///
    /// See [`Files`].
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: See `Files`.
        unsafe { bindings::vhost_chr_poll(file, Self::device(file).as_raw(), table) }
    }
}
