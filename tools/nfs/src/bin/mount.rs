// SPDX-License-Identifier: GPL-2.0

//! Mounts a directory of an NFS server over vsock; mount(8) runs this for the type nfs_vsock.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use rustix::mount::MountFlags;
use rvsock_nfs::{
    client, exit_code,
    options::{OptionError, Options},
    source::Source,
};

/// Mount a directory of an NFS server over vsock
///
/// Usually called by mount(8): `mount -t nfs_vsock 2:/export /mnt`. The server is a CID: 2 is the
/// host, 3 and above are guests. No network is involved.
#[derive(Parser)]
#[command(
    version,
    name = "mount.nfs_vsock",
    after_help = "See mount.nfs_vsock(8)."
)]
struct Arguments {
    /// What to mount: CID:/DIRECTORY, host:/DIRECTORY or vsock:CID.PORT:/DIRECTORY
    source: Source,
    /// Where to mount it
    target: PathBuf,
    /// Options, separated by commas: those of nfs(5) for version 4, and retry=MINUTES
    #[arg(short, value_name = "LIST")]
    options: Vec<String>,
    /// Mount read-only
    #[arg(short)]
    read_only: bool,
    /// Mount read-write
    #[arg(short = 'w', conflicts_with = "read_only")]
    read_write: bool,
    /// Say what is being done
    #[arg(short, long)]
    verbose: bool,
    /// Do everything but mount
    #[arg(short, long)]
    fake: bool,
    /// Ignored: there is no mtab to write
    #[arg(short)]
    no_mtab: bool,
    /// Ignored: unknown options are the kernel's to refuse
    #[arg(short)]
    sloppy: bool,
    /// Ignored: nfs_vsock, or nfs_vsock.SUBTYPE
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// What mount(8) expects of its helpers.
const USAGE: u8 = 1;
const FAILURE: u8 = 32;

fn options(arguments: &Arguments) -> Result<Options, OptionError> {
    let mut options = Options::default();
    for list in &arguments.options {
        options.add(list)?;
    }
    if arguments.read_only {
        options.flags |= MountFlags::RDONLY;
    }
    if arguments.read_write {
        options.flags -= MountFlags::RDONLY;
    }
    Ok(options)
}

fn run(arguments: &Arguments, options: &Options) -> Result<()> {
    let source = &arguments.source;
    let target = arguments
        .target
        .canonicalize()
        .with_context(|| format!("there is no {}", arguments.target.display()))?;
    if !options.remount {
        client::prepare()?;
        client::wait_for_server(source, options)?;
    }
    if arguments.verbose {
        let told = options.for_kernel(source);
        println!(
            "mount -t nfs4 -o {told} {} {}",
            source.device(),
            target.display()
        );
    }
    if arguments.fake {
        return Ok(());
    }
    client::attach(source, &target, options)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = options(&arguments).map_err(|error| (USAGE, error.into()));
    let run = |options| run(&arguments, &options).map_err(|error| (FAILURE, error));
    exit_code("mount.nfs_vsock", result.and_then(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_calls_it_with_options_last() {
        let line = [
            "mount.nfs_vsock",
            "2:/export",
            "/mnt",
            "-v",
            "-o",
            "rw,nconnect=4",
        ];
        let arguments = Arguments::try_parse_from(line).unwrap();
        assert_eq!(arguments.source.cid, 2);
        assert!(options(&arguments)
            .unwrap()
            .for_kernel(&arguments.source)
            .contains("nconnect=4"));
    }
}
