// SPDX-License-Identifier: GPL-2.0

//! The addresses that stand for CIDs, beside their text.

use super::bytes::Bytes;
use core::net::Ipv6Addr;
use vsock_proto::mapping::{inet_port, Prefix, CLIENT, SERVER};

/// An address, then a port.
pub fn seeds() -> Vec<Vec<u8>> {
    let addresses = [
        "fdf5:7c6b:3a10::3",
        "ff1e:7c6b:3a10::ffff:ffff",
        "::1",
        "fdf5:7c6b:3a10::1:0:2",
    ];
    let ports: [u32; 4] = [1, 1023, 65536, 65537];
    let mut seeds = Vec::new();
    for (address, port) in addresses.into_iter().zip(ports) {
        let address: Ipv6Addr = address.parse().unwrap();
        seeds.push([address.octets().as_slice(), &port.to_le_bytes()].concat());
    }
    seeds
}

pub fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let octets: [u8; 16] = core::array::from_fn(|_| input.u8());
    check_address(CLIENT, "fdf5:7c6b:3a10:0:0:0:", octets);
    check_address(SERVER, "ff1e:7c6b:3a10:0:0:0:", octets);
    check_port(input.u32());
}

fn check_address(prefix: Prefix, text: &str, octets: [u8; 16]) {
    let end = u32::from_be_bytes([octets[12], octets[13], octets[14], octets[15]]);
    let made: Ipv6Addr = format!("{text}{:x}:{:x}", end >> 16, end & 0xffff)
        .parse()
        .unwrap();
    assert_eq!(prefix.address(end), made);
    assert_eq!(prefix.cid(made), Some(end));
    let address = Ipv6Addr::from(octets);
    assert_eq!(prefix.cid(address), (address == made).then_some(end));
}

fn check_port(port: u32) {
    let seen = inet_port(port);
    assert_eq!(port < 1024, seen < 1024);
    if let Ok(same) = u16::try_from(port) {
        assert_eq!(seen, same);
    }
}
