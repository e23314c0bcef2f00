// SPDX-License-Identifier: GPL-2.0

//! Host transport for vsock: the device that guests see, in the host's kernel.

use af_vsock::{Features, Registration};
use guest::GuestDevice;
use kernel::{prelude::*, sync::Arc};
use link::{Host, CLOSE_QUEUE};
use registry::{Registry, REGISTRY};
use rvsock_bindings::WorkQueue;
use vhost::Table;
use vsock_transport::Engine;

mod flows;
mod guest;
mod guest_to_host;
mod host_to_guest;
mod link;
mod registry;
mod retry;

module! {
    type: Module,
    name: "vhost_vsock_rs",
    authors: ["The rvsock developers"],
    description: "vhost transport for vsock",
    license: "GPL",
    alias: ["char-major-10-241", "devname:vhost-vsock"],
}

/// `VHOST_VSOCK_MINOR`.
const MINOR: u32 = 241;

static TABLE: Table<GuestDevice> = Table::new(THIS_MODULE.as_ptr(), c"vhost-vsock", MINOR);

/// The module. Its parts go in the order they stand here: no file can be opened any more, no socket
/// can come any more, and then the queue goes on which closed sockets wait.
struct Module {
    _device: vhost::Registration,
    _transport: Registration,
    _statics: Statics,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let statics = Statics::fill()?;
        let transport = Registration::new::<Engine<Host>>(Features::HOST_TO_GUEST)?;
        let device = vhost::Registration::new(&TABLE)?;
        Ok(Self {
            _device: device,
            _transport: transport,
            _statics: statics,
        })
    }
}

/// What operations find in statics is in its place, until this is dropped.
struct Statics;

impl Statics {
    fn fill() -> Result<Self> {
        let queue = Arc::new(WorkQueue::unbound(c"vhost_vsock")?, GFP_KERNEL)?;
        let registry = Registry::new()?;
        CLOSE_QUEUE.fill(queue).map_err(|_| EBUSY)?;
        let statics = Self;
        REGISTRY.fill(registry).map_err(|_| EBUSY)?;
        Ok(statics)
    }
}

impl Drop for Statics {
    fn drop(&mut self) {
        CLOSE_QUEUE.take();
        REGISTRY.take();
    }
}
