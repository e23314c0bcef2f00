// SPDX-License-Identifier: GPL-2.0
//! Leads connections to another machine back to where they come from: so cases that have both ends
//! of a connection can use a way between two kernels.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::case::PATIENCE;
use crate::errno::Errno;
use crate::socket::{Address, Kind, Socket};

/// What a listener is asked for by: its peer's CID, and kind and port of the socket there.
type Target = (u32, Kind, u32);

/// The ports where what is for these targets is taken.
type Listeners = Arc<Mutex<HashMap<Target, u32>>>;

/// A question: kind and port; and the answer, a port.
const QUESTION: usize = 8;
const ANSWER: usize = 4;

/// Bytes of a message at most, and of what is read of a stream at once.
const PIECE: usize = 256 * 1024;

/// Asks the relay at `address` where connections to `socket` are taken.
pub fn ask(address: Address, socket: &Socket) -> Result<u32, Errno> {
    let kind = match socket.kind()? {
        Kind::Stream => 0u32,
        Kind::Seqpacket => 1,
    };
    let relay = Socket::new(Kind::Stream)?;
    relay.set_connect_timeout(PATIENCE)?;
    relay.set_receive_timeout(PATIENCE)?;
    relay.connect(address)?;
    let question = [kind.to_le_bytes(), socket.port()?.to_le_bytes()].concat();
    relay.send_all(&question)?;
    let answer = relay.recv_exact(ANSWER)?;
    let port = answer.try_into().map_err(|_| Errno(libc::ECONNRESET))?;
    Ok(u32::from_le_bytes(port))
}

/// Answers questions on `port`, and relays.
pub fn serve(port: u32) -> anyhow::Result<Infallible> {
    let questions = Socket::new(Kind::Stream)?;
    questions.bind(Address::new(libc::VMADDR_CID_ANY, port))?;
    questions.listen(128)?;
    println!("relaying");
    let listeners = Listeners::default();
    loop {
        let Ok(asking) = questions.accept() else {
            continue;
        };
        let listeners = listeners.clone();
        thread::spawn(move || {
            let _ = answer(&asking, &listeners);
        });
    }
}

fn answer(asking: &Socket, listeners: &Listeners) -> anyhow::Result<()> {
    let question = asking.recv_exact(QUESTION)?;
    let number = |at: usize| -> anyhow::Result<u32> {
        Ok(u32::from_le_bytes(question[at..at + 4].try_into()?))
    };
    anyhow::ensure!(question.len() == QUESTION, "half a question");
    let kind = [Kind::Stream, Kind::Seqpacket][number(0)? as usize & 1];
    let target = (asking.peer()?.cid, kind, number(4)?);
    let mut known = listeners.lock().unwrap_or_else(PoisonError::into_inner);
    let port = match known.get(&target) {
        Some(port) => *port,
        None => {
            let port = listen(target)?;
            known.insert(target, port);
            port
        }
    };
    asking.send_all(&port.to_le_bytes())?;
    Ok(())
}

/// Takes connections for a target.
fn listen((cid, kind, port): Target) -> anyhow::Result<u32> {
    let listener = Socket::listening(kind)?;
    let ours = listener.port()?;
    thread::spawn(move || loop {
        if let Ok(from) = listener.accept() {
            thread::spawn(move || {
                let _ = connect(from, kind, Address::new(cid, port));
            });
        }
    });
    Ok(ours)
}

fn connect(from: Socket, kind: Kind, address: Address) -> anyhow::Result<()> {
    let to = Socket::new(kind)?;
    to.connect(address)?;
    thread::scope(|scope| {
        scope.spawn(|| pump(kind, &from, &to));
        pump(kind, &to, &from);
    });
    Ok(())
}

/// Moves what is sent one way, until its end, or until there is no other end.
fn pump(kind: Kind, from: &Socket, to: &Socket) {
    let mut buffer = vec![0; PIECE];
    loop {
        let Ok(received) = from.recv_message(&mut buffer, 0) else {
            let _ = from.shutdown(libc::SHUT_RDWR);
            let _ = to.shutdown(libc::SHUT_RDWR);
            return;
        };
        let bytes = &buffer[..received.len];
        if bytes.is_empty() {
            let _ = to.shutdown(libc::SHUT_WR);
            return;
        }
        let sent = match kind {
            Kind::Stream => to.send_all(bytes),
            Kind::Seqpacket => to.send(bytes, received.flags & libc::MSG_EOR).map(|_| ()),
        };
        if sent.is_err() {
            let _ = from.shutdown(libc::SHUT_RDWR);
            return;
        }
    }
}
