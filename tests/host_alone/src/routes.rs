// SPDX-License-Identifier: GPL-2.0
//! Who is reached under which CID, where a kernel has several transports.
//!
//! A program of this kernel and a guest of it listen on the same port; each says who it is. So does,
//! in the machine around this one, a program there.

use std::thread;
use std::time::Duration;

use rvsock_selftests::ensure_eq;
use rvsock_selftests::errno::Errno;
use rvsock_selftests::socket::{Address, Kind, Socket};

use crate::guest::{self, Guest, Options};

#[derive(clap::Args)]
pub struct Arguments {
    /// The port on which everybody listens
    port: u32,
    /// The CIDs to connect to
    #[arg(required = true)]
    cids: Vec<u32>,
}

/// `VMADDR_FLAG_TO_HOST`.
const TO_HOST: u8 = 1;

/// How long a connection may take, and who accepted it to say who it is.
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let here = Socket::new(Kind::Stream)?;
    here.bind(Address {
        port: arguments.port,
        ..Address::ANY
    })?;
    here.listen(8)?;
    thread::spawn(move || answer_here(&here));
    let mut guest = Guest::start(&Options::default())?;
    let listening = ask_who_failed_before(&mut guest);
    println!(
        "listener\t0\t{}",
        listening.map_or_else(|error| format!("{error:#}"), |()| "accepts".into())
    );
    thread::spawn(move || answer_in_guest(guest));
    for cid in &arguments.cids {
        for flags in [0, TO_HOST] {
            let address = Address {
                cid: *cid,
                port: arguments.port,
            };
            let answer = ask(address, flags).unwrap_or_else(|error| format!("{error:?}"));
            println!("{cid}\t{flags}\t{answer}");
        }
    }
    Ok(())
}

/// Lets the guest connect to a socket that listens after it could not connect over another transport.
fn ask_who_failed_before(guest: &mut Guest) -> anyhow::Result<()> {
    let listener = Socket::new(Kind::Stream)?;
    let nobody = Address {
        cid: libc::VMADDR_CID_LOCAL,
        port: guest::PORT,
    };
    ensure_eq!(listener.connect(nobody), Err(Errno(libc::ECONNRESET)));
    listener.listen(1)?;
    let mut connection = guest.connect(Kind::Stream, guest::PORT, listener.port()?)?;
    let socket = listener.accept()?;
    guest::prepare(&socket)?;
    guest.converse(&socket, &mut connection)?;
    drop(socket);
    guest.answer_close(&connection)
}

fn answer_here(listener: &Socket) -> Result<(), Errno> {
    loop {
        listener.accept()?.send_all(b"this kernel")?;
    }
}

fn answer_in_guest(mut guest: Guest) -> anyhow::Result<()> {
    loop {
        // Where nobody has connected for a while.
        let Ok(mut connection) = guest.accept() else {
            continue;
        };
        guest.send_data(&mut connection, b"its guest")?;
        guest.answer_close(&connection)?;
    }
}

/// Who is at an address, or why nobody is reached.
fn ask(address: Address, flags: u8) -> Result<String, Errno> {
    let socket = Socket::new(Kind::Stream)?;
    socket.set_connect_timeout(TIMEOUT)?;
    socket.set_receive_timeout(TIMEOUT)?;
    socket.connect_with(address, flags)?;
    let answer = socket.recv_vec(100, 0)?;
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}
