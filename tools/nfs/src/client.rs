// SPDX-License-Identifier: GPL-2.0

//! What a machine needs to mount.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, Context, Result};
use rustix::{
    io::Errno,
    mount::{mount, mount_remount, MountFlags},
    process::geteuid,
};

use crate::{
    module,
    options::Options,
    probe::{probe, ProbeError},
    source::Source,
};

/// Where the kernel takes the name of this client from.
const IDENTIFIER: &str = "/sys/fs/nfs/net/nfs_client/identifier";

/// Between attempts, with `retry=`.
const PAUSE: Duration = Duration::from_secs(2);

/// Loads what a mount needs.
pub fn prepare() -> Result<()> {
    if module::is_loaded("rpcrdma") {
        bail!(
            "the module rpcrdma (NFS over RDMA) is loaded, and mounts have one place for it and vsock: \
             `modprobe -r rpcrdma sunrpc_vsock`, and keep it away with `blacklist rpcrdma` in /etc/modprobe.d"
        );
    }
    for name in ["nfsv4", module::SUNRPC_VSOCK] {
        module::load(name)?;
    }
    identify(Path::new(IDENTIFIER), Path::new("/etc/machine-id"))
}

/// Gives this client a name of its own, unless it has one: servers would take clones of a machine,
/// with equal host names, for one client that restarts all the time.
fn identify(identifier: &Path, machine_id: &Path) -> Result<()> {
    match fs::read_to_string(identifier) {
        Ok(text) if matches!(text.trim(), "" | "(null)") => {}
        // It has a name, or the kernel is older than these.
        _ => return Ok(()),
    }
    let machine = fs::read_to_string(machine_id).unwrap_or_default();
    let cid = vsock::get_local_cid().map_or_else(|_| String::new(), |cid| cid.to_string());
    let parts = ["vsock", &cid, machine.trim()];
    let name = parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    fs::write(identifier, name).with_context(|| format!("cannot write {}", identifier.display()))
}

/// Asks the server, again if that is wanted.
pub fn wait_for_server(source: &Source, options: &Options) -> Result<(), ProbeError> {
    let deadline = Instant::now() + Duration::from_secs(60 * options.retry);
    loop {
        match probe(source.cid, options.port(source)) {
            Err(error) if error.may_pass() && Instant::now() < deadline => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Mounts, or mounts again.
pub fn attach(source: &Source, target: &Path, options: &Options) -> Result<()> {
    let data = std::ffi::CString::new(options.for_kernel(source))?;
    let result = if options.remount {
        mount_remount(target, options.flags, &data)
    } else {
        mount(
            source.device(),
            target,
            "nfs4",
            options.flags,
            Some(data.as_c_str()),
        )
    };
    result.map_err(|errno| explain(errno, source, target, options))
}

/// What an error of mount(2) means here.
fn explain(errno: Errno, source: &Source, target: &Path, options: &Options) -> anyhow::Error {
    let target = target.display();
    match errno {
        Errno::ACCESS if options.uses_kerberos() => anyhow!(
            "CID {} does not export {} to this machine with Kerberos, or there is no ticket for it: here \
             nfs-vsock-krb5-relay@{} and rpc-gssd have to run, with a key in /etc/krb5.keytab, and the server's \
             name has to lead to {}",
            source.cid, source.path, source.cid, source.address()
        ),
        Errno::NOENT => anyhow!("CID {} has no directory {} for this machine", source.cid, source.path),
        Errno::ACCESS if !options.flags.contains(MountFlags::RDONLY) => anyhow!(
            "CID {} does not export {} to this machine: there, /etc/exports decides (`nfs-vsock address` \
             says what this machine is called in it)",
            source.cid, source.path
        ),
        Errno::PERM if !geteuid().is_root() => anyhow!("only root may mount"),
        Errno::PERM => anyhow!(
            "CID {} does not export {} with this security: sec= has to be one that /etc/exports names there",
            source.cid, source.path
        ),
        Errno::BUSY => anyhow!("{source} is mounted on {target} already, or {target} is busy"),
        Errno::NOTDIR => anyhow!("{target} is not a directory"),
        Errno::PROTONOSUPPORT | Errno::INVAL => anyhow!(errno).context(
            "the kernel refuses these options (or sunrpc_vsock was loaded while rpcrdma was: \
             `modprobe -r sunrpc_vsock` and try again)",
        ),
        Errno::TIMEDOUT => anyhow!("CID {} has stopped answering", source.cid),
        _ => anyhow!(errno).context(format!("cannot mount {source} on {target}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_without_a_name_gets_one() {
        let directory = tempfile::tempdir().unwrap();
        let (identifier, machine) = (
            directory.path().join("identifier"),
            directory.path().join("id"),
        );
        fs::write(&identifier, "\n").unwrap();
        fs::write(&machine, "abc\n").unwrap();
        identify(&identifier, &machine).unwrap();
        let name = fs::read_to_string(&identifier).unwrap();
        assert!(
            name.starts_with("vsock-") && name.ends_with("-abc"),
            "{name}"
        );
    }

    #[test]
    fn a_name_that_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let identifier = directory.path().join("identifier");
        fs::write(&identifier, "mine\n").unwrap();
        identify(&identifier, Path::new("/nonexistent")).unwrap();
        assert_eq!(fs::read_to_string(&identifier).unwrap(), "mine\n");
    }
}
