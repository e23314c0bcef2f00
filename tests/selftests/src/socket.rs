// SPDX-License-Identifier: GPL-2.0
//! AF_VSOCK sockets, as thin over the system calls as their cases need it.

use std::mem::{size_of, size_of_val, zeroed, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{from_mut, from_ref, null_mut};
use std::time::Duration;

use crate::case::{Setup, PATIENCE};
use crate::ensure_eq;
use crate::errno::{check, Errno};
use crate::relay;

/// What a socket's window is unless somebody changes it (`VSOCK_DEFAULT_BUFFER_SIZE`).
pub const DEFAULT_WINDOW: usize = 256 * 1024;

/// Options of `linux/vm_sockets.h` that the libc crate lacks or has under other names.
pub const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
pub const SO_VM_SOCKETS_BUFFER_MIN_SIZE: i32 = 1;
pub const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;
pub const SO_VM_SOCKETS_CONNECT_TIMEOUT: i32 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Stream,
    Seqpacket,
}

impl Kind {
    fn as_raw(self) -> i32 {
        match self {
            Self::Stream => libc::SOCK_STREAM,
            Self::Seqpacket => libc::SOCK_SEQPACKET,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    pub cid: u32,
    pub port: u32,
}

impl Address {
    /// Any CID, any port.
    pub const ANY: Self = Self {
        cid: libc::VMADDR_CID_ANY,
        port: libc::VMADDR_PORT_ANY,
    };

    pub fn new(cid: u32, port: u32) -> Self {
        Self { cid, port }
    }

    fn to_raw(self) -> libc::sockaddr_vm {
        // SAFETY: Consists of integers.
        let mut raw: libc::sockaddr_vm = unsafe { zeroed() };
        raw.svm_family = libc::AF_VSOCK as u16;
        raw.svm_cid = self.cid;
        raw.svm_port = self.port;
        raw
    }
}

const ADDRESS_LEN: u32 = size_of::<libc::sockaddr_vm>() as u32;

/// What `recvmsg()` says beside the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    pub len: usize,
    pub flags: i32,
}

/// Bytes that `recv()` took, with the buffer they are in.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Socket {
    pub fn new(kind: Kind) -> Result<Self, Errno> {
        // SAFETY: The descriptor is ours.
        unsafe {
            let fd = check(libc::socket(
                libc::AF_VSOCK,
                kind.as_raw() | libc::SOCK_CLOEXEC,
                0,
            ))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Its descriptor, to be closed by the caller.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The same socket once more; it is closed when both are.
    pub fn duplicate(&self) -> Result<Self, Errno> {
        // SAFETY: The descriptor is ours.
        unsafe {
            let fd = check(libc::fcntl(self.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// A socket that listens on any CID and a port of the kernel's choice.
    pub fn listening(kind: Kind) -> Result<Self, Errno> {
        let socket = Self::new(kind)?;
        socket.bind(Address::ANY)?;
        socket.listen(128)?;
        Ok(socket)
    }

    pub fn bind(&self, address: Address) -> Result<(), Errno> {
        let raw = address.to_raw();
        // SAFETY: The address is valid.
        check(unsafe { libc::bind(self.as_raw_fd(), from_ref(&raw).cast(), ADDRESS_LEN) })?;
        Ok(())
    }

    pub fn listen(&self, backlog: i32) -> Result<(), Errno> {
        // SAFETY: No memory involved.
        check(unsafe { libc::listen(self.as_raw_fd(), backlog) })?;
        Ok(())
    }

    pub fn connect(&self, address: Address) -> Result<(), Errno> {
        self.connect_with(address, 0)
    }

    /// Connects, with `svm_flags` in the address.
    pub fn connect_with(&self, address: Address, flags: u8) -> Result<(), Errno> {
        let mut raw = address.to_raw();
        // The libc crate does not know of them.
        raw.svm_zero[0] = flags;
        // SAFETY: The address is valid.
        check(unsafe { libc::connect(self.as_raw_fd(), from_ref(&raw).cast(), ADDRESS_LEN) })?;
        Ok(())
    }

    pub fn accept(&self) -> Result<Self, Errno> {
        // SAFETY: No address is asked for; the descriptor is ours.
        unsafe {
            let fd = check(libc::accept4(
                self.as_raw_fd(),
                null_mut(),
                null_mut(),
                libc::SOCK_CLOEXEC,
            ))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The port this is bound to.
    pub fn port(&self) -> Result<u32, Errno> {
        let mut raw = Address::ANY.to_raw();
        let mut len = ADDRESS_LEN;
        // SAFETY: The address has room for what the length says.
        check(unsafe { libc::getsockname(self.as_raw_fd(), from_mut(&mut raw).cast(), &mut len) })?;
        Ok(raw.svm_port)
    }

    /// Who this is connected to.
    pub fn peer(&self) -> Result<Address, Errno> {
        let mut raw = Address::ANY.to_raw();
        let mut len = ADDRESS_LEN;
        // SAFETY: The address has room for what the length says.
        check(unsafe { libc::getpeername(self.as_raw_fd(), from_mut(&mut raw).cast(), &mut len) })?;
        Ok(Address {
            cid: raw.svm_cid,
            port: raw.svm_port,
        })
    }

    pub fn send(&self, bytes: &[u8], flags: i32) -> Result<usize, Errno> {
        // No signal, unless a case asks for that.
        let flags = flags | libc::MSG_NOSIGNAL;
        self.send_raw(bytes.as_ptr(), bytes.len(), flags)
    }

    /// As [`Socket::send`], from memory that need not be there, and with exactly these flags.
    pub fn send_raw(&self, data: *const u8, len: usize, flags: i32) -> Result<usize, Errno> {
        // SAFETY: The kernel checks the memory, which is only read.
        let sent = check(unsafe { libc::send(self.as_raw_fd(), data.cast(), len, flags) } as i64)?;
        Ok(sent as usize)
    }

    pub fn send_all(&self, bytes: &[u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.send(rest, 0)?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    pub fn recv(&self, buffer: &mut [u8], flags: i32) -> Result<usize, Errno> {
        self.recv_message(buffer, flags)
            .map(|received| received.len)
    }

    pub fn recv_message(&self, buffer: &mut [u8], flags: i32) -> Result<Received, Errno> {
        let mut segment = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: Consists of integers and pointers.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &mut segment;
        message.msg_iovlen = 1;
        let len = loop {
            // SAFETY: The message describes the buffer.
            let len = unsafe { libc::recvmsg(self.as_raw_fd(), &mut message, flags) };
            match check(len as i64) {
                // With a timeout a call is not restarted, and io_uring interrupts its thread when
                // a send of that has completed.
                Err(Errno(libc::EINTR)) => {}
                result => break result?,
            }
        };
        Ok(Received {
            len: len as usize,
            flags: message.msg_flags,
        })
    }

    /// Up to `len` bytes.
    pub fn recv_vec(&self, len: usize, flags: i32) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; len];
        let got = self.recv(&mut buffer, flags)?;
        buffer.truncate(got);
        Ok(buffer)
    }

    /// Exactly `len` bytes, or what there is before the end of the stream.
    pub fn recv_exact(&self, len: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self.recv(&mut buffer[filled..], 0)? {
                0 => break,
                got => filled += got,
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    pub fn shutdown(&self, how: i32) -> Result<(), Errno> {
        // SAFETY: No memory involved.
        check(unsafe { libc::shutdown(self.as_raw_fd(), how) })?;
        Ok(())
    }

    /// `value` must be what the kernel expects for the option: a number, or a C structure.
    pub fn set<T: Copy>(&self, level: i32, name: i32, value: T) -> Result<(), Errno> {
        let len = size_of_val(&value) as u32;
        // SAFETY: The value is as long as stated.
        check(unsafe {
            libc::setsockopt(self.as_raw_fd(), level, name, from_ref(&value).cast(), len)
        })?;
        Ok(())
    }

    fn get<T: Copy>(&self, level: i32, name: i32) -> Result<T, Errno> {
        let mut value = MaybeUninit::<T>::zeroed();
        let mut len = size_of::<T>() as u32;
        // SAFETY: There is room for what the length says; only plain numbers are asked for.
        unsafe {
            check(libc::getsockopt(
                self.as_raw_fd(),
                level,
                name,
                value.as_mut_ptr().cast(),
                &mut len,
            ))?;
            Ok(value.assume_init())
        }
    }

    /// `SO_VM_SOCKETS_BUFFER_SIZE`, and the limits beside it.
    pub fn set_window(&self, bytes: u64) -> Result<(), Errno> {
        if bytes > DEFAULT_WINDOW as u64 {
            self.set(libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, bytes)?;
        }
        self.set(libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, bytes)
    }

    pub fn window(&self) -> Result<u64, Errno> {
        self.get(libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE)
    }

    pub fn set_connect_timeout(&self, timeout: Duration) -> Result<(), Errno> {
        self.set(
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            timeval(timeout),
        )
    }

    /// How long `recv()` and `accept()` wait.
    pub fn set_receive_timeout(&self, timeout: Duration) -> Result<(), Errno> {
        self.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, timeval(timeout))
    }

    pub fn set_send_timeout(&self, timeout: Duration) -> Result<(), Errno> {
        self.set(libc::SOL_SOCKET, libc::SO_SNDTIMEO, timeval(timeout))
    }

    /// `SO_LINGER`, with this timeout.
    pub fn set_linger(&self, seconds: i32) -> Result<(), Errno> {
        self.set(
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            libc::linger {
                l_onoff: 1,
                l_linger: seconds,
            },
        )
    }

    pub fn set_low_water(&self, bytes: i32) -> Result<(), Errno> {
        self.set(libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
    }

    pub fn set_zerocopy(&self) -> Result<(), Errno> {
        self.set(libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1i32)
    }

    pub fn set_nonblocking(&self) -> Result<(), Errno> {
        // SAFETY: No memory involved.
        check(unsafe { libc::fcntl(self.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        Ok(())
    }

    pub fn kind(&self) -> Result<Kind, Errno> {
        let kind: i32 = self.get(libc::SOL_SOCKET, libc::SO_TYPE)?;
        Ok(match kind {
            libc::SOCK_STREAM => Kind::Stream,
            _ => Kind::Seqpacket,
        })
    }

    /// `SO_ERROR`; none if it is 0.
    pub fn take_error(&self) -> Result<Option<Errno>, Errno> {
        let error: i32 = self.get(libc::SOL_SOCKET, libc::SO_ERROR)?;
        Ok((error != 0).then_some(Errno(error)))
    }

    /// Bytes that can be read (`SIOCINQ`).
    pub fn unread(&self) -> Result<usize, Errno> {
        self.count(libc::FIONREAD)
    }

    /// Bytes of memory charged for what was sent and nobody has taken (`SK_MEMINFO_WMEM_ALLOC`).
    pub fn memory_unsent(&self) -> Result<u32, Errno> {
        const SO_MEMINFO: i32 = 55;
        const WMEM_ALLOC: usize = 2;
        let memory: [u32; 9] = self.get(libc::SOL_SOCKET, SO_MEMINFO)?;
        Ok(memory[WMEM_ALLOC])
    }

    /// Bytes that have not left (`SIOCOUTQ`).
    pub fn unsent(&self) -> Result<usize, Errno> {
        self.count(libc::TIOCOUTQ)
    }

    fn count(&self, request: libc::c_ulong) -> Result<usize, Errno> {
        let mut count: i32 = 0;
        // SAFETY: The request writes an int.
        check(unsafe { libc::ioctl(self.as_raw_fd(), request as _, &mut count) })?;
        Ok(count as usize)
    }

    /// The events among `events`, and `POLLERR` and `POLLHUP`, that are there or come in time.
    pub fn poll(&self, events: i16, timeout: Duration) -> Result<i16, Errno> {
        let mut entry = libc::pollfd {
            fd: self.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: There is one entry.
        check(unsafe { libc::poll(&mut entry, 1, timeout.as_millis() as i32) })?;
        Ok(entry.revents)
    }

    /// The events of a socket that can be waited for, as they are now.
    pub fn events(&self) -> Result<i16, Errno> {
        self.poll(
            libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP,
            Duration::ZERO,
        )
    }
}

fn timeval(duration: Duration) -> libc::timeval {
    libc::timeval {
        tv_sec: duration.as_secs() as i64,
        tv_usec: duration.subsec_micros().into(),
    }
}

/// Both ends of a connection.
pub struct Pair {
    pub client: Socket,
    pub server: Socket,
}

impl Pair {
    /// A question and its answer, to see that the connection works.
    pub fn converse(&self) -> anyhow::Result<()> {
        self.client.send_all(b"question")?;
        ensure_eq!(self.server.recv_exact(8)?, b"question");
        self.server.send_all(b"answer")?;
        ensure_eq!(self.client.recv_exact(6)?, b"answer");
        Ok(())
    }
}

impl Setup {
    /// Where a socket of this kernel is reached.
    pub fn address(&self, socket: &Socket) -> Result<Address, Errno> {
        let port = match self.relay {
            Some(relay) => relay::ask(Address::new(self.cid, relay), socket)?,
            None => socket.port()?,
        };
        Ok(Address::new(self.cid, port))
    }

    /// A socket connected to `listener`.
    pub fn connected_to(&self, listener: &Socket, kind: Kind) -> Result<Socket, Errno> {
        let socket = Socket::new(kind)?;
        socket.set_connect_timeout(PATIENCE)?;
        socket.connect(self.address(listener)?)?;
        Ok(socket)
    }

    pub fn pair(&self, kind: Kind) -> Result<Pair, Errno> {
        self.pair_with_windows(kind, DEFAULT_WINDOW as u64, DEFAULT_WINDOW as u64)
    }

    /// A connection whose ends have windows of these sizes from the beginning.
    pub fn pair_with_windows(
        &self,
        kind: Kind,
        client_window: u64,
        server_window: u64,
    ) -> Result<Pair, Errno> {
        let listener = Socket::listening(kind)?;
        listener.set_window(server_window)?;
        let client = Socket::new(kind)?;
        client.set_connect_timeout(PATIENCE)?;
        client.set_window(client_window)?;
        client.connect(self.address(&listener)?)?;
        let server = listener.accept()?;
        // What does not happen must not hang the case.
        for end in [&client, &server] {
            end.set_receive_timeout(PATIENCE)?;
            end.set_send_timeout(PATIENCE)?;
        }
        Ok(Pair { client, server })
    }
}
