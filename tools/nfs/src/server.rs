// SPDX-License-Identifier: GPL-2.0

//! The kernel's NFS server, as far as vsock is concerned.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{bail, Context, Result};
use rustix::io::Errno;
use vsock_proto::mapping::SERVER;

/// The files of nfsd.
pub struct Nfsd(PathBuf);

impl Default for Nfsd {
    fn default() -> Self {
        Self("/proc/fs/nfsd".into())
    }
}

/// A client that is known to the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Client {
    /// Who it is.
    pub cid: u32,
    /// How it calls itself.
    pub name: String,
    /// Whether the server's calls reach it.
    pub callbacks: String,
}

impl Nfsd {
    /// The files below another directory.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("the NFS server is not running: `systemctl start nfs-server`")
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Threads of the server; 0 if it is not running.
    pub fn threads(&self) -> Result<u32> {
        let text = self.read("threads")?;
        text.trim()
            .parse()
            .context("the number of threads makes no sense")
    }

    /// Ports on which the server listens on vsock.
    pub fn ports(&self) -> Result<Vec<u32>> {
        let text = self.read("portlist")?;
        let port = |line: &str| line.strip_prefix("vsock ")?.trim().parse().ok();
        Ok(text.lines().filter_map(port).collect())
    }

    /// Lets the server listen on a port; does nothing if it does.
    pub fn listen(&self, port: u16) -> Result<()> {
        if self.ports()?.contains(&u32::from(port)) {
            return Ok(());
        }
        if self.threads()? == 0 {
            bail!("the NFS server is not running: `systemctl start nfs-server`");
        }
        fs::write(self.0.join("portlist"), format!("vsock {port}\n")).map_err(|error| {
            match Errno::from_io_error(&error) {
                Some(Errno::ADDRINUSE) => {
                    anyhow::anyhow!("another program listens on port {port} of vsock")
                }
                Some(Errno::AFNOSUPPORT) => {
                    anyhow::anyhow!("the kernel has no vsock: `modprobe vsock`")
                }
                _ => anyhow::anyhow!(error)
                    .context(format!("the NFS server cannot listen on port {port}")),
            }
        })
    }

    /// Clients that came over vsock.
    pub fn clients(&self) -> Result<Vec<Client>> {
        let Ok(entries) = fs::read_dir(self.0.join("clients")) else {
            return Ok(Vec::new());
        };
        let mut clients = Vec::new();
        for entry in entries {
            // It may go while we look.
            let text = fs::read_to_string(entry?.path().join("info")).unwrap_or_default();
            clients.extend(client(&text));
        }
        clients.sort_by_key(|client| client.cid);
        Ok(clients)
    }
}

/// A client, if it came over vsock.
fn client(info: &str) -> Option<Client> {
    let field = |name: &str| {
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().trim_matches('"').to_owned())
    };
    let address = field("address")?;
    let (ip, _port) = address.strip_prefix('[')?.split_once("]:")?;
    Some(Client {
        cid: SERVER.cid(ip.parse().ok()?)?,
        name: field("name").unwrap_or_default(),
        callbacks: field("callback state").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str =
        "clientid: 0x63a18f086b005963\naddress: \"[ff1e:7c6b:3a10::3]:1023\"\nstatus: confirmed\n\
                        name: \"Linux NFSv4.2 guest\"\ncallback state: UP\n";

    #[test]
    fn a_client_over_vsock_has_a_cid() {
        let expected = Client {
            cid: 3,
            name: "Linux NFSv4.2 guest".to_owned(),
            callbacks: "UP".to_owned(),
        };
        assert_eq!(client(INFO), Some(expected));
    }

    #[test]
    fn other_clients_are_left_out() {
        assert_eq!(
            client(&INFO.replace("[ff1e:7c6b:3a10::3]", "10.0.0.1")),
            None
        );
        assert_eq!(client(&INFO.replace("ff1e", "fdf5")), None);
        assert_eq!(client(""), None);
    }

    #[test]
    fn ports_of_vsock_are_found_among_others() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join("portlist"),
            "vsock 2049\ntcp 2049\ntcp 2049\n",
        )
        .unwrap();
        assert_eq!(Nfsd::at(directory.path()).ports().unwrap(), [2049]);
    }

    #[test]
    fn a_server_that_is_not_there_is_not_running() {
        let error = Nfsd::at(Path::new("/nonexistent")).ports().unwrap_err();
        assert!(error.to_string().contains("not running"));
    }
}
