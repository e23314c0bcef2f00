// SPDX-License-Identifier: GPL-2.0

//! CIDs as IPv6 addresses, for programs and kernel code that know no others.
//!
//! SUNRPC, NFS, `/etc/exports` and mountd compare addresses of the families INET and INET6 only, so
//! a CID is shown to them as the last 32 bits of an address in a prefix that is this project's own.
//! Nothing of it is ever on the wire.
//!
//! There are two prefixes. What clients *connect to* lies in [`CLIENT`], a unique local prefix
//! (RFC 4193) with the random number f57c6b3a10 as its global ID. What servers *see* lies in
//! [`SERVER`], a multicast prefix: no packet with a multicast source is ever received
//! (`ip6_rcv_core()`), and no interface can have such an address, so that nobody can pretend over
//! TCP to be the guest that an export is meant for.

use core::net::Ipv6Addr;

/// A prefix of 64 bits that stands for AF_VSOCK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix(u64);

/// Where clients look for servers: `fdf5:7c6b:3a10::/64`.
pub const CLIENT: Prefix = Prefix(0xfdf5_7c6b_3a10_0000);

/// Where servers see clients: `ff1e:7c6b:3a10::/64`.
pub const SERVER: Prefix = Prefix(0xff1e_7c6b_3a10_0000);

/// Ports below this one are for the superuser (`PROT_SOCK`), in AF_VSOCK as in IP.
const FIRST_UNPRIVILEGED: u32 = 1024;

impl Prefix {
    /// The address of a CID.
    pub const fn address(self, cid: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(((self.0 as u128) << 64) | cid as u128)
    }

    /// The CID behind an address; `None` for all that does not begin with the prefix.
    pub const fn cid(self, address: Ipv6Addr) -> Option<u32> {
        let bits = address.to_bits();
        if bits >> 32 == (self.0 as u128) << 32 {
            Some(bits as u32)
        } else {
            None
        }
    }
}

/// The port of 16 bits that stands for a port of AF_VSOCK, privileged only if that is.
///
/// Ports above 65535 share those of the unprivileged range: cutting off the upper bits would make
/// port 65537 look like port 1.
pub const fn inet_port(port: u32) -> u16 {
    const UNPRIVILEGED: u32 = 65536 - FIRST_UNPRIVILEGED;
    if port < 65536 {
        port as u16
    } else {
        (FIRST_UNPRIVILEGED + port % UNPRIVILEGED) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn a_cid_is_the_end_of_an_address() {
        assert_eq!(CLIENT.address(2).to_string(), "fdf5:7c6b:3a10::2");
        assert_eq!(SERVER.address(3).to_string(), "ff1e:7c6b:3a10::3");
        assert_eq!(
            SERVER.address(0x1234_5678).to_string(),
            "ff1e:7c6b:3a10::1234:5678"
        );
    }

    #[test]
    fn what_servers_see_cannot_come_from_a_network() {
        assert!(SERVER.address(3).is_multicast());
        assert!(CLIENT.address(3).is_unique_local());
    }

    #[test]
    fn an_address_outside_the_prefix_is_nobodys() {
        for text in [
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "2001:db8::2",
            "fdf5:7c6b:3a11::2",
            "fdf5:7c6b:3a10:0:1::2",
            "fdf5:7c6b:3a10::1:0:2",
            "ff1e:7c6b:3a10::2",
        ] {
            assert_eq!(CLIENT.cid(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn a_large_port_is_never_privileged() {
        assert_eq!(inet_port(1023), 1023);
        assert_eq!(inet_port(65535), 65535);
        assert_eq!(inet_port(65536), 2048);
        assert!(inet_port(0x1_0001) >= 1024);
    }

    proptest! {
        #[test]
        fn an_address_leads_back_to_its_cid(cid: u32) {
            prop_assert_eq!(CLIENT.cid(CLIENT.address(cid)), Some(cid));
            prop_assert_eq!(SERVER.cid(SERVER.address(cid)), Some(cid));
            prop_assert_eq!(CLIENT.cid(SERVER.address(cid)), None);
        }

        #[test]
        fn only_addresses_of_the_prefix_have_a_cid(bits: u128) {
            let address = Ipv6Addr::from_bits(bits);
            if let Some(cid) = CLIENT.cid(address) {
                prop_assert_eq!(CLIENT.address(cid), address);
            }
        }

        #[test]
        fn ports_keep_their_privilege(port: u32) {
            prop_assert_eq!(inet_port(port) < 1024, port < 1024);
        }
    }
}
