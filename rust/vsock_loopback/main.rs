// SPDX-License-Identifier: GPL-2.0

//! Loopback transport for vsock: CID 1, both ends on one kernel.

use af_vsock::{Features, Registration};
use kernel::prelude::*;
use link::{Loopback, LOOPBACK};
use vsock_transport::Engine;

mod link;

module! {
    type: Module,
    name: "vsock_loopback_rs",
    authors: ["The rvsock developers"],
    description: "Loopback transport for vsock",
    license: "GPL",
    alias: ["net-pf-40"],
}

/// The module. Its parts go in the order they stand here: first no socket can come any more, then
/// what was sent to nobody is dropped.
struct Module {
    _registration: Registration,
    _link: RunningLink,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let link = RunningLink::start()?;
        Ok(Self {
            _registration: Registration::new::<Engine<Loopback>>(Features::LOCAL)?,
            _link: link,
        })
    }
}

/// The link is in its place, until this is dropped.
struct RunningLink;

impl RunningLink {
    fn start() -> Result<Self> {
        LOOPBACK.fill(Loopback::new()?).map_err(|_| EBUSY)?;
        Ok(Self)
    }
}

impl Drop for RunningLink {
    fn drop(&mut self) {
        if let Some(loopback) = LOOPBACK.take() {
            loopback.stop();
        }
    }
}
