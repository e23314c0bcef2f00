// SPDX-License-Identifier: GPL-2.0

//! Stream sockets that the kernel owns.

use crate::{pieces::empty_message, Pieces, CID_ANY};
use core::{mem, ptr, ptr::NonNull};
use kernel::{error::to_result, ffi::c_int, prelude::*};
use rvsock_bindings::bindings;
use vsock_proto::Address;

/// A stream socket of AF_VSOCK; closed when dropped.
///
/// # Invariants
///
/// The pointer is a valid socket of that kind, which nobody else releases.
pub struct Socket(NonNull<bindings::socket>);

// SAFETY: Sockets may be used from any thread; they have locks.
unsafe impl Send for Socket {}
// SAFETY: As above.
unsafe impl Sync for Socket {}

/// Neither waits, nor kills the task if the peer is gone.
const FLAGS: c_int = (bindings::MSG_DONTWAIT | bindings::MSG_NOSIGNAL) as c_int;

const ADDRESS_LEN: c_int = mem::size_of::<bindings::sockaddr_vm>() as c_int;

impl Socket {
    /// A socket in a network namespace, to which it holds a reference.
    ///
    /// # Safety
    ///
    /// `net` has to be a namespace that is alive.
    pub unsafe fn new(net: *mut bindings::net) -> Result<Self> {
        let mut socket = ptr::null_mut();
        let family = bindings::AF_VSOCK as c_int;
        let kind = bindings::sock_type_SOCK_STREAM as c_int;
        // SAFETY: The namespace is alive by the requirements of this function.
        to_result(unsafe { bindings::__sock_create(net, family, kind, 0, &mut socket, 1) })?;
        // INVARIANT: It was made just now.
        let socket = Self(NonNull::new(socket).ok_or(ENOMEM)?);
        // Work that the core does after close() may outlive what the user knows of the namespace.
        // SAFETY: The socket is new; it counts no reference to its namespace yet.
        unsafe { bindings::sk_net_refcnt_upgrade(socket.sk()) };
        Ok(socket)
    }

    pub(crate) fn sk(&self) -> *mut bindings::sock {
        // SAFETY: By the type invariants the socket is valid, and has had a `struct sock` since it
        // was made.
        unsafe { (*self.0.as_ptr()).sk.cast() }
    }

    /// Binds the socket to a port, with any CID of this machine.
    pub fn bind(&self, port: u32) -> Result {
        let mut address = to_sockaddr(Address::new(CID_ANY, port));
        let address = (&raw mut address).cast();
        // SAFETY: The socket is valid, and so is the address.
        to_result(unsafe { bindings::kernel_bind(self.0.as_ptr(), address, ADDRESS_LEN) })
    }

    /// Makes the socket a listener.
    pub fn listen(&self, backlog: c_int) -> Result {
        // SAFETY: The socket is valid.
        to_result(unsafe { bindings::kernel_listen(self.0.as_ptr(), backlog) })
    }

