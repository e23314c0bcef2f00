// SPDX-License-Identifier: GPL-2.0

//! A guest: its device, and what waits for it.

use crate::{
    flows::{Flows, Place},
    guest_to_host, host_to_guest,
    link::Host,
    registry::REGISTRY,
    retry::Retry,
};
use af_vsock::{for_each_connected, Net, OwnedNet, Sock};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{ordering, Atomic, AtomicFlag},
        Arc, SpinLock,
    },
    uaccess::{UserPtr, UserSlice},
};
use vhost::{Bell, Device, Driver};
use vsock_proto::Operation;
use vsock_transport::{Engine, Packet};

/// Numbers of the queues, as the guest calls them (section 5.10.2). The event queue is the
/// monitor's.
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;

/// Feature bit of seqpacket sockets (section 5.10.3).
const F_SEQPACKET: u32 = 1;

/// `VHOST_VSOCK_SET_GUEST_CID` and `VHOST_VSOCK_SET_RUNNING`.
const SET_GUEST_CID: u32 = kernel::ioctl::_IOW::<u64>(0xaf, 0x60);
const SET_RUNNING: u32 = kernel::ioctl::_IOW::<i32>(0xaf, 0x61);

/// `errno` of a host that does not answer; the kernel crate has no name for it.
const EHOSTUNREACH: i32 = 113;

/// A guest, as sockets see it.
#[pin_data]
pub(crate) struct Guest {
    bell: Arc<Bell>,
    /// The namespace of whoever opened the device.
    net: OwnedNet,
    /// 0 as long as there is none.
    cid: Atomic<u32>,
    has_seqpacket: AtomicFlag,
    is_running: AtomicFlag,
    /// Its connections are those of a guest that is no more.
    has_rebooted: AtomicFlag,
    /// The guest's packets wait until replies have been taken, or for memory.
    pub(crate) transmit_waits: AtomicFlag,
    /// Packets for the guest. Innermost lock: taken with a socket lock held, or that of a queue.
    #[pin]
    pub(crate) flows: SpinLock<Flows>,
    #[pin]
    retry: Retry,
}

impl Guest {
    fn new(bell: Arc<Bell>) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                retry <- Retry::new(bell.clone()),
                bell,
                net: OwnedNet::current(),
                cid: Atomic::new(0),
                has_seqpacket: AtomicFlag::new(false),
                is_running: AtomicFlag::new(false),
                has_rebooted: AtomicFlag::new(false),
                transmit_waits: AtomicFlag::new(false),
                flows <- new_spinlock!(Flows::new(), "Guest::flows"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The namespace whose sockets it talks to.
    pub(crate) fn net(&self) -> Net<'_> {
        self.net.borrow()
    }

    /// Its CID, if it has one.
    pub(crate) fn cid(&self) -> Option<u32> {
        Some(self.cid.load(ordering::Relaxed)).filter(|cid| *cid != 0)
    }

    /// Takes a CID, or 0 for none; returns the one it had.
    pub(crate) fn set_cid(&self, cid: u32) -> Option<u32> {
        Some(self.cid.xchg(cid, ordering::Full)).filter(|cid| *cid != 0)
    }

    /// Whether both sides know seqpacket sockets.
    pub(crate) fn has_seqpacket(&self) -> bool {
        self.has_seqpacket.load(ordering::Relaxed)
    }

    /// Whether connections to it are those of a guest that is no more.
    pub(crate) fn has_rebooted(&self) -> bool {
        self.has_rebooted.load(ordering::Relaxed)
    }

