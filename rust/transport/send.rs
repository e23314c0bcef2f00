// SPDX-License-Identifier: GPL-2.0

//! Sending: control packets, and data as far as credit goes.

use crate::{packet::MERGED_MAX, receive::overrun, Engine, Link, Packet};
use af_vsock::{
    trace_allocated, HeldSock, Layout, Message, Net, SkBuff, SockRef, StateRef, Zerocopy,
    MAX_SKB_FRAGS,
};
use kernel::{page::PAGE_SIZE, prelude::*};
use vsock_proto::{
    reset_for, Address, Header, Kind, MessageFlags, Operation, ShutdownFlags, Update, MAX_PAYLOAD,
};

/// Most bytes that a zero-copy packet refers to: each piece may be as small as a page.
const ZEROCOPY_MAX: u32 = {
    let pieces = MAX_SKB_FRAGS * PAGE_SIZE as u32;
    if pieces < MAX_PAYLOAD {
        pieces
    } else {
        MAX_PAYLOAD
    }
};

/// Room for small packets in one that may have to wait, which fills a page with what an sk_buff has
/// beside it.
const MERGE_ROOM: u32 = 3 * 1024 + 512;

/// Sends a packet without payload. `reply`: it answers a packet that was received.
pub(crate) fn send_control<L: Link>(
    sock: &mut HeldSock<'_>,
    operation: Operation,
    shutdown: ShutdownFlags,
    reply: bool,
) -> Result {
    let packet = control::<L>(sock, operation, shutdown, reply)?;
    dispatch(sock, packet, false)
}

/// A packet without payload. `ENOMEM` for a request alone: of anything else nobody could be told that
/// it is missing.
fn control<L: Link>(
    sock: &HeldSock<'_>,
    operation: Operation,
    shutdown: ShutdownFlags,
    reply: bool,
) -> Result<KBox<Packet<L>>> {
    let header = Header {
        flags: shutdown.bits(),
        ..header::<L>(sock, operation)
    };
    let connection = Some(sock.state_ref::<Engine<L>>().ok_or(ENODEV)?);
    let sender = Some(sock.reference());
    if operation == Operation::Request {
        return Ok(Packet::control(header, sender, connection, reply)?);
    }
    Ok(Packet::indispensable(header, sender, connection, reply))
}

/// Sends a packet, whose header tells the peer of the window there is now.
fn dispatch<L: Link>(sock: &mut HeldSock<'_>, mut packet: KBox<Packet<L>>, refers: bool) -> Result {
    let attached = sock.attached::<Engine<L>>().ok_or(ENODEV)?;
    let (now, before) = attached.shared.advertise();
    packet.header.buf_alloc = now.buf_alloc;
    packet.header.fwd_cnt = now.fwd_cnt;
    trace_allocated(&packet.header, refers);
    let result = L::send(packet, sock.net());
    if let (Err(_), Some(attached)) = (result, sock.attached::<Engine<L>>()) {
        attached.shared.retract(before);
    }
    result
}

/// Ends the connection on the wire.
pub(crate) fn send_reset<L: Link>(sock: &mut HeldSock<'_>, reply: bool) {
    // Whoever does not get it finds out when it sends something.
    let _ = send_control::<L>(sock, Operation::Reset, ShutdownFlags::NONE, reply);
}

/// Answers a packet that is for no socket of ours; a reset is not answered.
///
/// `sender` is the sender on this machine, whose namespace `net` then is.
pub(crate) fn send_reset_without_socket<L: Link>(
    received: &Header,
    net: Net<'_>,
    sender: Option<&SockRef>,
) {
    let Some(header) = reset_for(received) else {
        return;
    };
    // The sender that does not get it has its timeout.
    let Ok(packet) = Packet::<L>::control(header, sender.cloned(), None, true) else {
        return;
    };
    trace_allocated(&packet.header, false);
    let _ = L::send(packet, net);
}

