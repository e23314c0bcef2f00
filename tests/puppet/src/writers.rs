// SPDX-License-Identifier: GPL-2.0
//! Many writers, each with a connection, and one slow reader of them all.

use std::thread;
use std::time::Duration;

use anyhow::ensure;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Kind, Socket};

use crate::echo::{connect, listen};

/// Bytes of the largest message.
const LARGEST: usize = 4000;

/// The message with this number: that, and a pattern whose length it tells.
fn message(number: u32) -> Vec<u8> {
    let len = (number as usize * 1009) % LARGEST;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(Pattern::new(5).bytes(u64::from(number), len));
    bytes
}

/// Sends messages from as many threads, each on a socket of its own.
pub fn write(cid: u32, port: u32, writers: u32, messages: u32) -> anyhow::Result<()> {
    let contents: Vec<_> = (0..messages).map(message).collect();
    let sockets: Vec<_> = (0..writers)
        .map(|_| connect(Kind::Seqpacket, cid, port))
        .collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        let contents = &contents;
        let send = move |socket: Socket| {
            for bytes in contents {
                ensure!(socket.send(bytes, 0)? == bytes.len(), "a part was sent");
            }
            socket.shutdown(libc::SHUT_WR)?;
            ensure!(socket.recv_vec(1, 0)?.is_empty(), "an answer");
            anyhow::Ok(())
        };
        let threads: Vec<_> = sockets
            .into_iter()
            .map(|socket| scope.spawn(move || send(socket)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no writer panics"))
    })
}

/// Reads what [`write`] sends, a message of each writer in turn, with a pause for each `every`
/// messages.
pub fn read_slowly(port: u32, writers: usize, every: usize, pause: Duration) -> anyhow::Result<()> {
    let listener = Socket::new(Kind::Seqpacket)?;
    listen(&listener, port, 128)?;
    let mut sockets = Vec::new();
    for _ in 0..writers {
        sockets.push(listener.accept()?);
    }
    let mut total = 0;
    for number in 0.. {
        for (writer, socket) in sockets.iter().enumerate() {
            let bytes = socket.recv_vec(2 * LARGEST, 0)?;
            if bytes.is_empty() {
                println!("{total} messages of {writers} writers came whole, in order");
                return Ok(());
            }
            ensure!(
                bytes == message(number),
                "message {number} of writer {writer} is another"
            );
            total += 1;
            if total % every == 0 {
                thread::sleep(pause);
            }
        }
    }
    Ok(())
}
