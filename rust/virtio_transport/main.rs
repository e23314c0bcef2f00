// SPDX-License-Identifier: GPL-2.0

//! Guest transport for vsock: the driver of the virtio socket device (virtio 1.3, section 5.10).

use af_vsock::{Features, Registration};
use device::{DeviceDriver, CLOSE_QUEUE, DRIVER};
use kernel::{prelude::*, sync::Arc};
use link::Guest;
use rvsock_bindings::WorkQueue;
use vsock_transport::Engine;

mod device;
mod event;
mod kicks;
mod link;
mod receive;
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
    _work: RunningQueue,
}

impl kernel::Module for Module {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let work = RunningQueue::start()?;
        let transport = Registration::new::<Engine<Guest>>(Features::GUEST_TO_HOST)?;
        let driver = virtio::Registration::new::<DeviceDriver>(&DRIVER, module)?;
        Ok(Self {
            _driver: driver,
            _transport: transport,
            _work: work,
        })
    }
}

/// The work queue of the module is in its place, until this is dropped.
struct RunningQueue;

impl RunningQueue {
    fn start() -> Result<Self> {
        let queue = Arc::new(WorkQueue::per_cpu(c"virtio_vsock")?, GFP_KERNEL)?;
        CLOSE_QUEUE.fill(queue).map_err(|_| EBUSY)?;
        Ok(Self)
    }
}

impl Drop for RunningQueue {
    fn drop(&mut self) {
        CLOSE_QUEUE.take();
    }
}