/// Tells the peer of the room there is, if that is due for a reader that waits for `low_water`
/// bytes.
pub(crate) fn update_credit<L: Link>(sock: &mut HeldSock<'_>, low_water: u32) -> Result {
    let kind = sock.kind();
    let Some(attached) = sock.attached::<Engine<L>>() else {
        return Ok(());
    };
    let due = attached.shared.poll_update(kind, low_water);
    if due == Update::None {
        return Ok(());
    }
    let mut packet = control::<L>(sock, Operation::CreditUpdate, ShutdownFlags::NONE, false)?;
    if due == Update::Soon {
        packet.set_patient();
    }
    dispatch(sock, packet, false)
}

/// As [`update_credit`], after something was read: a peer that cannot be told now is told with the
/// next packet.
pub(crate) fn update_credit_after_read<L: Link>(sock: &mut HeldSock<'_>) {
    let low_water = sock.receive_low_water();
    let _ = update_credit::<L>(sock, low_water);
}

/// Sends what credit allows of the next `len` bytes of `message`; returns how many.
pub(crate) fn send_data<L: Link>(
    sock: &mut HeldSock<'_>,
    message: &mut Message<'_, true>,
    len: usize,
) -> Result<usize> {
    let wanted = u32::try_from(len).unwrap_or(u32::MAX);
    let connection = sock.state_ref::<Engine<L>>().ok_or(ENODEV)?;
    let (granted, left) = connection.take_credit(wanted);
    if granted == 0 {
        return Ok(0);
    }
    // With as much again the sender would have to wait for the peer.
    let is_short = left < granted;
    let result = Sending::<L>::new(sock, &connection, message, granted, is_short)
        .and_then(|sending| sending.run(sock, message));
    let sent = *result.as_ref().unwrap_or(&0);
    connection.give_credit_back(granted.saturating_sub(sent));
    result.map(|sent| sent as usize)
}

/// The same for a message, or the rest of one.
///
/// If the rest of one cannot be sent, the connection is over: the next message would become a part of
/// this one.
pub(crate) fn send_message<L: Link>(
    sock: &mut HeldSock<'_>,
    message: &mut Message<'_, true>,
    len: usize,
) -> Result<usize> {
    let result = send_data::<L>(sock, message, len);
    let attached = sock.attached::<Engine<L>>();
    if result.is_err() && attached.is_some_and(|attached| attached.shared.is_inside_message()) {
        overrun::<L>(sock);
    }
    result
}

/// One call of `sendmsg()`, as far as credit was granted for it.
struct Sending<'a, L: Link> {
    connection: &'a StateRef<Engine<L>>,
    template: Header,
    granted: u32,
    /// Credit runs out.
    is_short: bool,
    zerocopy: Option<Zerocopy>,
    /// Refer to the sender's pages instead of copying them.
    refers: bool,
}

impl<'a, L: Link> Sending<'a, L> {
    fn new(
        sock: &mut HeldSock<'_>,
        connection: &'a StateRef<Engine<L>>,
        message: &mut Message<'_, true>,
        granted: u32,
        is_short: bool,
    ) -> Result<Self> {
        if !sock.wants_zerocopy() {
            message.refuse_zerocopy();
        }
        let mut sending = Self {
            connection,
            template: header::<L>(sock, Operation::ReadWrite),
            granted,
            is_short,
            zerocopy: None,
            refers: false,
        };
        if message.wants_zerocopy() {
            sending.refers = can_refer::<L>(message, granted);
            let zerocopy = Zerocopy::new(sock, message, granted)?;
            if !sending.refers {
                zerocopy.mark_copied();
            }
            sending.zerocopy = Some(zerocopy);
        }
        Ok(sending)
    }

