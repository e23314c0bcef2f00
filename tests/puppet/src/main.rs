// SPDX-License-Identifier: GPL-2.0
//! Does in a guest what tests on the other side of its vsock device want done.

mod bulk;
mod driver;
mod echo;
mod orders;
mod stall;
mod writers;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Traffic of a guest, for tests of its vsock device")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Take orders from the device (tests/device), until the guest ends
    ///
    /// If the device does not answer any more, the driver lets go of it and takes it up again.
    Obey,
    /// Send bytes on connections that exist all at once, and compare what comes back
    Echo {
        /// Where somebody sends bytes back
        #[arg(long, default_value_t = libc::VMADDR_CID_HOST)]
        cid: u32,
        #[arg(long)]
        port: u32,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Bytes for each connection
        #[arg(long, default_value_t = 1024)]
        bytes: usize,
        /// Send no more after the last byte, and wait for the end
        #[arg(long)]
        half_close: bool,
    },
    /// Send back what comes in, on any number of connections
    Serve {
        #[arg(long)]
        port: u32,
    },
    /// Open connections one after the other, and send bytes there and back on each
    Sequence {
        #[arg(long, default_value_t = libc::VMADDR_CID_HOST)]
        cid: u32,
        #[arg(long)]
        port: u32,
        #[arg(long)]
        connections: usize,
    },
    /// Send bytes to `receive`
    Send {
        #[arg(long, default_value_t = libc::VMADDR_CID_HOST)]
        cid: u32,
        #[arg(long)]
        port: u32,
        #[arg(long)]
        bytes: u64,
    },
    /// Compare what comes on one connection
    Receive {
        #[arg(long)]
        port: u32,
    },
    /// Send messages to `read-slowly`, on many connections
    Write {
        #[arg(long, default_value_t = libc::VMADDR_CID_HOST)]
        cid: u32,
        #[arg(long)]
        port: u32,
        #[arg(long)]
        writers: u32,
        #[arg(long)]
        messages: u32,
    },
    /// Compare the messages of `write`, with pauses
    ReadSlowly {
        #[arg(long)]
        port: u32,
        #[arg(long)]
        writers: usize,
        /// So many messages before a pause
        #[arg(long)]
        every: usize,
        /// Milliseconds
        #[arg(long)]
        pause: u64,
    },
    /// Send a byte now and then, on one connection
    Beat {
        #[arg(long)]
        port: u32,
    },
    /// Stop in the kernel while reading from `beat`, and use connections to `serve` meanwhile
    Stall {
        #[arg(long, default_value_t = libc::VMADDR_CID_HOST)]
        cid: u32,
        #[arg(long)]
        beat: u32,
        #[arg(long)]
        echo: u32,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Obey => orders::obey(),
        Task::Echo {
            cid,
            port,
            connections,
            bytes,
            half_close,
        } => echo::run(cid, port, connections, bytes, half_close),
        Task::Serve { port } => echo::serve(port),
        Task::Sequence {
            cid,
            port,
            connections,
        } => echo::sequence(cid, port, connections),
        Task::Send { cid, port, bytes } => bulk::send(cid, port, bytes),
        Task::Receive { port } => bulk::receive(port),
        Task::Write {
            cid,
            port,
            writers,
            messages,
        } => writers::write(cid, port, writers, messages),
        Task::ReadSlowly {
            port,
            writers,
            every,
            pause,
        } => writers::read_slowly(port, writers, every, Duration::from_millis(pause)),
        Task::Beat { port } => stall::beat(port),
        Task::Stall { cid, beat, echo } => stall::stall(cid, beat, echo),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rvsock-puppet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
