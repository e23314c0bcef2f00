// SPDX-License-Identifier: GPL-2.0

//! NFS over vsock: transports of SUNRPC for clients and servers.

use access::Allowed;
use kernel::prelude::*;
use sunrpc::{ClientRegistration, ServerRegistration};
use vsock::Vsock;

mod access;
mod vsock;

module! {
    type: Module,
    name: "sunrpc_vsock",
    authors: ["The rvsock developers"],
    description: "SUNRPC, and so NFS, over vsock",
    license: "GPL",
    alias: ["svcvsock"],
}

rvsock_bindings::module_parameter!(c"allowed_cids", Allowed, THIS_MODULE.as_ptr());

/// The module. Its parts go in the order they stand here.
struct Module {
    _client: Option<ClientRegistration<Vsock>>,
    _server: ServerRegistration<Vsock>,
    _callbacks: Callbacks,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let server = ServerRegistration::new()?;
        let client = ClientRegistration::new().inspect_err(|_| {
            pr_warn!("no mounts from here: rpcrdma is loaded, and has the only place for them\n")
        });
        Ok(Self {
            _client: client.ok(),
            _server: server,
            _callbacks: Callbacks,
        })
    }
}

/// Sockets may call back, until this is dropped.
struct Callbacks;

impl Drop for Callbacks {
    fn drop(&mut self) {
        socket::wait_for_callbacks();
    }
}
