// SPDX-License-Identifier: GPL-2.0

//! Options of a mount: those for mount(2), those for NFS, and those that only tools read.

use rustix::mount::MountFlags;

use crate::{source::Source, NFS_PORT};

/// What `-o` said, sorted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// `remount`.
    pub remount: bool,
    /// Minutes to keep trying.
    pub retry: u64,
    port: Option<u32>,
    nfs: Vec<String>,
    has_version: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    #[error("{0}: over vsock there is nothing to choose; leave it out")]
    Ours(String),
    #[error("{0}: NFS over vsock is version 4.1 or 4.2")]
    Version(String),
    #[error("{0}: not over vsock, which never leaves the machine; for encryption use sec=krb5p")]
    Tls(String),
    #[error("{0}: mount in the background with a systemd unit or autofs instead")]
    Background(String),
    #[error("{0}: not a number, or too large")]
    Number(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            remount: false,
            retry: 0,
            port: None,
            nfs: Vec::new(),
            has_version: false,
        }
    }
}

/// Options of mount(2), and whether each sets or clears its flag.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("strictatime", MountFlags::STRICTATIME, true),
];

/// Options that mount(8), systemd and others read, and the kernel does not know.
const TOOLS: &[&str] = &[
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev",
    "fg",
];

/// What only this program can know.
const OURS: &[&str] = &[
    "proto",
    "addr",
    "clientaddr",
    "mountproto",
    "mountaddr",
    "mountport",
];

impl Options {
    /// Takes a list as `-o` has it, behind what is there.
    pub fn add(&mut self, list: &str) -> Result<(), OptionError> {
        list.split(',')
            .filter(|word| !word.is_empty())
            .try_for_each(|word| self.add_word(word))
    }

    fn add_word(&mut self, word: &str) -> Result<(), OptionError> {
        if let Some((_, flag, value)) = FLAGS.iter().find(|(name, ..)| *name == word) {
            self.flags.set(*flag, *value);
            return Ok(());
        }
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || {
            value
                .parse()
                .map_err(|_| OptionError::Number(word.to_owned()))
        };
        match name {
            "remount" => self.remount = true,
            "retry" => self.retry = u64::from(number()?),
            "port" => self.port = Some(number()?).filter(|port| *port != 0),
            // What mount of busybox adds: it takes the CID for an IPv4 address.
            "addr" if value.starts_with("0.") => {}
            "bg" => return Err(OptionError::Background(word.to_owned())),
            "xprtsec" if value != "none" => return Err(OptionError::Tls(word.to_owned())),
            "tcp" | "udp" | "rdma" => return Err(OptionError::Ours(word.to_owned())),
            "vers" | "nfsvers" | "minorversion" => self.add_version(word, name, value)?,
            _ if OURS.contains(&name) => return Err(OptionError::Ours(word.to_owned())),
            _ if TOOLS.contains(&name) || name.starts_with("x-") || name.starts_with("X-") => {}
            _ => self.nfs.push(word.to_owned()),
        }
        Ok(())
    }

    fn add_version(&mut self, word: &str, name: &str, value: &str) -> Result<(), OptionError> {
        let version = match (name, value) {
            ("minorversion", "1") | (_, "4.1") => "4.1",
            ("minorversion", "2") | (_, "4.2") => "4.2",
            // What the default is.
            ("vers" | "nfsvers", "4") => return Ok(()),
            _ => return Err(OptionError::Version(word.to_owned())),
        };
        self.has_version = true;
        self.nfs.push(format!("vers={version}"));
        Ok(())
    }

    /// The port to connect to.
    pub fn port(&self, source: &Source) -> u32 {
        self.port.or(source.port).unwrap_or(NFS_PORT)
    }

    /// Whether the mount is to be one with Kerberos.
    pub fn uses_kerberos(&self) -> bool {
        self.nfs.iter().any(|word| word.starts_with("sec=krb5"))
    }

    /// What the kernel is to be told about this source.
    pub fn for_kernel(&self, source: &Source) -> String {
        let mut words = Vec::new();
        if !self.has_version {
            words.push("vers=4.2".to_owned());
        }
        words.extend(self.nfs.iter().cloned());
        // The place in mounts that AF_VSOCK takes; see Documentation/nfs.md.
        words.push("proto=rdma6".to_owned());
        words.push(format!("port={}", self.port(source)));
        words.push(format!("addr={}", source.address()));
        words.push("clientaddr=::".to_owned());
        words.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Options, OptionError> {
        let mut options = Options::default();
        options.add(list)?;
        Ok(options)
    }

    fn told(list: &str) -> String {
        parse(list).unwrap().for_kernel(&"2:/x".parse().unwrap())
    }

    #[test]
    fn a_mount_with_kerberos_is_one_that_asks_for_it() {
        assert!(parse("ro,sec=krb5p").unwrap().uses_kerberos());
        assert!(!parse("sec=sys").unwrap().uses_kerberos());
    }

    const REST: &str = "proto=rdma6,port=2049,addr=fdf5:7c6b:3a10::2,clientaddr=::";

    #[test]
    fn without_options_it_is_4_2() {
        assert_eq!(told(""), format!("vers=4.2,{REST}"));
        assert_eq!(told("vers=4"), format!("vers=4.2,{REST}"));
    }

    #[test]
    fn options_of_nfs_are_passed_on() {
        let list = "nconnect=4,vers=4.1,sec=krb5p,soft";
        assert_eq!(
            told(list),
            format!("nconnect=4,vers=4.1,sec=krb5p,soft,{REST}")
        );
    }

    #[test]
    fn flags_of_mount_are_not() {
        let options = parse("ro,nosuid,noexec,exec,rw,noatime").unwrap();
        assert_eq!(options.flags, MountFlags::NOSUID | MountFlags::NOATIME);
        assert_eq!(told("ro,nodev"), format!("vers=4.2,{REST}"));
    }

    #[test]
    fn options_for_tools_are_left_out() {
        let list = "defaults,_netdev,nofail,x-systemd.automount,noauto,retry=2";
        assert_eq!(told(list), format!("vers=4.2,{REST}"));
        assert_eq!(parse(list).unwrap().retry, 2);
    }

    #[test]
    fn what_busybox_makes_of_a_cid_is_left_out() {
        assert_eq!(told("rw,addr=0.0.0.2"), format!("vers=4.2,{REST}"));
    }

    #[test]
    fn a_port_can_be_given() {
        assert!(told("port=3049").contains("port=3049"));
        let options = parse("port=1").unwrap();
        assert_eq!(options.port(&"vsock:2.5:/x".parse().unwrap()), 1);
        assert_eq!(parse("").unwrap().port(&"vsock:2.5:/x".parse().unwrap()), 5);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (list, error) in [
            ("proto=tcp", OptionError::Ours as fn(String) -> OptionError),
            ("addr=1.2.3.4", OptionError::Ours),
            ("vers=3", OptionError::Version),
            ("nfsvers=4.0", OptionError::Version),
            ("xprtsec=tls", OptionError::Tls),
            ("bg", OptionError::Background),
            ("port=x", OptionError::Number),
        ] {
            assert_eq!(parse(list), Err(error(list.to_owned())), "{list}");
        }
    }
}
