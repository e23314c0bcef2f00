// SPDX-License-Identifier: GPL-2.0
//! Echo over AF_VSOCK: a server that sends back what it receives, and its client.
//!
//! `echo.py` is the same in Python; client and server of the two understand each other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::{env, str, thread};

use anyhow::{ensure, Context, Result};
use vsock::{VsockListener, VsockStream, VMADDR_CID_ANY};

const USAGE: &str = "usage: vsock-echo listen PORT
       vsock-echo send CID PORT TEXT

The host has CID 2; a guest has the CID that it was started with.";

fn listen(port: u32) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on port {port}");
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept")?;
        thread::spawn(move || {
            if let Err(error) = echo(&stream) {
                eprintln!("connection lost: {error}");
            }
        });
    }
    Ok(())
}

/// Sends everything back until the peer sends no more.
fn echo(mut stream: &VsockStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    println!("connection from CID {} port {}", peer.cid(), peer.port());
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn send(cid: u32, port: u32, text: &str) -> Result<()> {
    let mut stream = VsockStream::connect_with_cid_port(cid, port)
        .with_context(|| format!("cannot connect to port {port} of CID {cid}"))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("connection lost")?;
    ensure!(
        answer == text.as_bytes(),
        "what came back is not what was sent"
    );
    println!(
        "CID {cid} port {port} sent back: {}",
        str::from_utf8(&answer)?
    );
    Ok(())
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["listen", port] => listen(port.parse().context("PORT is not a number")?),
        ["send", cid, port, text] => send(
            cid.parse().context("CID is not a number")?,
            port.parse().context("PORT is not a number")?,
            text,
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
