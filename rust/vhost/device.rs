// SPDX-License-Identifier: GPL-2.0

//! Devices: life cycle, features, start and stop.

use crate::{bell::Target, Bell, Driver, Session};
use core::{cell::UnsafeCell, marker::PhantomData, pin::Pin};
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        Arc,
    },
    types::Opaque,
};
use rvsock_bindings::bindings;

/// Queues of a device.
const QUEUES: usize = 2;
/// The queue whose worker a bell wakes; all queues have the same.
const BELL_QUEUE: usize = 0;

/// Where a queue is that was never stopped; positions have 16 bits.
const NOWHERE: u32 = u32::MAX;

/// Pieces that the memory of a buffer may consist of (`UIO_MAXIOV`).
pub(crate) const PIECES_MAX: u32 = bindings::UIO_MAXIOV;

/// A vhost device: what an open file stands for.
///
/// # Invariants
///
/// The C objects are initialized and refer to each other; they are pinned.
#[pin_data(PinnedDrop)]
pub struct Device<D: Driver> {
    #[pin]
    device: Opaque<bindings::vhost_dev>,
    #[pin]
    queues: [Opaque<bindings::vhost_virtqueue>; QUEUES],
    /// The form in which the vhost core wants to know its queues.
    pointers: UnsafeCell<[*mut bindings::vhost_virtqueue; QUEUES]>,
    /// What a ring of the bell makes the worker do.
    #[pin]
    work: Opaque<bindings::vhost_work>,
    target: UnsafeCell<Target>,
    /// Where each queue was when it was stopped last: the number of the next buffer.
    stopped_at: [Atomic<u32>; QUEUES],
    bell: Arc<Bell>,
    driver: D,
}

// SAFETY: What is not behind a lock of the vhost core belongs to `D`, which is `Send` and `Sync`,
// or is written before anybody else can see it.
unsafe impl<D: Driver> Send for Device<D> {}
// SAFETY: As above.
unsafe impl<D: Driver> Sync for Device<D> {}

impl<D: Driver> Device<D> {
    /// A new device, for a file that is being opened.
    pub(crate) fn new() -> Result<Pin<KVBox<Self>>> {
        let bell = Bell::new()?;
        let driver = D::open(bell.clone())?;
        let none = core::ptr::null_mut();
        let device = KVBox::pin_init(
            try_pin_init!(Self {
                device <- Opaque::zeroed(),
                queues <- pin_init::init_zeroed(),
                pointers: UnsafeCell::new([none; QUEUES]),
                work <- Opaque::zeroed(),
                target: UnsafeCell::new(Target { queue: none, work: core::ptr::null_mut() }),
                stopped_at: core::array::from_fn(|_| Atomic::new(NOWHERE)),
                bell,
                driver,
            }? Error),
            GFP_KERNEL,
        )?;
        device.as_ref().init();
        Ok(device)
    }

    /// Initializes the C objects, now that they have their place.
    fn init(self: Pin<&Self>) {
        let queue = |i: usize| {
            self.queues
                .get(i)
                .map_or(core::ptr::null_mut(), Opaque::get)
        };
        // SAFETY: Nobody else knows the device yet. The objects stay where they are, because the
        // device is pinned, and are zeroed memory that these functions initialize.
        // INVARIANT: They refer to each other from here on.
        unsafe {
            for i in 0..QUEUES {
                (*queue(i)).handle_kick = Some(handle_kick::<D>);
            }
            *self.pointers.get() = core::array::from_fn(queue);
            bindings::vhost_dev_init(
                self.device.get(),
                self.pointers.get().cast(),
                QUEUES as i32,
                PIECES_MAX as i32,
                D::PACKET_WEIGHT,
                D::BYTE_WEIGHT,
                true,
                None,
            );
            bindings::vhost_work_init(self.work.get(), Some(handle_bell::<D>));
            *self.target.get() = Target {
                queue: queue(BELL_QUEUE),
                work: self.work.get(),
            };
            self.bell.connect(self.target.get());
        }
    }

