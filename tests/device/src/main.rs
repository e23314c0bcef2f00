// SPDX-License-Identifier: GPL-2.0
//! A vhost-user vsock device that keeps the protocol, or breaks it.
//!
//! QEMU connects to it, and a program in the guest (tests/puppet) takes its orders. Tasks are read
//! from standard input, one in a line.

mod attack;
mod backend;
mod bench;
mod conform;
mod device;
mod events;
mod header;
mod memory;
mod peer;
mod puppet;
mod ring;

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Parser, Subcommand};

use backend::Backend;
use bench::Bench;
use device::Device;

#[derive(Parser)]
#[command(about = "A vhost-user vsock device that keeps the protocol, or breaks it")]
#[command(after_help = "\
Tasks are read from standard input, one in a line; `help` lists them. Each is answered by a line
`task NUMBER passed` or `task NUMBER failed: WHY`, and one that says that it ends.

QEMU: -object memory-backend-memfd,id=ram,size=512M,share=on -machine memory-backend=ram
      -chardev socket,id=vsock,path=SOCKET -device vhost-user-vsock-pci,chardev=vsock
In the guest: rvsock-puppet obey")]
struct Arguments {
    /// Where QEMU connects to
    #[arg(long)]
    socket: Option<PathBuf>,
    /// CID of the guest
    #[arg(long, default_value_t = 3)]
    cid: u64,
    /// Seconds that the guest may take to answer
    #[arg(long, default_value_t = 30)]
    patience: u64,
    /// Print the conformance cases, and for those where Linux's C driver is known to behave
    /// differently, after a tab, why
    #[arg(long)]
    list: bool,
}

#[derive(Parser)]
#[command(multicall = true)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show that the guest keeps the protocol: one conformance case
    Conform { name: String },
    /// Be hostile
    Attack {
        /// What the steps follow from
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        steps: u64,
        /// Do nothing but this
        #[arg(long)]
        only: Option<String>,
    },
    /// Be hostile on the event queue, which QEMU keeps for itself: its parts are where the guest
    /// says they are
    Events {
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        steps: u64,
        #[command(flatten)]
        place: events::Place,
    },
    /// Measure what a connection of the guest holds in memory
    Memory(memory::Load),
}

impl Task {
    fn run(&self, bench: &mut Bench) -> anyhow::Result<String> {
        match self {
            Self::Conform { name } => conform::run(bench, name).map(|()| String::new()),
            Self::Attack { seed, steps, only } => {
                attack::run(bench, *seed, *steps, only.as_deref())
            }
            Self::Events { seed, steps, place } => events::run(bench, *seed, *steps, place),
            Self::Memory(load) => memory::run(bench, load),
        }
    }
}

/// The lines of standard input, as they come.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Does what standard input asks for, and serves the guest meanwhile.
fn serve(bench: &mut Bench) -> anyhow::Result<()> {
    let lines = lines();
    let mut number = 0;
    loop {
        match lines.try_recv() {
            Ok(line) => {
                number += 1;
                let parsed = Line::try_parse_from(line.split_whitespace());
                let result = match parsed {
                    Ok(line) => line.task.run(bench),
                    Err(error) => Err(error.into()),
                };
                report(number, result);
            }
            Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
            Err(mpsc::TryRecvError::Empty) => bench.idle()?,
        }
    }
}

fn report(number: usize, result: anyhow::Result<String>) {
    match result {
        Ok(text) => println!("task {number} passed {text}"),
        Err(error) => println!(
            "task {number} failed: {}",
            format!("{error:#}").replace('\n', "\\n")
        ),
    }
    println!("end of task {number}");
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        conform::list();
        return Ok(());
    }
    let Some(socket) = &arguments.socket else {
        anyhow::bail!("--socket is missing");
    };
    let patience = Duration::from_secs(arguments.patience);
    let backend = Backend::serve(socket, arguments.cid)?;
    let device = Device::new(backend, arguments.cid, patience);
    serve(&mut Bench::new(device))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rvsock-device: {error:#}");
            ExitCode::FAILURE
        }
    }
}
