// SPDX-License-Identifier: GPL-2.0

//! Guest transport for vsock: the driver of the virtio socket device (virtio 1.3, section 5.10).

use af_vsock::{Features, Registration};
use device::{DeviceDriver, CLOSE_QUEUE, DRIVER, SOFT_QUEUE};
use kernel::{prelude::*, sync::Arc};
use link::Guest;
use rvsock_bindings::{RcuSlot, WorkQueue};
use vsock_transport::Engine;

mod device;
mod event;
mod kicks;
mod link;
mod receive;
mod receiver;
mod transmit;

module! {
    type: Module,
    name: "virtio_transport_rs",
    authors: ["The rvsock developers"],
    description: "virtio transport for vsock",
    license: "GPL",
    alias: ["virtio:d00000013v*"],
}

/// The module. Its parts go in the order they stand here: the device, the sockets' way to it, and
/// then the queue on which closed sockets wait.
struct Module {
    _driver: virtio::Registration,
    _transport: Registration,
    _soft: RunningQueue,
    _work: RunningQueue,
}

impl kernel::Module for Module {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let work = RunningQueue::start(&CLOSE_QUEUE, WorkQueue::per_cpu(c"virtio_vsock")?)?;
        let soft = RunningQueue::start(&SOFT_QUEUE, WorkQueue::soft(c"virtio_vsock_soft")?)?;
        let transport = Registration::new::<Engine<Guest>>(Features::GUEST_TO_HOST)?;
        let driver = virtio::Registration::new::<DeviceDriver>(&DRIVER, module)?;
        Ok(Self {
            _driver: driver,
            _transport: transport,
            _soft: soft,
            _work: work,
        })
    }
}

/// A work queue of the module is in its place, until this is dropped.
struct RunningQueue(&'static RcuSlot<WorkQueue>);

impl RunningQueue {
    fn start(place: &'static RcuSlot<WorkQueue>, queue: WorkQueue) -> Result<Self> {
        place
            .fill(Arc::new(queue, GFP_KERNEL)?)
            .map_err(|_| EBUSY)?;
        Ok(Self(place))
    }
}

impl Drop for RunningQueue {
    fn drop(&mut self) {
        self.0.take();
    }
}
