// SPDX-License-Identifier: GPL-2.0
//! What a capture on a vsockmon device shows.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Context};

use crate::case::{Setup, Skip, PATIENCE};
use crate::errno::{check, Errno};
use crate::pattern::Pattern;
use crate::socket::{Kind, Pair};
use crate::{cases, ensure_eq};

cases!("monitor":
    a_capture_shows_every_packet_of_a_conversation_once,
    a_capture_shows_the_payload_of_zero_copy_sends,
);

const DEVICE: &str = "vsockmon-test";

// linux/vsockmon.h
const MONITOR_HEADER_LEN: usize = 32;
const OP_CONNECT: u16 = 1;
const OP_DISCONNECT: u16 = 2;
const OP_CONTROL: u16 = 3;
const OP_PAYLOAD: u16 = 4;
const TRANSPORT_VIRTIO: u16 = 2;

// linux/virtio_vsock.h
const HEADER_LEN: usize = 44;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const READ_WRITE: u16 = 5;

/// A vsockmon device with a packet socket on it.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn new() -> anyhow::Result<Self> {
        // Of a case that was killed.
        let _ = ip(&["link", "delete", DEVICE]);
        if !ip(&["link", "add", DEVICE, "type", "vsockmon"])? {
            return Err(Skip(
                "no vsockmon device can be made (module vsockmon, CAP_NET_ADMIN)".into(),
            )
            .into());
        }
        ensure!(
            ip(&["link", "set", DEVICE, "up"])?,
            "the device does not come up"
        );
        let capture = Self(packet_socket()?);
        capture.bind()?;
        Ok(capture)
    }

    fn bind(&self) -> anyhow::Result<()> {
        let name = CString::new(DEVICE)?;
        // SAFETY: The name is a string; the address consists of integers.
        unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            ensure!(index != 0, "{DEVICE}: {}", Errno::last());
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = EVERYTHING;
            address.sll_ifindex = index as i32;
            let len = size_of_val(&address) as u32;
            check(libc::bind(
                self.0.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                len,
            ))?;
        }
        Ok(())
    }

    /// The next frame; none if there is none in time.
    fn next(&self, timeout: Duration) -> anyhow::Result<Option<Frame>> {
        let mut entry = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut bytes = vec![0; 1 << 17];
        // SAFETY: There are one entry and as much room as stated.
        let len = unsafe {
            if check(libc::poll(&mut entry, 1, timeout.as_millis() as i32))? == 0 {
                return Ok(None);
            }
            check(libc::recv(
                entry.fd,
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                libc::MSG_TRUNC,
            ) as i64)?
        };
        ensure!(len as usize <= bytes.len(), "a frame of {len} bytes");
        bytes.truncate(len as usize);
        ensure!(
            bytes.len() >= MONITOR_HEADER_LEN + HEADER_LEN,
            "a frame of {len} bytes"
        );
        Ok(Some(Frame(bytes)))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", DEVICE]);
    }
}

/// `ETH_P_ALL`, in network order.
const EVERYTHING: u16 = (libc::ETH_P_ALL as u16).to_be();

fn packet_socket() -> anyhow::Result<OwnedFd> {
    let room: i32 = 16 << 20;
    // SAFETY: The descriptor is ours, the option an int.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let socket = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_PACKET,
            kind,
            EVERYTHING.into(),
        ))?);
        let value = std::ptr::from_ref(&room).cast();
        check(libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            value,
            4,
        ))?;
        Ok(socket)
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<bool> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    Ok(output.status.success())
}

/// A captured packet: what vsockmon says of it, its header, its payload.
struct Frame(Vec<u8>);

