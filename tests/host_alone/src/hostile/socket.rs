// SPDX-License-Identifier: GPL-2.0
//! Sockets of the host that deal with the villain.

use rand::Rng;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::{Address, Kind, Socket};

use super::{Villain, PORTS, SOCKETS};

impl Villain {
    /// A port of the host that somebody may have.
    pub(super) fn host_port(&mut self) -> u32 {
        let count = self.sockets.len() + self.listeners.len();
        let number = self.random.random_range(0..count + 1);
        let socket = match number.checked_sub(self.listeners.len()) {
            None => self.listeners.get(number),
            Some(number) => self.sockets.get(number).map(|(_, socket)| socket),
        };
        match socket.map(Socket::port) {
            Some(Ok(port)) => port,
            _ => self.edge(),
        }
    }

    /// What programs of the host do meanwhile.
    pub(super) fn host_socket(&mut self) -> anyhow::Result<()> {
        let number = self.random.random_range(0..self.sockets.len().max(1));
        let len = self.random.random_range(0..70_000);
        match self.random.random_range(0..10) {
            0..=2 => {
                let (listener, kind) = self.one_of(&[(0, Kind::Stream), (1, Kind::Seqpacket)]);
                if let Ok(socket) = self.listeners[listener].accept() {
                    self.keep(kind, socket)?;
                }
            }
            3 => {
                let kind = self.one_of(&[Kind::Stream, Kind::Seqpacket]);
                let socket = Socket::new(kind)?;
                socket.set_nonblocking()?;
                let address = Address {
                    cid: self.guest.options.cid,
                    port: self.random.random_range(PORTS),
                };
                match socket.connect(address) {
                    Err(Errno(libc::EINPROGRESS)) => self.keep(kind, socket)?,
                    Ok(()) => anyhow::bail!("connected at once"),
                    Err(_) => {}
                }
            }
            4 => {
                self.sockets.remove(number);
            }
            choice => {
                if let Some((_, socket)) = self.sockets.get(number) {
                    // All may fail: the peer is not to be relied on.
                    let count = |result: Result<usize, Errno>| result.unwrap_or(0) as u64;
                    match choice {
                        5 | 6 => {
                            let data = socket.recv_vec(len, 0).map(|data| data.len());
                            self.reached.bytes_read += count(data);
                        }
                        7 => self.reached.bytes_sent += count(socket.send(&vec![0; len], 0)),
                        8 if len % 8 == 0 => drop(socket.shutdown((len % 3) as i32)),
                        8 => drop(socket.set_window(len as u64)),
                        _ => drop(socket.recv_vec(len, libc::MSG_PEEK)),
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, kind: Kind, socket: Socket) -> anyhow::Result<()> {
        socket.set_nonblocking()?;
        self.reached.connections += 1;
        if self.sockets.len() == SOCKETS {
            self.sockets.pop_front();
        }
        self.sockets.push_back((kind, socket));
        Ok(())
    }
}