    /// Queues a packet for the guest. `ENODEV` if its device is closed.
    ///
    /// `EHOSTUNREACH` if it is not running, and its sender can be told: nobody may be listening
    /// there. What else a connection has to say waits, as the guest may be paused only.
    pub(crate) fn send(&self, mut packet: KBox<Packet<Host>>) -> Result {
        let can_wait = !matches!(
            packet.header.operation,
            Operation::Request | Operation::ReadWrite
        );
        let (mut place, mut has_tried) = (None, false);
        let left_over = loop {
            // A packet that is dropped wakes its sender, so not under the lock.
            let mut flows = self.flows.lock();
            // Asked with the lock held: who closes the device says so, and empties the queue then.
            if self.cid().is_none() {
                drop(flows);
                return Err(ENODEV);
            }
            if !can_wait && !self.is_running.load(ordering::Relaxed) {
                drop(flows);
                return Err(host_unreachable());
            }
            if has_tried && place.is_none() {
                break flows.push_anyway(packet);
            }
            match flows.push(packet, place.take()) {
                Ok(left_over) => break left_over,
                Err(back) => packet = back,
            }
            drop(flows);
            place = Place::new(GFP_KERNEL).ok();
            has_tried = true;
        };
        // Who queued the packet that it became a part of has rung.
        if left_over.is_none() {
            self.bell.ring();
        }
        Ok(())
    }

    /// Drops what waits for the guest from `sock`.
    pub(crate) fn cancel(&self, sock: &Sock) {
        let removed = self.flows.lock().remove_from(sock);
        drop(removed);
        // Fewer replies wait now; the worker finds out.
        self.bell.ring();
    }

    /// Looks at the guest's packets again after a pause: there was no memory for one. Sleeps.
    pub(crate) fn retry_later(&self) {
        self.transmit_waits.store(true, ordering::Release);
        self.retry.start();
    }

    /// Drops all that waits for the guest.
    fn forget(&self) {
        let left = self.flows.lock().take_all();
        drop(left);
    }
}

fn host_unreachable() -> Error {
    Error::from_errno(-EHOSTUNREACH)
}

/// What an open file of /dev/vhost-vsock stands for.
pub(crate) struct GuestDevice(Arc<Guest>);

impl GuestDevice {
    /// The guest behind the device.
    pub(crate) fn guest(&self) -> &Arc<Guest> {
        &self.0
    }
}

impl Driver for GuestDevice {
    const FEATURES: u64 = 1 << F_SEQPACKET;
    const PACKET_WEIGHT: i32 = 256;
    const BYTE_WEIGHT: i32 = 0x80000;

    fn open(bell: Arc<Bell>) -> Result<Self> {
        Ok(Self(Guest::new(bell)?))
    }

    fn set_features(&self, features: u64) {
        self.0
            .has_seqpacket
            .store(features & Self::FEATURES != 0, ordering::Relaxed);
    }

    fn started(&self) {
        self.0.is_running.store(true, ordering::Release);
        self.0.bell.ring();
    }

    fn stopped(&self) {
        self.0.is_running.store(false, ordering::Release);
        self.0.retry.cancel();
    }

    fn rebooted(&self) {
        self.0.has_rebooted.store(true, ordering::Release);
        for_each_connected::<Engine<Host>>();
        self.0.has_rebooted.store(false, ordering::Release);
        // What waited for this boot of the guest must not reach the next one.
        self.0.forget();
    }

    fn ioctl(device: &Device<Self>, command: u32, argument: UserPtr) -> Result {
        match command {
            SET_GUEST_CID => {
                let cid: u64 = UserSlice::new(argument, 8).reader().read()?;
                let registry = REGISTRY.get().ok_or(ENODEV)?;
                registry.insert(&device.driver().0, cid)
            }
            SET_RUNNING => {
                let start: i32 = UserSlice::new(argument, 4).reader().read()?;
                if start != 0 {
                    device.start()
                } else {
                    device.stop()
                }
            }
            _ => Err(ENOIOCTLCMD),
        }
    }

    fn kicked(device: &Device<Self>, queue: usize) {
        if queue == TX {
            guest_to_host::run(device);
        } else {
            host_to_guest::run(device);
        }
    }

    fn rung(device: &Device<Self>) {
        host_to_guest::run(device);
    }

    fn release(&self) {
        if let Some(registry) = REGISTRY.get() {
            registry.remove(&self.0);
        }
        for_each_connected::<Engine<Host>>();
    }

    fn closed(&self) {
        self.0.forget();
    }
}
