// SPDX-License-Identifier: GPL-2.0
//! Stops the kernel where a case needs it: at an access to memory that is not there yet.
//!
//! The memory is served by userfaultfd. A listener whose lock is held at such a place stops whoever
//! delivers packets to it; on loopback that is one worker for all sockets. C stops for any socket.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::case::{wait_until, Setup};
use crate::errno::{check, Errno};
use crate::socket::{Kind, Socket, SO_VM_SOCKETS_BUFFER_MIN_SIZE};

// linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFD_MSG_SIZE: usize = 32;

const PAGE: usize = 4096;

const A_DAY: Duration = Duration::from_secs(24 * 3600);

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
    mode: u64,
    /// `ioctls` of a registration, `zeropage` of a fill.
    result: u64,
}

/// A page that is not there: whoever touches it waits until [`StalledPage::release`].
pub struct StalledPage {
    address: usize,
    faults: OwnedFd,
}

impl StalledPage {
    pub fn new() -> anyhow::Result<Self> {
        // SAFETY: A new mapping; the descriptor is ours.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let address = libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0);
            anyhow::ensure!(address != libc::MAP_FAILED, "mmap failed");
            let fd = check(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC))
                .context("userfaultfd")?;
            let page = Self {
                address: address as usize,
                faults: OwnedFd::from_raw_fd(fd as i32),
            };
            let mut api = UffdioApi {
                api: UFFD_API,
                features: 0,
                ioctls: 0,
            };
            check(libc::ioctl(
                page.faults.as_raw_fd(),
                UFFDIO_API as _,
                &mut api,
            ))?;
            page.request(UFFDIO_REGISTER, UFFDIO_REGISTER_MODE_MISSING)
                .context("UFFDIO_REGISTER")?;
            Ok(page)
        }
    }

    fn request(&self, request: u64, mode: u64) -> anyhow::Result<()> {
        let mut range = UffdioRange {
            start: self.address as u64,
            len: PAGE as u64,
            mode,
            result: 0,
        };
        // SAFETY: Both requests take this structure, and concern the page only.
        check(unsafe { libc::ioctl(self.faults.as_raw_fd(), request as _, &mut range) })?;
        Ok(())
    }

    pub fn address(&self) -> *mut libc::c_void {
        self.address as *mut _
    }

    /// What is in the page. Waits as everybody does.
    fn bytes(&self, len: usize) -> Vec<u8> {
        // SAFETY: The page stays mapped; nobody writes into it while this is borrowed.
        unsafe { std::slice::from_raw_parts(self.address().cast::<u8>(), len.min(PAGE)) }.to_vec()
    }

    /// Waits until somebody waits for the page.
    pub fn wait_for_access(&self) -> anyhow::Result<()> {
        let mut message = [0u8; UFFD_MSG_SIZE];
        // SAFETY: There is room for the message.
        let result = unsafe {
            libc::read(
                self.faults.as_raw_fd(),
                message.as_mut_ptr().cast(),
                UFFD_MSG_SIZE,
            )
        };
        check(result as i64)?;
        Ok(())
    }

    /// Lets everybody go on; the page is full of zeros.
    pub fn release(&self) -> anyhow::Result<()> {
        self.request(UFFDIO_ZEROPAGE, 0).context("UFFDIO_ZEROPAGE")
    }
}

/// A socket whose lock is held, until this is released or dropped.
pub struct HeldLock {
    page: Arc<StalledPage>,
    holder: Option<JoinHandle<()>>,
}

impl HeldLock {
    pub fn of(socket: &Socket) -> anyhow::Result<Self> {
        let page = Arc::new(StalledPage::new()?);
        let (socket, at) = (socket.duplicate()?, page.clone());
        let holder = std::thread::spawn(move || {
            // The core of AF_VSOCK copies the value with the lock held. A smallest window of 0
            // bytes changes nothing.
            // SAFETY: The page is as long as stated.
            unsafe {
                let option = SO_VM_SOCKETS_BUFFER_MIN_SIZE;
                libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, option, at.address(), 8);
            }
        });
        let held = Self {
            page,
            holder: Some(holder),
        };
        held.page.wait_for_access()?;
        Ok(held)
    }

    pub fn release(mut self) -> anyhow::Result<()> {
        self.page.release()?;
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<()> {
        let Some(holder) = self.holder.take() else {
            return Ok(());
        };
        holder
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that held the lock panicked"))
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if self.holder.is_some() && self.page.release().is_ok() {
            let _ = self.join();
        }
    }
}

/// Nothing is delivered on loopback, until this is released or dropped.
pub struct StalledDelivery {
    lock: HeldLock,
    connecting: JoinHandle<Result<(), Errno>>,
    _listener: Socket,
}

impl StalledDelivery {
    pub fn new(setup: &Setup) -> anyhow::Result<Self> {
        let listener = Socket::listening(Kind::Stream)?;
        let address = setup.address(&listener)?;
        let lock = HeldLock::of(&listener)?;
        let client = Socket::new(Kind::Stream)?;
        client.set_connect_timeout(A_DAY)?;
        let end = client.duplicate()?;
        // Not without blocking: the timer of such a connect() keeps the socket until it expires.
        let connecting = std::thread::spawn(move || end.connect(address));
        // It gets its port and sends its request without giving the lock back.
        wait_until("connect() waits", || {
            client
                .port()
                .is_ok_and(|port| port != libc::VMADDR_PORT_ANY)
        })?;
        // Everything that is sent from now on comes behind the request.
        Ok(Self {
            lock,
            connecting,
            _listener: listener,
        })
    }

    pub fn release(self) -> anyhow::Result<()> {
        self.lock.release()?;
        self.connecting
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that connects panicked"))??;
        Ok(())
    }
}

/// A system call that waits for memory with the lock of a connection held, until this is released
/// or dropped.
pub struct StalledCall {
    page: Arc<StalledPage>,
    call: Option<JoinHandle<Result<usize, Errno>>>,
}

impl StalledCall {
    /// A `recv()` of what has come, into the page.
    pub fn reader(socket: &Socket) -> anyhow::Result<Self> {
        // SAFETY: The page is as long as stated.
        Self::new(socket, |fd, page| unsafe { libc::recv(fd, page, PAGE, 0) })
    }

    /// A `send()` of the page.
    pub fn writer(socket: &Socket) -> anyhow::Result<Self> {
        // SAFETY: As above.
        Self::new(socket, |fd, page| unsafe {
            libc::send(fd, page, PAGE, libc::MSG_NOSIGNAL)
        })
    }

    fn new(
        socket: &Socket,
        call: impl FnOnce(i32, *mut libc::c_void) -> isize + Send + 'static,
    ) -> anyhow::Result<Self> {
        let page = Arc::new(StalledPage::new()?);
        let (socket, at) = (socket.duplicate()?, page.clone());
        let call = std::thread::spawn(move || {
            check(call(socket.as_raw_fd(), at.address()) as i64).map(|len| len as usize)
        });
        let stalled = Self {
            page,
            call: Some(call),
        };
        stalled.page.wait_for_access()?;
        Ok(stalled)
    }

    /// Lets the call go on; the bytes of the page that it used.
    pub fn release(mut self) -> anyhow::Result<Vec<u8>> {
        self.page.release()?;
        let call = self.call.take().context("released twice")?;
        let len = call
            .join()
            .map_err(|_| anyhow::anyhow!("the thread of the call panicked"))??;
        Ok(self.page.bytes(len))
    }
}

impl Drop for StalledCall {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            if self.page.release().is_ok() {
                let _ = call.join();
            }
        }
    }
}
