// SPDX-License-Identifier: GPL-2.0
//! Connections that do nothing, or are full because the peer does not read.

use crate::server::KEEPING;
use crate::socket;
use std::fs::File;
use std::io::{self, Read, Write};

/// A connection that takes nothing for so long is full, in milliseconds. Even with both kernels
/// emulated, a byte takes less than one to get to the peer.
const PATIENCE: libc::c_int = 200;

/// Opens connections, fills them with messages of `size` bytes (0: leaves them empty), says so, and
/// keeps them to the end of standard input.
pub fn run(cid: u32, port: u32, count: usize, size: usize) -> io::Result<()> {
    let mut held = Vec::new();
    let mut bytes = 0;
    for _ in 0..count {
        let mut connection = socket::connect(cid, port + KEEPING)?;
        if size > 0 {
            bytes += fill(&mut connection, size)?;
        }
        held.push(connection);
    }
    println!(r#"{{"held":{count},"bytes":{bytes}}}"#);
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn fill(connection: &mut File, size: usize) -> io::Result<u64> {
    let message = vec![b'x'; size];
    let mut bytes = 0;
    socket::set_nonblocking(connection)?;
    loop {
        match connection.write(&message) {
            Ok(length) => bytes += length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !socket::wait_writable(connection, PATIENCE)? {
                    return Ok(bytes);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