    /// A connection to this listener; `None` if there is none now.
    pub fn accept(&self) -> Result<Option<Self>> {
        let mut child = ptr::null_mut();
        let flags = bindings::O_NONBLOCK as c_int;
        // SAFETY: The socket is valid.
        let result = unsafe { bindings::kernel_accept(self.0.as_ptr(), &mut child, flags) };
        match to_result(result) {
            // INVARIANT: It was made for us just now.
            Ok(()) => Ok(NonNull::new(child).map(Self)),
            Err(error) if error == EAGAIN => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Connects; waits for the peer, as long as the socket's own time limit says (2 s).
    pub fn connect(&self, peer: Address) -> Result {
        let mut address = to_sockaddr(peer);
        let address = (&raw mut address).cast();
        // SAFETY: The socket is valid, and so is the address.
        to_result(unsafe { bindings::kernel_connect(self.0.as_ptr(), address, ADDRESS_LEN, 0) })
    }

    /// The address of the other end.
    pub fn peer(&self) -> Result<Address> {
        self.address(bindings::kernel_getpeername)
    }

    /// The address of this end.
    pub fn local(&self) -> Result<Address> {
        self.address(bindings::kernel_getsockname)
    }

    fn address<T>(
        &self,
        get: unsafe extern "C" fn(*mut bindings::socket, *mut T) -> c_int,
    ) -> Result<Address> {
        // What is asked for has room for any family.
        let mut storage: bindings::__kernel_sockaddr_storage = pin_init::zeroed();
        // SAFETY: The socket is valid; the function writes an address to the storage.
        to_result(unsafe { get(self.0.as_ptr(), (&raw mut storage).cast()) })?;
        // SAFETY: The storage is larger than any address, and aligned for it.
        let address = unsafe { &*(&raw const storage).cast::<bindings::sockaddr_vm>() };
        Ok(Address::new(address.svm_cid, address.svm_port))
    }

    /// Sets how many bytes the peer may send before somebody reads, and how many may be under way
    /// to it.
    pub fn set_buffer_size(&self, bytes: u64) -> Result {
        for option in [
            bindings::SO_VM_SOCKETS_BUFFER_MAX_SIZE,
            bindings::SO_VM_SOCKETS_BUFFER_SIZE,
        ] {
            // SAFETY: The socket is valid.
            to_result(unsafe {
                bindings::socket_set_u64(self.0.as_ptr(), option as c_int, bytes)
            })?;
        }
        Ok(())
    }

    /// Ends the connection in both directions.
    pub fn shutdown(&self) {
        let how = bindings::sock_shutdown_cmd_SHUT_RDWR;
        // An error says that there is no connection to end.
        // SAFETY: The socket is valid.
        let _ = unsafe { bindings::kernel_sock_shutdown(self.0.as_ptr(), how) };
    }

    /// Whether there is room to send.
    pub fn is_writable(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { bindings::socket_is_writable(self.0.as_ptr()) }
    }

    /// Whether the connection has ended, in one direction at least.
    pub fn is_over(&self) -> bool {
        // SAFETY: The socket is valid.
        unsafe { bindings::socket_is_over(self.sk()) }
    }

    /// Receives what is there, into `bytes`; 0 if nothing will come any more, `EAGAIN` if nothing
    /// is there yet.
    pub fn receive(&self, bytes: &mut [u8]) -> Result<usize> {
        let mut message = empty_message();
        let mut piece = bindings::kvec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let (socket, length) = (self.0.as_ptr(), bytes.len());
        // SAFETY: The socket is valid, and the one piece is a slice that is ours.
        count(unsafe {
            bindings::kernel_recvmsg(socket, &mut message, &mut piece, 1, length, FLAGS)
        })
    }

    /// As [`Socket::receive`], into pieces, behind the first `skipped` bytes.
    pub fn receive_pieces(&self, pieces: Pieces<'_>, skipped: usize) -> Result<usize> {
        let mut message = pieces.message(bindings::ITER_DEST, skipped);
        // SAFETY: The socket is valid, and the message by its construction.
        count(unsafe { bindings::sock_recvmsg(self.0.as_ptr(), &mut message, FLAGS) })
    }

    /// Sends `pieces` without their first `skipped` bytes, as far as there is room; `EAGAIN` if
    /// there is none.
    pub fn send_pieces(&self, pieces: Pieces<'_>, skipped: usize) -> Result<usize> {
        self.send(pieces, skipped, 0)
    }

    /// As [`Socket::send_pieces`], but the socket may refer to the pages instead of copying them:
    /// what is in them should not change until the peer has it. Not all transports do so.
    pub fn splice_pieces(&self, pieces: Pieces<'_>, skipped: usize) -> Result<usize> {
        self.send(pieces, skipped, bindings::MSG_SPLICE_PAGES)
    }

    fn send(&self, pieces: Pieces<'_>, skipped: usize, flags: u32) -> Result<usize> {
        let mut message = pieces.message(bindings::ITER_SOURCE, skipped);
        message.msg_flags = FLAGS as u32 | flags;
        // SAFETY: The socket is valid, and the message by its construction.
        count(unsafe { bindings::sock_sendmsg(self.0.as_ptr(), &mut message) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is ours to release.
        unsafe { bindings::sock_release(self.0.as_ptr()) }
    }
}

fn count(result: c_int) -> Result<usize> {
    to_result(result)?;
    Ok(result as usize)
}

fn to_sockaddr(address: Address) -> bindings::sockaddr_vm {
    let mut out: bindings::sockaddr_vm = pin_init::zeroed();
    out.svm_family = bindings::AF_VSOCK as u16;
    out.svm_cid = address.cid;
    out.svm_port = address.port;
    out
}
