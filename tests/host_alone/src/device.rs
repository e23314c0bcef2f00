// SPDX-License-Identifier: GPL-2.0
//! /dev/vhost-vsock, as thin over its commands as their cases need it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::raw::c_ulong;
use std::time::Duration;

use anyhow::Context;
use rvsock_selftests::case::Skip;
use rvsock_selftests::errno::{check, Errno};
use vhost::vhost_kern::vhost_binding as raw;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_ptr};

use crate::memory::{Memory, BASE};

pub const PATH: &str = "/dev/vhost-vsock";

/// Features of the device, by their bits.
pub mod feature {
    pub const SEQPACKET: u64 = 1 << 1;
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const ANY_LAYOUT: u64 = 1 << 27;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Messages of the IOTLB in their second form.
pub const BACKEND_IOTLB_V2: u64 = 1 << 1;

/// The queues of a guest, by what they are to it.
pub const RX: u32 = 0;
pub const TX: u32 = 1;

pub struct Device(File);

impl Device {
    pub fn open() -> anyhow::Result<Self> {
        Self::try_open().context(PATH)
    }

    pub fn try_open() -> Result<Self, Errno> {
        let file = OpenOptions::new().read(true).write(true).open(PATH);
        Ok(Self(file?))
    }

    /// The same file once more; it is released when both are closed.
    pub fn duplicate(&self) -> anyhow::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// A command whose argument is `argument`, valid or not.
    pub fn command<T>(&self, number: c_ulong, argument: *mut T) -> Result<(), Errno> {
        // SAFETY: The kernel checks the pointer; whoever made it owns what is behind it.
        check(unsafe { ioctl_with_mut_ptr(&self.0, number, argument) })?;
        Ok(())
    }

    fn set<T>(&self, number: c_ulong, argument: &T) -> Result<(), Errno> {
        // SAFETY: Commands that go through here only read their argument, which is of their type.
        check(unsafe { ioctl_with_ptr(&self.0, number, argument) })?;
        Ok(())
    }

    pub fn set_owner(&self) -> Result<(), Errno> {
        // SAFETY: There is no argument.
        check(unsafe { ioctl(&self.0, raw::VHOST_SET_OWNER()) })?;
        Ok(())
    }

    pub fn reset_owner(&self) -> Result<(), Errno> {
        // SAFETY: There is no argument.
        check(unsafe { ioctl(&self.0, raw::VHOST_RESET_OWNER()) })?;
        Ok(())
    }

    pub fn features(&self) -> Result<u64, Errno> {
        let mut features = 0u64;
        self.command(raw::VHOST_GET_FEATURES(), &mut features)?;
        Ok(features)
    }

    pub fn set_features(&self, features: u64) -> Result<(), Errno> {
        self.set(raw::VHOST_SET_FEATURES(), &features)
    }

    pub fn backend_features(&self) -> Result<u64, Errno> {
        let mut features = 0u64;
        self.command(raw::VHOST_GET_BACKEND_FEATURES(), &mut features)?;
        Ok(features)
    }

    pub fn set_backend_features(&self, features: u64) -> Result<(), Errno> {
        self.set(raw::VHOST_SET_BACKEND_FEATURES(), &features)
    }

    pub fn set_cid(&self, cid: u64) -> Result<(), Errno> {
        self.set(raw::VHOST_VSOCK_SET_GUEST_CID(), &cid)
    }

    pub fn set_running(&self, running: i32) -> Result<(), Errno> {
        self.set(raw::VHOST_VSOCK_SET_RUNNING(), &running)
    }

    /// The regions of the guest's memory: where each is for it, how long, where it is for us.
    pub fn set_memory_table(&self, regions: &[(u64, u64, u64)]) -> Result<(), Errno> {
        let mut words = vec![regions.len() as u64];
        for (guest, size, host) in regions {
            words.extend([*guest, *size, *host, 0]);
        }
        self.command(raw::VHOST_SET_MEM_TABLE(), words.as_mut_ptr())
    }

    /// All of `memory`, in one region.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), Errno> {
        self.set_memory_table(&[(BASE, memory.size(), memory.host_address(BASE))])
    }

    pub fn set_queue_size(&self, index: u32, num: u32) -> Result<(), Errno> {
        let state = raw::vhost_vring_state { index, num };
        self.set(raw::VHOST_SET_VRING_NUM(), &state)
    }

    pub fn set_queue_base(&self, index: u32, num: u32) -> Result<(), Errno> {
        let state = raw::vhost_vring_state { index, num };
        self.set(raw::VHOST_SET_VRING_BASE(), &state)
    }

    pub fn queue_base(&self, index: u32) -> Result<u32, Errno> {
        let mut state = raw::vhost_vring_state { index, num: 0 };
        self.command(raw::VHOST_GET_VRING_BASE(), &mut state)?;
        Ok(state.num)
    }

    pub fn set_queue_addresses(&self, addresses: &raw::vhost_vring_addr) -> Result<(), Errno> {
        self.set(raw::VHOST_SET_VRING_ADDR(), addresses)
    }

    pub fn set_kick(&self, index: u32, event: Option<&EventFd>) -> Result<(), Errno> {
        self.set_event(raw::VHOST_SET_VRING_KICK(), index, event)
    }

    pub fn set_call(&self, index: u32, event: Option<&EventFd>) -> Result<(), Errno> {
        self.set_event(raw::VHOST_SET_VRING_CALL(), index, event)
    }

    pub fn set_error(&self, index: u32, event: Option<&EventFd>) -> Result<(), Errno> {
        self.set_event(raw::VHOST_SET_VRING_ERR(), index, event)
    }

    fn set_event(&self, number: c_ulong, index: u32, event: Option<&EventFd>) -> Result<(), Errno> {
        let fd = event.map_or(-1, AsRawFd::as_raw_fd);
        self.set(number, &raw::vhost_vring_file { index, fd })
    }

    /// Where dirty pages are marked, a bit each; the bitmap must stay as long as the device.
    pub fn set_log(&self, bitmap: &[u8]) -> Result<(), Errno> {
        self.set(raw::VHOST_SET_LOG_BASE(), &(bitmap.as_ptr() as u64))
    }

    pub fn write_message(&self, bytes: &[u8]) -> std::io::Result<usize> {
        (&self.0).write(bytes)
    }

    pub fn read_message(&self, bytes: &mut [u8]) -> std::io::Result<usize> {
        (&self.0).read(bytes)
    }

    /// Events among `events` that are there or come in time.
    pub fn poll(&self, events: i16, timeout: Duration) -> Result<i16, Errno> {
        poll(&self.0, events, timeout)
    }

    pub fn set_nonblocking(&self) -> Result<(), Errno> {
        // SAFETY: No memory involved.
        check(unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        Ok(())
    }
}

/// The events among `events` that a descriptor has, or gets in time.
pub fn poll(file: &impl AsRawFd, events: i16, timeout: Duration) -> Result<i16, Errno> {
    let mut entry = libc::pollfd {
        fd: file.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: There is one entry.
    check(unsafe { libc::poll(&mut entry, 1, timeout.as_millis() as i32) })?;
    Ok(entry.revents)
}

/// A case that a kernel without `what` cannot show.
pub fn skip<T>(what: &str) -> anyhow::Result<T> {
    Err(Skip(what.to_owned()).into())
}
