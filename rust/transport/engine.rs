// SPDX-License-Identifier: GPL-2.0

//! The engine as the AF_VSOCK core sees it.

use crate::{
    busy::resume,
    close,
    connection::Reading,
    read::{read_message, read_skb, read_stream},
    send::{send_control, send_data, send_message, update_credit},
    Connection, Link,
};
use af_vsock::{HeldSock, Message, SkbActor, Sock, Transport, Vtable};
use core::marker::PhantomData;
use kernel::prelude::*;
use vsock_proto::{Operation, ShutdownFlags};

/// The transport on top of a link.
pub struct Engine<L>(PhantomData<L>);

impl<L: Link> Transport for Engine<L> {
    type Shared = Connection;
    type Owned = Reading;

    const ROUTES: bool = L::ROUTES;

    fn vtable() -> &'static Vtable<Self> {
        L::vtable()
    }

    fn shared(sock: &mut HeldSock<'_>) -> impl PinInit<Connection, Error> {
        Connection::new(sock.clamp_buffer_size())
    }

    fn owned() -> Reading {
        Reading::new()
    }

    fn discard(owned: &mut Reading) {
        owned.clear();
    }

    fn local_cid() -> u32 {
        L::local_cid()
    }

    fn has_remote_cid(sock: &Sock, cid: u32) -> bool {
        L::has_remote_cid(sock, cid)
    }

    fn stream_allow(sock: &Sock) -> bool {
        L::stream_allow(sock)
    }

    fn seqpacket_allow(sock: &Sock, cid: u32) -> bool {
        L::seqpacket_allow(sock, cid)
    }

    fn connect(mut sock: HeldSock<'_>) -> Result {
        sock.forget_end();
        send_control::<L>(&mut sock, Operation::Request, ShutdownFlags::NONE, false)
    }

    fn cancel(sock: HeldSock<'_>) -> Result {
        L::cancel(&sock)
    }

    fn shutdown(mut sock: HeldSock<'_>, flags: ShutdownFlags) -> Result {
        send_control::<L>(&mut sock, Operation::Shutdown, flags, false)
    }

    fn release(sock: HeldSock<'_>) {
        close::release::<L>(sock)
    }

    fn close_timed_out(sock: HeldSock<'_>) {
        close::close_timed_out::<L>(sock)
    }

    fn resume(mut sock: HeldSock<'_>) {
        resume::<L>(&mut sock);
    }

    fn reset_connected(sock: &Sock) {
        L::reset_connected(sock)
    }

    fn stream_enqueue(
        mut sock: HeldSock<'_>,
        mut message: Message<'_, true>,
        len: usize,
    ) -> Result<usize> {
        send_data::<L>(&mut sock, &mut message, len)
    }

    fn seqpacket_enqueue(
        mut sock: HeldSock<'_>,
        mut message: Message<'_, true>,
        len: usize,
    ) -> Result<usize> {
        let attached = sock.attached::<Self>().ok_or(ENODEV)?;
        if len > attached.shared.capacity() as usize {
            return Err(EMSGSIZE);
        }
        send_message::<L>(&mut sock, &mut message, len)
    }

    fn stream_dequeue(
        mut sock: HeldSock<'_>,
        mut message: Message<'_, false>,
        len: usize,
        peek: bool,
    ) -> Result<usize> {
        read_stream::<L>(&mut sock, &mut message, len, peek)
    }

    fn seqpacket_dequeue(
        mut sock: HeldSock<'_>,
        mut message: Message<'_, false>,
        peek: bool,
    ) -> Result<usize> {
        read_message::<L>(&mut sock, &mut message, peek)
    }

    fn readable_bytes(connection: &Connection) -> u32 {
        connection.readable_bytes()
    }

    fn readable_messages(connection: &Connection) -> u32 {
        connection.readable_messages()
    }

    fn reader_waits(connection: &Connection, bytes: u32) -> bool {
        connection.reader_waits(bytes)
    }

    fn writable_bytes(connection: &Connection) -> u32 {
        connection.writable_bytes()
    }

    fn unsent_bytes(connection: &Connection) -> usize {
        if connection.unsent_bytes() > 0 {
            L::settle();
        }
        connection.unsent_bytes()
    }

    fn set_window(mut sock: HeldSock<'_>, window: u32) {
        let Some(attached) = sock.attached::<Self>() else {
            return;
        };
        let (is_news, change) = attached.shared.set_window(window);
        let wakes_writers = change.wakes_writers(attached.shared.capacity());
        if is_news {
            let operation = Operation::CreditUpdate;
            let _ = send_control::<L>(&mut sock, operation, ShutdownFlags::NONE, false);
        }
        if wakes_writers {
            sock.report_space();
        }
    }

    fn set_receive_low_water(mut sock: HeldSock<'_>, value: u32) -> Result {
        update_credit::<L>(&mut sock, value)
    }

    fn read_skb(mut sock: HeldSock<'_>, actor: SkbActor) -> i32 {
        read_skb::<L>(&mut sock, actor)
    }
}
