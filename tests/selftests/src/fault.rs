// SPDX-License-Identifier: GPL-2.0
//! Stops the kernel where a case needs it: at an access to memory that is not there yet.
//!
//! The memory is served by userfaultfd. A socket whose lock is held at such a place stops whoever
//! delivers packets to it; on loopback that is one worker for all sockets.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;

use crate::case::{wait_until, Setup};
use crate::errno::check;
use crate::socket::{Kind, Pair, Socket, SO_VM_SOCKETS_BUFFER_MIN_SIZE};

// linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFD_MSG_SIZE: usize = 32;

const PAGE: usize = 4096;

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
    _pair: Pair,
}

impl StalledDelivery {
    pub fn new(setup: &Setup) -> anyhow::Result<Self> {
        let pair = setup.pair(Kind::Stream)?;
        let lock = HeldLock::of(&pair.server)?;
        pair.client.send(b"!", 0)?;
        // It is off the queue and with the worker, who waits for the lock.
        wait_until("the worker takes a packet", || {
            pair.client.unsent() == Ok(0)
        })?;
        Ok(Self { lock, _pair: pair })
    }

    pub fn release(self) -> anyhow::Result<()> {
        self.lock.release()
    }
}
