// SPDX-License-Identifier: GPL-2.0

//! Who may call the servers of this machine: nobody, until the administrator says so.

use kernel::{fmt, prelude::*, str::CString, sync::Arc};
use rvsock_bindings::{Parameter, RcuSlot};
use vsock_proto::{cid_entries, CidEntry};

static ALLOWED: RcuSlot<Allowed> = RcuSlot::new();

/// The parameter `allowed_cids`.
pub(crate) struct Allowed {
    entries: KVec<CidEntry>,
}

/// Whether calls of a CID are carried out.
pub(crate) fn admits(cid: u32) -> bool {
    ALLOWED
        .with(|allowed| allowed.entries.iter().any(|entry| entry.includes(cid)))
        .unwrap_or(false)
}

impl Parameter for Allowed {
    fn set(text: &[u8]) -> Result {
        // Each takes two bytes of the text, at least.
        let most = (text.len() / 2).wrapping_add(1);
        let mut entries = KVec::with_capacity(most, GFP_KERNEL)?;
        for entry in cid_entries(text) {
            entries
                .push_within_capacity(entry.map_err(|_| EINVAL)?)
                .map_err(|_| ENOMEM)?;
        }
        ALLOWED.replace(Arc::new(Allowed { entries }, GFP_KERNEL)?);
        Ok(())
    }

    fn show() -> Result<CString> {
        let allowed = ALLOWED.get();
        let entries = allowed.as_ref().map_or(&[][..], |allowed| &allowed.entries);
        CString::try_from_fmt(fmt!("{}", List(entries)))
    }

    fn forget() {
        ALLOWED.take();
    }
}

/// Entries as they are written.
struct List<'a>(&'a [CidEntry]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, entry) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match entry {
                CidEntry::All => f.write_str("all")?,
                CidEntry::Cid(cid) => write!(f, "{cid}")?,
            }
        }
        Ok(())
    }
}
