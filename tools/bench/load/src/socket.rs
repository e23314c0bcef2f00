// SPDX-License-Identifier: GPL-2.0
//! Stream sockets of AF_VSOCK; once connected they are read and written as files are.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn new() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes are a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Seconds to wait for an answer. The kernel's 2 s are not enough for a busy machine that emulates
/// another one.
const CONNECT_TIMEOUT: libc::time_t = 30;

/// Option of AF_VSOCK sockets (`SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD`), which libc does not know.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

fn set_connect_timeout(socket: &OwnedFd) -> io::Result<()> {
    let timeout = libc::timeval {
        tv_sec: CONNECT_TIMEOUT,
        tv_usec: 0,
    };
    // SAFETY: the value is valid for the length given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    })
    .map(drop)
}

pub fn connect(cid: u32, port: u32) -> io::Result<File> {
    let socket = new()?;
    set_connect_timeout(&socket)?;
    let address = address(cid, port);
    // SAFETY: the address is valid for the length given.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    Ok(File::from(socket))
}

/// A socket that listens on a port of every CID.
pub struct Listener(OwnedFd);

impl Listener {
    pub fn new(port: u32) -> io::Result<Self> {
        let socket = new()?;
        let address = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: the address is valid for the length given.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
        // SAFETY: listen takes no pointers.
        check(unsafe { libc::listen(socket.as_raw_fd(), 128) })?;
        Ok(Self(socket))
    }

    pub fn accept(&self) -> io::Result<File> {
        let none = std::ptr::null_mut();
        // SAFETY: the address of the peer is not asked for.
        let fd = check(unsafe {
            libc::accept4(self.0.as_raw_fd(), none, none.cast(), libc::SOCK_CLOEXEC)
        })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

pub fn set_nonblocking(socket: &File) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFL takes no pointers.
    check(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// Whether there is room to write within some time.
pub fn wait_writable(socket: &File, milliseconds: libc::c_int) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: there is one valid pollfd.
    check(unsafe { libc::poll(&mut poll, 1, milliseconds) }).map(|ready| ready > 0)
}
