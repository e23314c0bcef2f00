// SPDX-License-Identifier: GPL-2.0
//! Sends a file over AF_VSOCK.
//!
//! The sender announces the length (8 bytes, big endian) and sends the content; the receiver answers
//! with the length that it has stored. So neither end takes a broken connection for the end of the
//! file, and the sender knows that the file has arrived.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Instant;
use std::{env, path::Path};

use anyhow::{ensure, Context, Result};
use vsock::{VsockListener, VsockStream, VMADDR_CID_ANY};

const USAGE: &str = "usage: vsock-transfer receive PORT FILE
       vsock-transfer send FILE CID PORT

The host has CID 2; a guest has the CID that it was started with.";

/// As large as the default buffer of a socket: a larger write would wait in between.
const BUFFER: usize = 256 << 10;

fn receive(port: u32, path: &Path) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on port {port}");
    let (mut stream, _) = listener.accept().context("cannot accept")?;
    let started = Instant::now();
    let mut announced = [0; 8];
    stream
        .read_exact(&mut announced)
        .context("connection lost")?;
    let announced = u64::from_be_bytes(announced);
    let mut file = File::create(path).with_context(|| format!("cannot write {path:?}"))?;
    let length = copy(&mut (&stream).take(announced), &mut file)?;
    ensure!(
        length == announced,
        "only {length} of {announced} bytes arrived"
    );
    stream.write_all(&length.to_be_bytes())?;
    report("received", length, started);
    Ok(())
}

fn send(path: &Path, cid: u32, port: u32) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot read {path:?}"))?;
    let length = file.metadata()?.len();
    let mut stream = VsockStream::connect_with_cid_port(cid, port)
        .with_context(|| format!("cannot connect to port {port} of CID {cid}"))?;
    let started = Instant::now();
    stream.write_all(&length.to_be_bytes())?;
    copy(&mut (&mut file).take(length), &mut stream)?;
    let mut stored = [0; 8];
    stream.read_exact(&mut stored).context("connection lost")?;
    let stored = u64::from_be_bytes(stored);
    ensure!(
        stored == length,
        "only {stored} of {length} bytes were stored"
    );
    report("sent", length, started);
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..length])?;
        total += length as u64;
    }
}

fn report(what: &str, length: u64, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let rate = length as f64 / seconds / 1e6;
    println!("{what} {length} bytes in {seconds:.2} s, {rate:.0} MB/s");
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["receive", port, file] => receive(
            port.parse().context("PORT is not a number")?,
            Path::new(file),
        ),
        ["send", file, cid, port] => send(
            Path::new(file),
            cid.parse().context("CID is not a number")?,
            port.parse().context("PORT is not a number")?,
        ),
        _ => anyhow::bail!("{USAGE}"),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
