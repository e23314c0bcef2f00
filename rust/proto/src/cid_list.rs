// SPDX-License-Identifier: GPL-2.0

//! Lists of CIDs as an administrator writes them: `3,4,17`, or `all`.

/// Number of the hypervisor, which has no sockets (`VMADDR_CID_HYPERVISOR`).
const CID_HYPERVISOR: u32 = 0;
/// Stands for any CID, and is nobody's (`VMADDR_CID_ANY`).
const CID_ANY: u32 = u32::MAX;
/// Below it are this machine and the host; from it on guests.
const FIRST_GUEST: u32 = 3;

/// One entry of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CidEntry {
    /// All guests, which this machine itself and a host are not.
    All,
    /// This one.
    Cid(u32),
}

/// A word is neither a CID nor `all`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CidListError;

impl core::fmt::Display for CidListError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("not a list of CIDs such as 3,4,17, and not all")
    }
}

impl core::error::Error for CidListError {}

impl CidEntry {
    /// Whether the entry stands for a CID.
    pub const fn includes(self, cid: u32) -> bool {
        match self {
            Self::All => cid >= FIRST_GUEST && cid != CID_ANY,
            Self::Cid(entry) => entry == cid,
        }
    }

    fn from_word(word: &[u8]) -> Result<Self, CidListError> {
        if word == b"all" {
            return Ok(Self::All);
        }
        match number(word) {
            Some(CID_HYPERVISOR | CID_ANY) | None => Err(CidListError),
            Some(cid) => Ok(Self::Cid(cid)),
        }
    }
}

/// The standard parser can panic as far as the compiler can see.
fn number(word: &[u8]) -> Option<u32> {
    word.first()?;
    word.iter().try_fold(0u32, |sum, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// The entries of a list: words between commas or white space.
pub fn cid_entries(text: &[u8]) -> impl Iterator<Item = Result<CidEntry, CidListError>> + '_ {
    text.split(|byte| *byte == b',' || byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
        .map(CidEntry::from_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, string::String, vec, vec::Vec};

    fn parse(text: &str) -> Result<Vec<CidEntry>, CidListError> {
        cid_entries(text.as_bytes()).collect()
    }

    #[test]
    fn a_list_has_commas_or_white_space() {
        let three = vec![CidEntry::Cid(3), CidEntry::Cid(4), CidEntry::Cid(17)];
        for text in ["3,4,17", "3 4 17\n", " 3,\t4, 17 ,"] {
            assert_eq!(parse(text), Ok(three.clone()), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_an_empty_list() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse("\n"), Ok(vec![]));
    }

    #[test]
    fn what_is_no_cid_is_refused() {
        for text in [
            "0",
            "4294967295",
            "4294967296",
            "-1",
            "+3",
            "3-5",
            "any",
            "3,x",
            "ALL",
        ] {
            assert_eq!(parse(text), Err(CidListError), "{text:?}");
        }
    }

    #[test]
    fn all_means_guests() {
        for (cid, is_guest) in [
            (0, false),
            (1, false),
            (2, false),
            (3, true),
            (u32::MAX, false),
        ] {
            assert_eq!(CidEntry::All.includes(cid), is_guest, "{cid}");
        }
        assert!(CidEntry::Cid(1).includes(1));
        assert!(!CidEntry::Cid(3).includes(4));
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(cids in prop::collection::vec(1..u32::MAX, 0..20)) {
            let text: Vec<String> = cids.iter().map(|cid| format!("{cid}")).collect();
            let entries: Vec<CidEntry> = cids.into_iter().map(CidEntry::Cid).collect();
            prop_assert_eq!(parse(&text.join(",")), Ok(entries));
        }

        #[test]
        fn nothing_is_too_strange(bytes: Vec<u8>) {
            let _ = cid_entries(&bytes).count();
        }
    }
}
