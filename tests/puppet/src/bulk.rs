// SPDX-License-Identifier: GPL-2.0
//! More bytes on one connection than its counters hold, each of them compared.

use anyhow::ensure;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Kind, Socket};

use crate::echo::{connect, listen};

/// Bytes of a write, and of a window.
const PIECE: usize = 1 << 20;

/// What both ends know of the bytes.
struct Expected(Vec<u8>);

impl Expected {
    fn new() -> Self {
        Self(Pattern::new(4).bytes(0, Pattern::PERIOD + PIECE))
    }

    /// `len` bytes from `position` on, which is compared as fast as memory is.
    fn at(&self, position: u64, len: usize) -> &[u8] {
        let start = (position % Pattern::PERIOD as u64) as usize;
        &self.0[start..start + len]
    }
}

/// Sends so many bytes.
pub fn send(cid: u32, port: u32, bytes: u64) -> anyhow::Result<()> {
    let expected = Expected::new();
    let socket = connect(Kind::Stream, cid, port)?;
    socket.set_window(PIECE as u64)?;
    let mut position = 0;
    while position < bytes {
        let len = (bytes - position).min(PIECE as u64) as usize;
        position += socket.send(expected.at(position, len), 0)? as u64;
    }
    socket.shutdown(libc::SHUT_WR)?;
    // The other end has compared everything when it closes.
    ensure!(socket.recv_exact(1)?.is_empty(), "an answer");
    println!("{position} bytes were sent");
    Ok(())
}

/// Compares what comes on one connection with what [`send`] sends, and says how much it was.
pub fn receive(port: u32) -> anyhow::Result<()> {
    let expected = Expected::new();
    let listener = Socket::new(Kind::Stream)?;
    listener.set_window(PIECE as u64)?;
    listen(&listener, port, 1)?;
    let socket = listener.accept()?;
    let mut buffer = vec![0; PIECE];
    let mut position = 0;
    loop {
        let len = socket.recv(&mut buffer, 0)?;
        if len == 0 {
            break;
        }
        ensure!(
            buffer[..len] == *expected.at(position, len),
            "other bytes between {position} and {}",
            position + len as u64
        );
        position += len as u64;
    }
    println!("{position} bytes came as they were sent");
    Ok(())
}
