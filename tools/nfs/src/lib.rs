// SPDX-License-Identifier: GPL-2.0

//! What the programs for NFS over vsock have in common.

use std::process::ExitCode;

pub mod allowed;
pub mod client;
pub mod module;
pub mod options;
pub mod probe;
pub mod server;
pub mod source;

/// The port of NFS.
pub const NFS_PORT: u32 = 2049;

/// How a program ends: with 0, or with a status and a reason that is printed.
pub fn exit_code(program: &str, result: Result<(), (u8, anyhow::Error)>) -> ExitCode {
    let Err((status, error)) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{program}: {error:#}");
    ExitCode::from(status)
}
