// SPDX-License-Identifier: GPL-2.0
//! The passive end. It listens on three ports, one after the other:
//!
//! * `PORT`: the client says in a [`Request`] what it wants.
//! * `PORT + 1`: connections are accepted and closed.
//! * `PORT + 2`: connections are accepted, kept, and never read from.

use crate::request::{Kind, Request};
use crate::session::{Session, Sessions};
use crate::socket::Listener;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// Ports after the first.
pub const CLOSING: u32 = 1;
pub const KEEPING: u32 = 2;

/// A reader asks for no less than this, whatever the size of messages: it takes what there is.
const READ_MIN: usize = 64 << 10;

pub fn run(port: u32) -> io::Result<()> {
    let requests = Listener::new(port)?;
    let closing = Listener::new(port + CLOSING)?;
    let keeping = Listener::new(port + KEEPING)?;
    thread::spawn(move || report(accept_and_close(&closing)));
    thread::spawn(move || report(accept_and_keep(&keeping)));
    println!("listening");
    let sessions = Arc::new(Sessions::default());
    loop {
        let connection = requests.accept()?;
        let sessions = Arc::clone(&sessions);
        thread::spawn(move || report(handle(connection, &sessions)));
    }
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("rvsock-load: server: {error}");
    }
}

fn accept_and_close(listener: &Listener) -> io::Result<()> {
    loop {
        drop(listener.accept()?);
    }
}

fn accept_and_keep(listener: &Listener) -> io::Result<()> {
    let mut kept = Vec::new();
    loop {
        kept.push(listener.accept()?);
    }
}

fn handle(mut connection: File, sessions: &Sessions) -> io::Result<()> {
    let request = Request::read(&mut connection)?;
    match request.kind {
        Kind::Sink => sink(connection, &request, &sessions.join(&request)),
        Kind::Echo => echo(connection, &request),
        Kind::Control => control(connection, &sessions.join(&request)),
    }
}

/// A connection that breaks is at its end, too.
fn sink(connection: File, request: &Request, session: &Session) -> io::Result<()> {
    let result = receive(connection, request, session);
    session.leave(Instant::now());
    result
}

fn receive(mut connection: File, request: &Request, session: &Session) -> io::Result<()> {
    let mut buffer = vec![0; READ_MIN.max(request.size as usize)];
    connection.write_all(&[0])?;
    loop {
        let length = connection.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        session.count(length, Instant::now());
    }
}

fn control(mut connection: File, session: &Session) -> io::Result<()> {
    connection.write_all(&[0])?;
    session.wait_measured();
    connection.write_all(&[0])?;
    session.wait_report().write(&mut connection)
}

fn echo(mut connection: File, request: &Request) -> io::Result<()> {
    let mut buffer = vec![0; request.size as usize];
    connection.write_all(&[0])?;
    loop {
        match connection.read_exact(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        connection.write_all(&buffer)?;
    }
}