    /// Sends packet after packet; an error counts only if none was sent.
    fn run(mut self, sock: &mut HeldSock<'_>, message: &mut Message<'_, true>) -> Result<u32> {
        let packet_max = if self.refers {
            ZEROCOPY_MAX
        } else {
            L::PAYLOAD_MAX
        };
        let mut sent: u32 = 0;
        let mut result = Ok(());
        while sent < self.granted {
            let len = packet_max.min(self.granted.saturating_sub(sent));
            // Of what was not sent the caller may send the beginning next.
            match message.attempt(|message| self.send_packet(sock, message, len)) {
                Ok(len) => sent = sent.saturating_add(len),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if sent > 0 {
            return Ok(sent);
        }
        if let Some(zerocopy) = self.zerocopy.take() {
            zerocopy.abort();
        }
        result.map(|()| 0)
    }

    /// Sends a packet of up to `len` bytes; returns how many.
    fn send_packet(
        &self,
        sock: &mut HeldSock<'_>,
        message: &mut Message<'_, true>,
        len: u32,
    ) -> Result<u32> {
        // Where a message cannot be read, C says ENOMEM, and programs have come to expect it.
        let payload = self.payload(sock, message, len).map_err(|_| ENOMEM)?;
        let len = payload.len();
        let flags = self.message_flags(message);
        let header = Header {
            len,
            flags: flags.bits(),
            ..self.template
        };
        let mut packet = Packet::data(
            header,
            payload,
            sock.reference(),
            self.connection.clone(),
            self.zerocopy.is_some(),
        )?;
        if self.is_short {
            packet.set_urgent();
        }
        dispatch(sock, packet, self.refers)?;
        let ends_message = flags.contains(MessageFlags::END_OF_MESSAGE);
        self.connection.set_inside_message(!ends_message);
        Ok(len)
    }

    fn payload(
        &self,
        sock: &HeldSock<'_>,
        message: &mut Message<'_, true>,
        len: u32,
    ) -> Result<SkBuff> {
        match &self.zerocopy {
            Some(zerocopy) if self.refers => SkBuff::refer_to_message(sock, message, len, zerocopy),
            None if L::SPLICES => match message.splice_front(len) {
                Some(front) => SkBuff::splice_from_message(sock, message, len, front),
                None => self.copy(sock, message, len),
            },
            zerocopy => {
                let payload = self.copy(sock, message, len)?;
                if let Some(zerocopy) = zerocopy {
                    zerocopy.attach(&payload);
                }
                Ok(payload)
            }
        }
    }

    fn copy(
        &self,
        sock: &HeldSock<'_>,
        message: &mut Message<'_, true>,
        len: u32,
    ) -> Result<SkBuff> {
        SkBuff::copy_from_message(sock, message, len, self.layout(len))
    }

    fn layout(&self, len: u32) -> Layout {
        let may_be_merged =
            L::MERGES && self.zerocopy.is_none() && self.template.kind == Kind::Stream.to_wire();
        if may_be_merged && len <= MERGED_MAX && self.connection.unsent_bytes() > 0 {
            Layout::Room(MERGE_ROOM)
        } else if L::CONTIGUOUS {
            Layout::Contiguous
        } else {
            Layout::Pages
        }
    }

    /// The last packet of a message says so.
    fn message_flags(&self, message: &mut Message<'_, true>) -> MessageFlags {
        if self.template.kind != Kind::Seqpacket.to_wire() || message.remaining() > 0 {
            return MessageFlags::NONE;
        }
        if message.ends_record() {
            MessageFlags::END_OF_MESSAGE.union(MessageFlags::END_OF_RECORD)
        } else {
            MessageFlags::END_OF_MESSAGE
        }
    }
}

/// Whether the rest of `message` can be sent by reference: all of it, from the beginning of a
/// segment, in as many pieces as the link takes, one of them the header.
fn can_refer<L: Link>(message: &mut Message<'_, true>, granted: u32) -> bool {
    message.is_at_segment_start()
        && message.remaining() <= granted as usize
        && L::takes_pieces(message.pages(MAX_SKB_FRAGS as i32).saturating_add(1))
}

/// A header from `sock` to its peer, without what changes from packet to packet; [`dispatch`] writes
/// the credit.
fn header<L: Link>(sock: &HeldSock<'_>, operation: Operation) -> Header {
    Header {
        source: Address {
            cid: L::source_cid(sock.local().cid),
            ..sock.local()
        },
        destination: sock.remote(),
        len: 0,
        kind: sock.kind().to_wire(),
        operation,
        flags: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    }
}
