// SPDX-License-Identifier: GPL-2.0
//! A packet reaches a socket only from its peer.
//!
//! A client stays in the table of bound sockets while it connects and is connected. C looks there
//! by destination only, so that anybody who knows its port, and ports are handed out in sequence,
//! can send it packets.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::case::Setup;
use crate::errno::Errno;
use crate::fault::StalledDelivery;
use crate::socket::{Address, Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("source":
    a_stranger_who_connects_to_a_connected_client_is_refused_at_once
        => "its request is dropped, and connect() times out",
    a_stranger_cannot_spoil_the_connect_of_a_client
        => "its request ends the client's connect() with EPROTO",
    a_machine_reaches_itself_under_all_its_cids,
);

/// Of the stranger's connect(): far longer than an answer takes.
const TIMEOUT: Duration = Duration::from_secs(3);

fn a_stranger_who_connects_to_a_connected_client_is_refused_at_once(
    setup: &Setup,
) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let pair = setup.pair(kind)?;
        let stranger = Socket::new(kind)?;
        stranger.set_connect_timeout(TIMEOUT)?;
        let started = Instant::now();
        ensure_eq!(
            stranger.connect(setup.address(&pair.client)?),
            Err(Errno(libc::ECONNRESET))
        );
        ensure!(
            started.elapsed() < TIMEOUT,
            "it took {:?}",
            started.elapsed()
        );

        pair.converse()?;
    }
    Ok(())
}

/// A machine that is nobody's guest has that of a host, too.
fn a_machine_reaches_itself_under_all_its_cids(_: &Setup) -> anyhow::Result<()> {
    for kind in [Kind::Stream, Kind::Seqpacket] {
        for cid in [libc::VMADDR_CID_LOCAL, libc::VMADDR_CID_HOST] {
            let listener = Socket::listening(kind)?;
            let client = Socket::new(kind)?;
            let port = listener.port()?;
            client.connect(Address { cid, port })?;
            ensure_eq!(client.peer()?.cid, cid);
            let server = listener.accept()?;
            Pair { client, server }.converse()?;
        }
    }
    Ok(())
}

/// The stranger's request is queued between the client's and the response to it.
fn a_stranger_cannot_spoil_the_connect_of_a_client(setup: &Setup) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    let client = Socket::new(Kind::Stream)?;
    client.bind(Address::ANY)?;
    let (server_address, client_address) = (setup.address(&listener)?, setup.address(&client)?);
    client.set_nonblocking()?;
    let stranger = Socket::new(Kind::Stream)?;
    stranger.set_nonblocking()?;

    let stalled = StalledDelivery::new(setup)?;
    ensure_eq!(
        client.connect(server_address),
        Err(Errno(libc::EINPROGRESS))
    );
    ensure_eq!(
        stranger.connect(client_address),
        Err(Errno(libc::EINPROGRESS))
    );
    stalled.release()?;

    client.poll(libc::POLLOUT, TIMEOUT)?;
    ensure_eq!(client.take_error()?, None);
    stranger.poll(libc::POLLOUT, TIMEOUT)?;
    ensure_eq!(stranger.take_error()?, Some(Errno(libc::ECONNRESET)));
    listener.accept()?.send_all(b"welcome")?;
    client.poll(libc::POLLIN, TIMEOUT)?;
    ensure_eq!(client.recv_exact(7)?, b"welcome");
    Ok(())
}
