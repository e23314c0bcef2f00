// SPDX-License-Identifier: GPL-2.0

//! What the programs for NFS over vsock have in common.

pub mod allowed;
pub mod client;
pub mod module;
pub mod options;
pub mod probe;
pub mod server;
pub mod source;

/// The port of NFS.
pub const NFS_PORT: u32 = 2049;
