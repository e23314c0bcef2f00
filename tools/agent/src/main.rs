// SPDX-License-Identifier: GPL-2.0
//! Runs commands in a virtual machine for the rig, over a virtio-serial port or another serial line.
//!
//! The rig (`tools/rig`) sends frames, this program starts, feeds and signals commands, any number
//! at a time, and streams their output back. It uses neither network nor vsock: those are what is
//! being tested. When the port closes, all commands are killed and the program ends.

mod command;
mod frame;
mod server;

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, io};

const USAGE: &str = "usage: rvsock-agent PORT SESSION

PORT     name of a virtio-serial port, as in /sys/class/virtio-ports/*/name, or path of a terminal
         that passes on every byte as it is (stty raw -echo)
SESSION  sent as greeting, so that the other end knows whom it talks to";

/// Finds a port by name; there may be no udev that makes /dev/virtio-ports.
fn port_device(name: &str) -> io::Result<PathBuf> {
    if name.starts_with('/') {
        return Ok(name.into());
    }
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim_end() == name)
        {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio-serial port is called {name}"),
    ))
}

fn open(port: &str) -> io::Result<(File, File)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(port_device(port)?)?;
    Ok((file.try_clone()?, file))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [port, session] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match open(port).and_then(|(input, output)| server::serve(input, output, session)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rvsock-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
