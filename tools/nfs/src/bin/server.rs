// SPDX-License-Identifier: GPL-2.0

//! Lets the kernel's NFS server serve virtual machines over vsock.

use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use rvsock_nfs::{
    allowed::{Allowed, Store},
    exit_code, module,
    server::Nfsd,
};
use vsock_proto::mapping::SERVER;

/// Let the kernel's NFS server serve virtual machines over vsock
///
/// Nobody is served until it is allowed here, and then what /etc/exports gives it. No network is
/// involved.
#[derive(Parser)]
#[command(version, name = "nfs-vsock", after_help = "See nfs-vsock(8).")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Let the NFS server listen on vsock, and serve those that are allowed
    Enable {
        /// The port
        #[arg(long, default_value_t = 2049)]
        port: u16,
    },
    /// Serve nobody over vsock any more
    Disable,
    /// Serve these machines, now and after restarts
    Allow {
        /// CIDs, or "all" for all guests
        #[arg(required = true, value_name = "CID")]
        cids: Vec<Allowed>,
    },
    /// Do not serve these machines any more
    Deny {
        /// CIDs, or "all" for everybody
        #[arg(required = true, value_name = "CID")]
        cids: Vec<Allowed>,
    },
    /// Say who listens, who is allowed and who is there
    List,
    /// Say how /etc/exports calls machines
    Address {
        /// CIDs
        #[arg(required = true, value_name = "CID")]
        cids: Vec<u32>,
    },
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

fn joined(lists: &[Allowed]) -> Allowed {
    lists
        .iter()
        .fold(Allowed::default(), |sum, list| sum.with(list))
}

fn enable(port: u16) -> Result<()> {
    module::load(module::SUNRPC_VSOCK)?;
    let store = Store::default();
    let kept = store.kept()?;
    store.enforce(&kept)?;
    Nfsd::default().listen(port)?;
    if kept == Allowed::default() {
        eprintln!("nfs-vsock: nobody is allowed yet: see `nfs-vsock allow`");
    }
    Ok(())
}

fn disable() -> Result<()> {
    let store = Store::default();
    if store.in_force()?.is_some() {
        store.enforce(&Allowed::default())?;
    }
    Ok(())
}

/// Changes the list for the next time and, if it is enabled, the one in force.
fn change(by: impl Fn(Allowed) -> Result<Allowed>) -> Result<()> {
    let store = Store::default();
    let in_force = store.in_force()?.map(&by).transpose()?;
    store.keep(&by(store.kept()?)?)?;
    in_force.map_or(Ok(()), |allowed| store.enforce(&allowed))
}

fn without(list: Allowed, denied: &Allowed) -> Result<Allowed> {
    list.without(denied)
        .context("all guests are allowed: `nfs-vsock deny all` first, then allow the others")
}

fn list() -> Result<()> {
    let (store, nfsd) = (Store::default(), Nfsd::default());
    let Some(in_force) = store.in_force()? else {
        println!(
            "not enabled: the module {} is not loaded",
            module::SUNRPC_VSOCK
        );
        return Ok(());
    };
    let ports = nfsd.ports().unwrap_or_default();
    let ports: Vec<String> = ports.iter().map(u32::to_string).collect();
    println!("listens on:  {}", or_none(&ports.join(", "), "no port"));
    println!("allowed:     {}", or_none(&in_force.to_string(), "nobody"));
    let kept = store.kept()?;
    if kept != in_force {
        println!("next time:   {}", or_none(&kept.to_string(), "nobody"));
    }
    for client in nfsd.clients()? {
        println!(
            "client:      CID {}, {} (callbacks {})",
            client.cid, client.name, client.callbacks
        );
    }
    Ok(())
}

fn or_none<'a>(text: &'a str, none: &'a str) -> &'a str {
    if text.is_empty() {
        none
    } else {
        text
    }
}

fn address(cids: &[u32]) -> Result<()> {
    for cid in cids {
        if *cid == 0 || *cid == u32::MAX {
            bail!("{cid} is no machine's CID");
        }
        println!("{}", SERVER.address(*cid));
    }
    Ok(())
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Enable { port } => enable(*port),
        Command::Disable => disable(),
        Command::Allow { cids } => change(|list| Ok(list.with(&joined(cids)))),
        Command::Deny { cids } => change(|list| without(list, &joined(cids))),
        Command::List => list(),
        Command::Address { cids } => address(cids),
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(*shell, &mut command, "nfs-vsock", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    let result = run(&Arguments::parse().command);
    exit_code("nfs-vsock", result.map_err(|error| (1, error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn cids_may_be_a_list_or_words() {
        let line = ["nfs-vsock", "allow", "3,4", "17"];
        let Command::Allow { cids } = Arguments::try_parse_from(line).unwrap().command else {
            panic!("not allow");
        };
        assert_eq!(joined(&cids).to_string(), "3,4,17");
    }
}