    /// The driver's part.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::vhost_dev {
        self.device.get()
    }

    /// A queue of the device.
    pub fn queue(&self, number: usize) -> Option<Queue<'_>> {
        let queue = self.queues.get(number)?;
        Some(Queue {
            device: self.as_raw(),
            queue: queue.get(),
            _device: PhantomData,
        })
    }

    fn all_queues(&self) -> impl Iterator<Item = Queue<'_>> {
        (0..QUEUES).filter_map(|number| self.queue(number))
    }

    /// Takes the lock of the device, under which it is configured.
    pub(crate) fn lock(&self) -> DeviceGuard<'_, D> {
        // SAFETY: By the type invariants the device is initialized.
        unsafe { bindings::vhost_lock_device(self.as_raw()) };
        DeviceGuard(self)
    }

    /// Starts the queues, whose memory was set up (`VHOST_VSOCK_SET_RUNNING 1`).
    ///
    /// `EPERM` or `EINVAL` for anybody but the owner, `EFAULT` if the rings cannot be accessed.
    pub fn start(&self) -> Result {
        let guard = self.lock();
        guard.check_owner()?;
        if !guard.goes_on() {
            self.driver.rebooted();
        }
        if let Err(error) = self.all_queues().try_for_each(|queue| queue.start()) {
            guard.stop_queues();
            self.driver.stopped();
            return Err(error);
        }
        self.driver.started();
        // A guest may have rung while nobody listened, or something may wait to be sent.
        self.all_queues().for_each(|queue| queue.poll());
        Ok(())
    }

    /// Stops the queues (`VHOST_VSOCK_SET_RUNNING 0`). Errors as [`Device::start`].
    pub fn stop(&self) -> Result {
        let guard = self.lock();
        guard.check_owner()?;
        guard.stop_queues();
        self.driver.stopped();
        Ok(())
    }

    /// Waits until the worker has done what it was told before this was called.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariants the device is initialized.
        unsafe { bindings::vhost_dev_flush(self.as_raw()) }
    }
}

#[pinned_drop]
impl<D: Driver> PinnedDrop for Device<D> {
    fn drop(self: Pin<&mut Self>) {
        self.driver.release();
        self.bell.silence();
        // The owner may be gone, or not be who closes the file.
        {
            let guard = self.lock();
            guard.stop_queues();
            self.driver.stopped();
        }
        self.driver.closed();
        // SAFETY: By the type invariants the device is initialized; nothing can start it or reach
        // it any more.
        unsafe {
            bindings::vhost_dev_flush(self.as_raw());
            bindings::vhost_dev_stop(self.as_raw());
            bindings::vhost_dev_cleanup(self.as_raw());
        }
    }
}

/// The lock of a device, held.
pub(crate) struct DeviceGuard<'a, D: Driver>(&'a Device<D>);

impl<D: Driver> DeviceGuard<'_, D> {
    fn check_owner(&self) -> Result {
        // SAFETY: The device is initialized and locked.
        to_result(unsafe { bindings::vhost_dev_check_owner(self.0.as_raw()) } as i32)
    }

    fn stop_queues(&self) {
        for (queue, stopped_at) in self.0.all_queues().zip(&self.0.stopped_at) {
            if let Some(position) = queue.stop() {
                stopped_at.store(position.into(), ordering::Relaxed);
            }
        }
    }

    /// Whether the queues run, or would go on where they were stopped: a guest that was paused
    /// continues there, and one that booted anew begins at 0.
    fn goes_on(&self) -> bool {
        let mut queues = self.0.all_queues().zip(&self.0.stopped_at);
        queues.all(|(queue, stopped_at)| queue.goes_on_from(stopped_at.load(ordering::Relaxed)))
    }

    /// Takes over what the guest agreed to. `EFAULT` if dirty memory cannot be logged, or there is
    /// no memory for an IOTLB.
    pub(crate) fn set_features(&self, features: u64) -> Result {
        let device = self.0.as_raw();
        // SAFETY: The device is initialized and locked.
        unsafe {
            if has(features, bindings::VHOST_F_LOG_ALL) && !bindings::vhost_log_access_ok(device) {
                return Err(EFAULT);
            }
            if has(features, bindings::VIRTIO_F_ACCESS_PLATFORM) {
                to_result(bindings::vhost_init_device_iotlb(device)).map_err(|_| EFAULT)?;
            } else {
                bindings::vhost_clear_device_iotlb(device);
            }
        }
        self.0.driver.set_features(features);
        self.0
            .all_queues()
            .for_each(|queue| queue.set_features(features));
        Ok(())
    }
}

impl<D: Driver> Drop for DeviceGuard<'_, D> {
    fn drop(&mut self) {
        // SAFETY: The lock is ours.
        unsafe { bindings::vhost_unlock_device(self.0.as_raw()) }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features.checked_shr(bit).is_some_and(|rest| rest & 1 != 0)
}

