// SPDX-License-Identifier: GPL-2.0
//! A reader that waits for memory with its socket locked, and a connection beside it.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context};
use rvsock_selftests::case::wait_until;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::fault::StalledCall;
use rvsock_selftests::socket::{Kind, Socket};

use crate::echo::{connect, listen};

/// How long a connection may take that nobody holds up.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Pause between the bytes that come by themselves.
const BEAT: Duration = Duration::from_millis(100);

/// Sends a byte now and then to who connects, until that fails.
pub fn beat(port: u32) -> anyhow::Result<()> {
    let listener = Socket::new(Kind::Stream)?;
    listen(&listener, port, 1)?;
    let socket = listener.accept()?;
    let mut sent = 0u64;
    while socket.send(&[sent as u8], 0).is_ok() {
        sent += 1;
        std::thread::sleep(BEAT);
    }
    println!("{sent} bytes were sent");
    Ok(())
}

/// A reader of [`beat`] stalls; connections to who sends bytes back, on `echo_port`, go on.
pub fn stall(cid: u32, beat_port: u32, echo_port: u32) -> anyhow::Result<()> {
    let other = connect(Kind::Stream, cid, echo_port)?;
    let socket = connect(Kind::Stream, cid, beat_port)?;
    wait_until("a byte is there", || {
        socket.unread().is_ok_and(|bytes| bytes > 0)
    })?;
    let stalled = StalledCall::reader(&socket)?;
    // More came meanwhile, and will.
    std::thread::sleep(5 * BEAT);
    let used = use_connection(&other).and_then(|took| {
        let new = connect(Kind::Stream, cid, echo_port)?;
        Ok((took, use_connection(&new)?))
    });
    let bytes = stalled.release()?;
    let (old, new) = used.context("held up")?;
    ensure!(
        bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8),
        "the stalled reader got {bytes:?}"
    );
    println!("beside a stalled reader: {old:?} on a connection, {new:?} on a new one");
    Ok(())
}

/// Bytes go there and back; how long that took.
fn use_connection(socket: &Socket) -> anyhow::Result<Duration> {
    let started = Instant::now();
    socket.set_receive_timeout(AT_ONCE)?;
    for round in 0..10u8 {
        socket.send_all(&[round; 1000])?;
        let bytes = socket
            .recv_exact(1000)
            .map_err(|error: Errno| anyhow::anyhow!("nothing came back: {error}"))?;
        ensure!(bytes == [round; 1000], "other bytes came back");
    }
    Ok(started.elapsed())
}
