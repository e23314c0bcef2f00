// SPDX-License-Identifier: GPL-2.0

//! Guests by their CIDs.
//!
//! Looked up for each packet, changed when a guest comes or goes: a bucket is replaced as a whole,
//! and its readers are waited for, also where a guest only changes its CID.

use crate::guest::Guest;
use af_vsock::{find_cid, Net, CID_ANY, CID_HOST};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};
use rvsock_bindings::RcuSlot;

/// `errno` of an address that somebody else has; the kernel crate has no name for it.
const EADDRINUSE: i32 = 98;

/// Buckets; CIDs are often handed out in sequence, so their low bits spread them.
const BUCKETS: u32 = 256;

/// All guests of this machine; there as long as the module is.
pub(crate) static REGISTRY: RcuSlot<Registry> = RcuSlot::new();

/// Guests and the CIDs they can be found by.
#[pin_data]
pub(crate) struct Registry {
    buckets: KVec<RcuSlot<Bucket>>,
    /// Taken to change a bucket. Outermost lock of the module.
    #[pin]
    change: Mutex<()>,
}

type Bucket = KVec<Entry>;

#[derive(Clone)]
struct Entry {
    cid: u32,
    guest: Arc<Guest>,
}

impl Entry {
    /// Whether the guest still has the CID it is listed by.
    fn is_current(&self) -> bool {
        self.guest.cid() == Some(self.cid)
    }
}

/// The guest with `cid` that sockets in `net` can reach. Does not sleep.
pub(crate) fn find(cid: u32, net: Net<'_>) -> Option<Arc<Guest>> {
    REGISTRY.with(|registry| registry.find(cid, net)).flatten()
}

impl Registry {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut buckets = KVec::with_capacity(BUCKETS as usize, GFP_KERNEL)?;
        for _ in 0..BUCKETS {
            buckets
                .push_within_capacity(RcuSlot::new())
                .map_err(|_| ENOMEM)?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                buckets,
                change <- new_mutex!((), "Registry::change"),
            }? Error),
            GFP_KERNEL,
        )
    }

    fn bucket(&self, cid: u32) -> Option<&RcuSlot<Bucket>> {
        self.buckets.as_slice().get((cid % BUCKETS) as usize)
    }

    fn find(&self, cid: u32, net: Net<'_>) -> Option<Arc<Guest>> {
        self.bucket(cid)?.with(|bucket| {
            let found = bucket.iter().find(|entry| {
                entry.is_current() && entry.cid == cid && entry.guest.net().reaches(net)
            });
            found.map(|entry| entry.guest.clone())
        })?
    }

    /// Makes `guest` known by `cid`, and no longer by the one it had. Sleeps.
    ///
    /// `EINVAL` for a CID that no guest may have, `EADDRINUSE` if another guest has it, or this
    /// machine itself as somebody's guest.
    pub(crate) fn insert(&self, guest: &Arc<Guest>, cid: u64) -> Result {
        let cid = u32::try_from(cid).map_err(|_| EINVAL)?;
        if cid <= CID_HOST || cid == CID_ANY {
            return Err(EINVAL);
        }
        if find_cid(cid) {
            return Err(address_in_use());
        }
        let _change = self.change.lock();
        match self.find(cid, guest.net()) {
            Some(other) if Arc::ptr_eq(&other, guest) => return Ok(()),
            Some(_) => return Err(address_in_use()),
            None => {}
        }
        let entry = Entry {
            cid,
            guest: guest.clone(),
        };
        // Not current before the guest says so; the other one is not from then on.
        self.replace(cid, Some(entry))?;
        let old = guest.set_cid(cid);
        // As in `remove`.
        let _ = old.map_or(Ok(()), |old| self.replace(old, None));
        Ok(())
    }

    /// Nobody finds `guest` any more when this returns. Sleeps.
    pub(crate) fn remove(&self, guest: &Arc<Guest>) {
        let _change = self.change.lock();
        // Without memory for a smaller bucket the entry stays until the bucket changes again, but
        // is current no longer.
        if let Some(cid) = guest.set_cid(0) {
            let _ = self.replace(cid, None);
        }
    }

    /// Replaces the bucket of `cid` by one with what is current in it, and with `entry`. The lock is
    /// held.
    fn replace(&self, cid: u32, entry: Option<Entry>) -> Result {
        let slot = self.bucket(cid).ok_or(EINVAL)?;
        let old = slot.get();
        let entries = old.as_ref().map_or(&[][..], |bucket| bucket.as_slice());
        let current = entries.iter().filter(|entry| entry.is_current());
        let mut bucket = KVec::with_capacity(entries.len().saturating_add(1), GFP_KERNEL)?;
        for entry in Iterator::chain(current.cloned(), entry) {
            bucket.push_within_capacity(entry).map_err(|_| ENOMEM)?;
        }
        slot.replace(Arc::new(bucket, GFP_KERNEL)?);
        Ok(())
    }
}

fn address_in_use() -> Error {
    Error::from_errno(-EADDRINUSE)
}
