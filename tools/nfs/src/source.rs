// SPDX-License-Identifier: GPL-2.0

//! What to mount: `2:/export`.

use std::{fmt, str::FromStr};

use vsock_proto::{mapping::CLIENT, Address, UniversalAddress};

use crate::NFS_PORT;

/// A directory of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The server; the port only if it was given.
    pub cid: u32,
    /// See above.
    pub port: Option<u32>,
    /// The directory.
    pub path: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not of the form CID:/DIRECTORY, such as 2:/export, where 2 is the host")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        parse(text).ok_or_else(|| SourceError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Source> {
    let at = text.find(":/")?;
    let (server, path) = (&text[..at], &text[at + 1..]);
    let (cid, port) = match server {
        "host" => (2, None),
        "local" => (1, None),
        _ if server.starts_with("vsock:") => {
            let UniversalAddress(Address { cid, port }) = server.parse().ok()?;
            (cid, Some(port))
        }
        _ => (server.parse().ok()?, None),
    };
    // 0 is the hypervisor, which has no sockets, and the largest number stands for any CID.
    (cid != 0 && cid != u32::MAX).then(|| Source {
        cid,
        port,
        path: path.to_owned(),
    })
}

impl Source {
    /// The port, if neither source nor options say another.
    pub fn port_or_default(&self) -> u32 {
        self.port.unwrap_or(NFS_PORT)
    }

    /// The IPv6 address that stands for the server.
    pub fn address(&self) -> std::net::Ipv6Addr {
        CLIENT.address(self.cid)
    }

    /// How the kernel, and so `/proc/mounts`, is to call it. The tools of nfs-utils take this apart
    /// to unmount and remount.
    pub fn device(&self) -> String {
        format!("[{}]:{}", self.address(), self.path)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(cid: u32, port: Option<u32>, path: &str) -> Result<Source, SourceError> {
        Ok(Source {
            cid,
            port,
            path: path.to_owned(),
        })
    }

    #[test]
    fn a_source_is_a_cid_and_a_directory() {
        assert_eq!("2:/export".parse(), source(2, None, "/export"));
        assert_eq!("17:/".parse(), source(17, None, "/"));
        assert_eq!("2:/a:/b".parse(), source(2, None, "/a:/b"));
    }

    #[test]
    fn the_host_and_this_machine_have_names() {
        assert_eq!("host:/x".parse(), source(2, None, "/x"));
        assert_eq!("local:/x".parse(), source(1, None, "/x"));
    }

    #[test]
    fn a_universal_address_has_a_port() {
        assert_eq!("vsock:2.3049:/x".parse(), source(2, Some(3049), "/x"));
    }

    #[test]
    fn what_is_no_cid_is_refused() {
        for text in [
            "2",
            "2:export",
            ":/x",
            "0:/x",
            "4294967295:/x",
            "server:/x",
            "-1:/x",
            "vsock:2:/x",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_kernel_is_told_an_address() {
        let source: Source = "2:/export".parse().unwrap();
        assert_eq!(source.device(), "[fdf5:7c6b:3a10::2]:/export");
    }
}
