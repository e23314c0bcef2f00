// SPDX-License-Identifier: GPL-2.0

//! Universal addresses: how RPC writes an [`Address`] down, as `vsock:CID.PORT`.

use core::{fmt, str::FromStr};

use crate::header::Address;

/// What every universal address begins with.
const PREFIX: &str = "vsock:";

/// An address in the notation `vsock:CID.PORT`, both decimal.
///
/// There is one spelling for each address, so that texts can be compared in place of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UniversalAddress(pub Address);

/// The text is not a universal address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressError;

impl fmt::Display for UniversalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { cid, port } = self.0;
        write!(f, "{PREFIX}{cid}.{port}")
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not of the form vsock:CID.PORT")
    }
}

impl core::error::Error for AddressError {}

impl FromStr for UniversalAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        address(text).map(Self).ok_or(AddressError)
    }
}

fn address(text: &str) -> Option<Address> {
    let (cid, rest) = number(text.strip_prefix(PREFIX)?.as_bytes())?;
    let (port, rest) = number(rest.strip_prefix(b".")?)?;
    rest.is_empty().then_some(Address::new(cid, port))
}

/// Parses a number in its only spelling, without an idle zero; returns what follows it, too.
///
/// The standard parser also takes a plus sign and leading zeros, and its arithmetic can panic as
/// far as the compiler can see.
fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let (&first, mut rest) = text.split_first()?;
    let mut number = digit(first)?;
    // A zero in front is all of the number.
    while number > 0 {
        let Some((next, after)) = rest.split_first() else {
            break;
        };
        let Some(digit) = digit(*next) else {
            break;
        };
        number = number.checked_mul(10)?.checked_add(digit)?;
        rest = after;
    }
    Some((number, rest))
}

fn digit(byte: u8) -> Option<u32> {
    char::from(byte).to_digit(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn an_address_is_written_as_cid_and_port() {
        let address = UniversalAddress(Address::new(3, 2049));
        assert_eq!(address.to_string(), "vsock:3.2049");
        assert_eq!("vsock:3.2049".parse(), Ok(address));
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for text in [
            "",
            "vsock:",
            "vsock:3",
            "vsock:3.",
            "vsock:.1",
            "3.2049",
            "vsock:3:2049",
            "VSOCK:3.1",
            " vsock:3.1",
            "vsock:3.1 ",
            "vsock:+3.1",
            "vsock:-1.1",
            "vsock:03.1",
            "vsock:3.00",
            "vsock:3.1.1",
            "vsock:0x3.1",
            "vsock:4294967296.1",
            "vsock:3.\u{0661}",
        ] {
            assert_eq!(
                text.parse::<UniversalAddress>(),
                Err(AddressError),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(cid: u32, port: u32) {
            let address = UniversalAddress(Address::new(cid, port));
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn a_text_that_is_read_is_the_one_that_is_written(text in "vsock:[0-9+.]{0,12}") {
            if let Ok(address) = text.parse::<UniversalAddress>() {
                prop_assert_eq!(address.to_string(), text);
            }
        }
    }
}
