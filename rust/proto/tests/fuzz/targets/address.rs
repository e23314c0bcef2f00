// SPDX-License-Identifier: GPL-2.0

//! Universal addresses beside the standard parser of numbers.

use vsock_proto::{Address, UniversalAddress};

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "vsock:3.2049",
        "vsock:0.0",
        "vsock:4294967295.4294967295",
        "vsock:4294967296.1",
        "vsock:+3.1",
        "vsock:03.1",
        "vsock:3.",
        "vsock:",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub fn run(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else {
        return;
    };
    let parsed = text.parse::<UniversalAddress>().ok();
    assert_eq!(parsed.map(|address| address.0), expected(text));
    if let Some(address) = parsed {
        assert_eq!(address.to_string(), text);
    }
}

fn expected(text: &str) -> Option<Address> {
    let (cid, port) = text.strip_prefix("vsock:")?.split_once('.')?;
    Some(Address::new(number(cid)?, number(port)?))
}

/// A number that is written as it would be printed.
fn number(text: &str) -> Option<u32> {
    text.parse()
        .ok()
        .filter(|number: &u32| number.to_string() == text)
}
