// SPDX-License-Identifier: GPL-2.0
//! Network namespaces: in local mode their sockets keep to themselves.

use std::thread;

use crate::case::{Setup, PATIENCE};
use crate::errno::Errno;
use crate::namespace::{inside, prepare};
use crate::socket::{Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("namespace":
    sockets_of_one_local_namespace_reach_each_other,
    sockets_of_two_local_namespaces_do_not,
    sockets_of_two_global_namespaces_reach_each_other,
    a_local_and_a_global_namespace_do_not_reach_each_other,
    two_local_namespaces_can_use_the_same_port,
    two_global_namespaces_cannot_use_the_same_port,
    messages_need_a_global_namespace,
    a_connection_outlives_its_namespace,
);

fn client(kind: Kind) -> Result<Socket, Errno> {
    let socket = Socket::new(kind)?;
    socket.set_connect_timeout(PATIENCE)?;
    Ok(socket)
}

fn connect_and_converse(setup: &Setup, listener: &Socket, client: Socket) -> anyhow::Result<()> {
    client.connect(setup.address(listener)?)?;
    let server = listener.accept()?;
    Pair { client, server }.converse()
}

fn sockets_of_one_local_namespace_reach_each_other(setup: &Setup) -> anyhow::Result<()> {
    prepare("local")?;
    let (listener, client) = inside("local", || {
        Ok((Socket::listening(Kind::Stream)?, client(Kind::Stream)?))
    })?;
    connect_and_converse(setup, &listener, client)
}

fn sockets_of_two_local_namespaces_do_not(setup: &Setup) -> anyhow::Result<()> {
    prepare("local")?;
    let listener = inside("local", || Ok(Socket::listening(Kind::Stream)?))?;
    let client = inside("local", || Ok(client(Kind::Stream)?))?;
    ensure_eq!(
        client.connect(setup.address(&listener)?),
        Err(Errno(libc::ECONNRESET))
    );
    Ok(())
}

fn sockets_of_two_global_namespaces_reach_each_other(setup: &Setup) -> anyhow::Result<()> {
    prepare("global")?;
    for kind in [Kind::Stream, Kind::Seqpacket] {
        let listener = inside("global", || Ok(Socket::listening(kind)?))?;
        let client = inside("global", || Ok(client(kind)?))?;
        connect_and_converse(setup, &listener, client)?;
    }
    Ok(())
}

fn a_local_and_a_global_namespace_do_not_reach_each_other(setup: &Setup) -> anyhow::Result<()> {
    prepare("local")?;
    let global = Socket::listening(Kind::Stream)?;
    let local = inside("local", || Ok(Socket::listening(Kind::Stream)?))?;
    let out = inside("local", || Ok(client(Kind::Stream)?))?;
    ensure_eq!(
        out.connect(setup.address(&global)?),
        Err(Errno(libc::ECONNRESET))
    );
    ensure_eq!(
        client(Kind::Stream)?.connect(setup.address(&local)?),
        Err(Errno(libc::ECONNRESET))
    );
    Ok(())
}

/// Binds a listener of a new namespace to the port of `listener`.
fn bind_again(mode: &str, listener: &Socket) -> anyhow::Result<Result<Socket, Errno>> {
    let port = listener.port()?;
    inside(mode, || {
        let socket = Socket::new(Kind::Stream)?;
        let address = crate::socket::Address {
            port,
            ..crate::socket::Address::ANY
        };
        Ok(socket
            .bind(address)
            .and_then(|()| socket.listen(1))
            .map(|()| socket))
    })
}

fn two_local_namespaces_can_use_the_same_port(setup: &Setup) -> anyhow::Result<()> {
    prepare("local")?;
    let (listener, client) = inside("local", || {
        Ok((Socket::listening(Kind::Stream)?, client(Kind::Stream)?))
    })?;
    let _other = bind_again("local", &listener)??;
    connect_and_converse(setup, &listener, client)
}

fn two_global_namespaces_cannot_use_the_same_port(_setup: &Setup) -> anyhow::Result<()> {
    prepare("global")?;
    let listener = inside("global", || Ok(Socket::listening(Kind::Stream)?))?;
    ensure_eq!(
        bind_again("global", &listener)?.map(|_| ()),
        Err(Errno(libc::EADDRINUSE))
    );
    Ok(())
}

fn messages_need_a_global_namespace(setup: &Setup) -> anyhow::Result<()> {
    prepare("local")?;
    let (listener, client) = inside("local", || {
        Ok((
            Socket::listening(Kind::Seqpacket)?,
            client(Kind::Seqpacket)?,
        ))
    })?;
    let refused = client.connect(setup.address(&listener)?);
    ensure_eq!(refused, Err(Errno(libc::ESOCKTNOSUPPORT)));
    Ok(())
}

fn a_connection_outlives_its_namespace(setup: &Setup) -> anyhow::Result<()> {
    prepare("local")?;
    let pair = inside("local", || Ok(setup.pair(Kind::Stream)?))?;
    // The thread that was its last user is gone; the sockets keep it.
    for _ in 0..3 {
        pair.client.send_all(b"still here")?;
        ensure_eq!(pair.server.recv_exact(10)?, b"still here");
        thread::sleep(crate::case::A_WHILE);
    }
    Ok(())
}
