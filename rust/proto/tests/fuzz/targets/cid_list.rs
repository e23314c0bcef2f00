// SPDX-License-Identifier: GPL-2.0

//! Lists of CIDs beside the standard library's ways with text.

use vsock_proto::{cid_entries, CidEntry};

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "3,4,17",
        "all",
        " 3\t4,\n",
        "0",
        "4294967295",
        "4294967296",
        "003",
        "3,x,5",
        "+3",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub fn run(data: &[u8]) {
    let entries: Vec<_> = cid_entries(data).map(Result::ok).collect();
    let text: String = data.iter().copied().map(char::from).collect();
    let words = text.split([',', ' ', '\t', '\n', '\r', '\x0c']);
    let expected: Vec<_> = words.filter(|word| !word.is_empty()).map(entry).collect();
    assert_eq!(entries, expected);
    for entry in entries.into_iter().flatten() {
        check_includes(entry);
    }
}

fn entry(word: &str) -> Option<CidEntry> {
    if word == "all" {
        return Some(CidEntry::All);
    }
    let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
    let cid: u32 = word.parse().ok().filter(|_| is_number)?;
    (cid != 0 && cid != u32::MAX).then_some(CidEntry::Cid(cid))
}

fn check_includes(entry: CidEntry) {
    for cid in [0, 1, 2, 3, 4, u32::MAX - 1, u32::MAX] {
        let expected = match entry {
            CidEntry::All => (3..u32::MAX).contains(&cid),
            CidEntry::Cid(only) => only == cid,
        };
        assert_eq!(entry.includes(cid), expected);
    }
}
