// SPDX-License-Identifier: GPL-2.0
//! Bytes there and back.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context};
use rvsock_selftests::errno::Errno;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::{Address, Kind, Socket};

/// How long a peer may take: emulated machines on busy ones are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a write.
const PIECE: usize = 32 * 1024;

/// A socket connected to `port`, which gives up some time.
pub fn connect(kind: Kind, cid: u32, port: u32) -> anyhow::Result<Socket> {
    let socket = Socket::new(kind)?;
    socket.set_connect_timeout(PATIENCE)?;
    let address = Address { cid, port };
    socket
        .connect(address)
        .with_context(|| format!("{address:?}"))?;
    Ok(socket)
}

/// Makes a socket one that listens at `port`, and says so.
pub fn listen(socket: &Socket, port: u32, backlog: i32) -> anyhow::Result<()> {
    let cid = libc::VMADDR_CID_ANY;
    socket.bind(Address { cid, port })?;
    socket.listen(backlog)?;
    println!("listening");
    Ok(())
}

/// Sends back what comes in, until there is nothing more.
pub fn send_back(socket: &Socket) -> Result<(), Errno> {
    let mut buffer = vec![0; 2 * PIECE];
    loop {
        let len = socket.recv(&mut buffer, 0)?;
        if len == 0 {
            return Ok(());
        }
        socket.send_all(&buffer[..len])?;
    }
}

/// Sends back what comes in on connections to `port`.
pub fn serve(port: u32) -> anyhow::Result<()> {
    let listener = Socket::new(Kind::Stream)?;
    // Who connects is not made to wait, and may be quicker than this.
    listen(&listener, port, 4096)?;
    loop {
        let socket = listener.accept()?;
        thread::spawn(move || {
            if let Err(error) = send_back(&socket) {
                eprintln!("rvsock-puppet: {error}");
            }
        });
    }
}

/// Opens all connections, then uses all of them.
pub fn run(
    cid: u32,
    port: u32,
    connections: usize,
    bytes: usize,
    half_close: bool,
) -> anyhow::Result<()> {
    let sockets: Vec<Socket> = (0..connections)
        .map(|_| connect(Kind::Stream, cid, port))
        .collect::<Result<_, _>>()?;
    for (number, socket) in sockets.iter().enumerate() {
        exchange(socket, number as u64, bytes, half_close)
            .with_context(|| format!("connection {number} of {connections}"))?;
    }
    println!("{connections} connections, {bytes} bytes each, came back as they were");
    Ok(())
}

/// Opens connections one after the other, and uses each.
pub fn sequence(cid: u32, port: u32, connections: usize) -> anyhow::Result<()> {
    for number in 0..connections {
        let socket = connect(Kind::Stream, cid, port)?;
        socket.set_receive_timeout(PATIENCE)?;
        let bytes = (number as u64).to_le_bytes();
        socket.send_all(&bytes)?;
        let back = socket.recv_exact(bytes.len())?;
        ensure!(back == bytes, "connection {number}: {back:?} came back");
    }
    println!("{connections} connections, one after the other");
    Ok(())
}

/// Sends bytes and compares what comes back. If `half_close`, shuts down after the last of them, and
/// waits for the end.
fn exchange(socket: &Socket, seed: u64, bytes: usize, half_close: bool) -> anyhow::Result<()> {
    socket.set_receive_timeout(PATIENCE)?;
    socket.set_send_timeout(PATIENCE)?;
    let pattern = Pattern::new(seed);
    let sender = socket.duplicate()?;
    let data = pattern.bytes(0, bytes);
    let sending = thread::spawn(move || -> Result<(), Errno> {
        sender.send_all(&data)?;
        if half_close {
            sender.shutdown(libc::SHUT_WR)?;
        }
        Ok(())
    });
    let mut position = 0;
    while half_close || position < bytes as u64 {
        let got = socket.recv_vec(PIECE, 0)?;
        if got.is_empty() {
            break;
        }
        pattern.check(position, &got)?;
        position += got.len() as u64;
    }
    ensure!(position == bytes as u64, "{position} of {bytes} bytes came");
    sending.join().expect("the sender does not panic")?;
    Ok(())
}