/// A queue of a device.
#[derive(Clone, Copy)]
pub struct Queue<'a> {
    device: *mut bindings::vhost_dev,
    queue: *mut bindings::vhost_virtqueue,
    _device: PhantomData<&'a ()>,
}

impl<'a> Queue<'a> {
    /// Begins a session, if the queue runs and its memory can be reached. Sleeps while somebody
    /// else has one.
    pub fn session(self) -> Option<Session<'a>> {
        Session::begin(self.device, self.queue)
    }

    /// Makes the worker call [`Driver::kicked`] soon. Any context.
    pub fn poll(self) {
        // SAFETY: The queue is initialized as long as its device. Without an owner there is no
        // worker, and this does nothing.
        unsafe { bindings::vhost_poll_queue(&raw mut (*self.queue).poll) }
    }

    /// Descriptors in the ring; may be out of date.
    pub fn size(self) -> usize {
        // SAFETY: The queue is initialized; a racy look at a plain integer.
        unsafe { (&raw const (*self.queue).num).read_volatile() as usize }
    }

    fn locked<R>(self, f: impl FnOnce(*mut bindings::vhost_virtqueue) -> R) -> R {
        // SAFETY: The queue is initialized.
        unsafe { bindings::vhost_lock_vq(self.queue) };
        let result = f(self.queue);
        // SAFETY: The lock was taken above.
        unsafe { bindings::vhost_unlock_vq(self.queue) };
        result
    }

    fn start(self) -> Result {
        // SAFETY: The queue is initialized and locked.
        self.locked(|queue| unsafe {
            if !bindings::vhost_vq_access_ok(queue) {
                return Err(EFAULT);
            }
            if (*queue).private_data.is_null() {
                // Off as it was left by the last session, the guest would never be heard again.
                (*queue).used_flags &= !(bindings::VRING_USED_F_NO_NOTIFY as u16);
                (*queue).private_data = queue.cast();
                to_result(bindings::vhost_vq_init_access(queue))?;
            }
            Ok(())
        })
    }

    /// Returns where it was, if it ran.
    fn stop(self) -> Option<u16> {
        // SAFETY: The queue is initialized and locked.
        self.locked(|queue| unsafe {
            let ran = !(*queue).private_data.is_null();
            (*queue).private_data = core::ptr::null_mut();
            ran.then_some((*queue).last_avail_idx)
        })
    }

    fn goes_on_from(self, position: u32) -> bool {
        // SAFETY: The queue is initialized and locked.
        self.locked(|queue| unsafe {
            !(*queue).private_data.is_null() || u32::from((*queue).last_avail_idx) == position
        })
    }

    fn set_features(self, features: u64) {
        // SAFETY: The queue is initialized and locked.
        self.locked(|queue| unsafe {
            *(&raw mut (*queue).__bindgen_anon_1).cast::<u64>() = features;
        });
    }
}

/// The device behind a queue.
///
/// # Safety
///
/// `queue` belongs to a [`Device<D>`].
unsafe fn device_of<'a, D: Driver>(queue: *mut bindings::vhost_virtqueue) -> &'a Device<D> {
    // SAFETY: The queue refers to the `device` field of a `Device<D>`, which outlives its worker.
    unsafe {
        let device: *mut Opaque<bindings::vhost_dev> = (*queue).dev.cast();
        &*kernel::container_of!(device, Device<D>, device)
    }
}

/// # Safety
///
/// `work` is the poll work of a queue of a [`Device<D>`].
unsafe extern "C" fn handle_kick<D: Driver>(work: *mut bindings::vhost_work) {
    // SAFETY: By the requirements of this function.
    unsafe {
        let queue = kernel::container_of!(work, bindings::vhost_virtqueue, poll.work);
        let device = device_of::<D>(queue);
        if let Some(number) = device.queues.iter().position(|own| own.get() == queue) {
            D::kicked(device, number);
        }
    }
}

/// # Safety
///
/// `work` is the bell's work of a [`Device<D>`].
unsafe extern "C" fn handle_bell<D: Driver>(work: *mut bindings::vhost_work) {
    let work: *mut Opaque<bindings::vhost_work> = work.cast();
    // SAFETY: By the requirements of this function; the device outlives its worker.
    D::rung(unsafe { &*kernel::container_of!(work, Device<D>, work) })
}