impl Frame {
    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().unwrap()
    }

    /// Ports of source and destination.
    fn ports(&self) -> (u32, u32) {
        (
            u32::from_le_bytes(self.number(16)),
            u32::from_le_bytes(self.number(20)),
        )
    }

    fn monitor_op(&self) -> u16 {
        u16::from_le_bytes(self.number(24))
    }

    fn op(&self) -> u16 {
        u16::from_le_bytes(self.number(MONITOR_HEADER_LEN + 30))
    }

    fn payload(&self) -> &[u8] {
        &self.0[MONITOR_HEADER_LEN + HEADER_LEN..]
    }

    /// What holds for every frame: both headers say the same.
    fn check(&self, setup: &Setup) -> anyhow::Result<()> {
        for at in [0, 8, MONITOR_HEADER_LEN, MONITOR_HEADER_LEN + 8] {
            ensure_eq!(
                u64::from_le_bytes(self.number(at)),
                u64::from(setup.cid),
                "CID at {at}"
            );
        }
        let ports: [u8; 8] = self.number(MONITOR_HEADER_LEN + 16);
        ensure_eq!(ports, self.number::<8>(16));
        ensure_eq!(u16::from_le_bytes(self.number(26)), TRANSPORT_VIRTIO);
        ensure_eq!(u16::from_le_bytes(self.number(28)), HEADER_LEN as u16);
        let len = u32::from_le_bytes(self.number(MONITOR_HEADER_LEN + 24));
        ensure_eq!(self.payload().len(), len as usize);
        Ok(())
    }
}

fn a_capture_shows_every_packet_of_a_conversation_once(setup: &Setup) -> anyhow::Result<()> {
    let capture = Capture::new()?;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let (there, back) = (
        (client.port()?, server.port()?),
        (server.port()?, client.port()?),
    );
    client.send_all(b"question")?;
    ensure_eq!(server.recv_exact(8)?, b"question");
    server.send_all(b"answer")?;
    ensure_eq!(client.recv_exact(6)?, b"answer");
    drop(client);
    super::ending::gone(&server)?;
    drop(server);

    let expected = [
        (there, OP_CONNECT, REQUEST, &b""[..]),
        (back, OP_CONNECT, RESPONSE, b""),
        (there, OP_PAYLOAD, READ_WRITE, b"question"),
        (back, OP_PAYLOAD, READ_WRITE, b"answer"),
        (there, OP_DISCONNECT, SHUTDOWN, b""),
        (back, OP_DISCONNECT, RESET, b""),
    ];
    let mut rest = expected.iter();
    while let Some(frame) = capture.next(if rest.len() > 0 {
        PATIENCE
    } else {
        crate::case::A_WHILE
    })? {
        // When credit is updated is left to the implementation; others may use vsock, too.
        if ![there, back].contains(&frame.ports()) {
            continue;
        }
        frame.check(setup)?;
        // C sends a second reset when the socket closes.
        let is_repeated = rest.len() == 0 && frame.op() == RESET;
        if frame.monitor_op() == OP_CONTROL || is_repeated {
            continue;
        }
        let seen = (
            frame.ports(),
            frame.monitor_op(),
            frame.op(),
            frame.payload(),
        );
        ensure_eq!(Some(&seen), rest.next());
    }
    ensure_eq!(rest.len(), 0, "packets are missing");
    Ok(())
}

fn a_capture_shows_the_payload_of_zero_copy_sends(setup: &Setup) -> anyhow::Result<()> {
    const LEN: usize = 200_000;
    let capture = Capture::new()?;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    client.set_zerocopy()?;
    let ports = (client.port()?, server.port()?);
    let pattern = Pattern::new(40);
    let bytes = pattern.bytes(0, LEN);
    ensure_eq!(client.send(&bytes, libc::MSG_ZEROCOPY)?, LEN);
    pattern.check(0, &server.recv_exact(LEN)?)?;

    let mut position = 0;
    while position < LEN {
        let frame = capture.next(PATIENCE)?.context("packets are missing")?;
        if frame.ports() == ports && frame.op() == READ_WRITE {
            frame.check(setup)?;
            pattern.check(position as u64, frame.payload())?;
            position += frame.payload().len();
        }
    }
    ensure_eq!(position, LEN);
    Ok(())
}
