// SPDX-License-Identifier: GPL-2.0
//! The host's side of vsock without a guest: this process is one, or several.
//!
//! It lays out rings in its own memory and drives /dev/vhost-vsock by its commands, as the monitor
//! of a virtual machine and the driver inside would.

mod cases;
mod device;
mod guest;
mod header;
mod hostile;
mod iotlb;
mod memory;
mod ring;
mod routes;
mod speed;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use rvsock_selftests::case::{Case, Setup};
use rvsock_selftests::runner;

#[derive(Parser)]
#[command(about = "Drives /dev/vhost-vsock without a virtual machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run cases, each in a process of its own; prints KTAP
    Cases(CaseArguments),
    /// Be a guest that breaks all rules, beside one that keeps them
    Hostile(hostile::Arguments),
    /// Say who is reached under which CID
    Routes(routes::Arguments),
    /// Measure the way through the host, in both directions
    Speed(speed::Arguments),
}

#[derive(clap::Args)]
struct CaseArguments {
    /// Print the names of the cases, and for those where Linux's C module is known to behave
    /// differently, after a tab, why
    #[arg(long)]
    list: bool,
    /// The module of the device: after each case nobody may use it any more
    #[arg(long)]
    module: Option<String>,
    /// Include what takes minutes
    #[arg(long)]
    long: bool,
    /// Seconds after which a case is ended
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Run these, not all
    names: Vec<String>,
}

fn all() -> impl Iterator<Item = &'static Case> {
    cases::ALL.iter().copied().flatten()
}

fn select(names: &[String]) -> anyhow::Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(all().collect());
    }
    let find = |name: &String| {
        let found = all().find(|case| case.name == name);
        found.ok_or_else(|| anyhow::anyhow!("there is no case {name}"))
    };
    names.iter().map(find).collect()
}

fn run_cases(arguments: CaseArguments) -> anyhow::Result<bool> {
    let selected = select(&arguments.names)?;
    if arguments.list {
        for case in selected {
            match case.differs_in_c {
                Some(reason) => println!("{}\t{reason}", case.name),
                None => println!("{}", case.name),
            }
        }
        return Ok(true);
    }
    let setup = Setup {
        module: arguments.module,
        long: arguments.long,
        ..Setup::default()
    };
    let timeout = Duration::from_secs(arguments.timeout);
    Ok(runner::run_all(&selected, &setup, timeout))
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Cases(arguments) => run_cases(arguments),
        Command::Hostile(arguments) => hostile::run(&arguments).map(|()| true),
        Command::Routes(arguments) => routes::run(&arguments).map(|()| true),
        Command::Speed(arguments) => speed::run(&arguments).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rvsock-host-alone: {error:#}");
            ExitCode::FAILURE
        }
    }
}
