// SPDX-License-Identifier: GPL-2.0

//! Asks a server whether it would serve us, before the kernel does: what mount(2) says of a failure
//! is a number, and often after minutes.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use vsock::{VsockAddr, VsockStream};
use vsock_proto::Marker;

/// How long a server may take to answer a call that does nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a server does not serve us.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("this machine has no vsock device, or no module for it is loaded")]
    NoTransport,
    #[error("CID {0} does not answer: is that machine running, and has it a vsock device?")]
    Nobody(u32),
    #[error("on CID {0} nobody listens on port {1}: is the NFS server running there, with `nfs-vsock enable`?")]
    Refused(u32, u32),
    #[error("CID {0} does not serve this machine: there, `nfs-vsock allow` makes an exception")]
    Denied(u32),
    #[error("what listens on port {1} of CID {0} is no NFS server of version 4")]
    Stranger(u32, u32),
    #[error("cannot talk to port {1} of CID {0}")]
    Other(u32, u32, #[source] io::Error),
}

impl ProbeError {
    /// Whether it may be different in a while.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Nobody(_) | Self::Refused(..) | Self::Other(..))
    }
}

/// Number of the call; any will do.
const XID: u32 = 0x7673_6f63;

/// A call of the procedure that does nothing: RPC version 2, program NFS, version 4, procedure 0,
/// without credentials.
fn null_call() -> Vec<u8> {
    const CALL: [u32; 10] = [XID, 0, 2, 100_003, 4, 0, 0, 0, 0, 0];
    let body: Vec<u8> = CALL.iter().flat_map(|word| word.to_be_bytes()).collect();
    let marker = Marker::of_record(body.len() as u32).expect("it is short");
    [&marker.to_bytes()[..], &body].concat()
}

/// What the first words of a reply say.
fn judge(reply: [u32; 3], cid: u32, port: u32) -> Result<(), ProbeError> {
    match reply {
        [XID, 1, 0] => Ok(()),
        [XID, 1, 1] => Err(ProbeError::Denied(cid)),
        _ => Err(ProbeError::Stranger(cid, port)),
    }
}

/// Calls the server.
pub fn probe(cid: u32, port: u32) -> Result<(), ProbeError> {
    let other = |error| ProbeError::Other(cid, port, error);
    let mut stream = VsockStream::connect(&VsockAddr::new(cid, port)).map_err(|error| {
        use rustix::io::Errno;
        match Errno::from_io_error(&error) {
            Some(Errno::NODEV | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
                ProbeError::NoTransport
            }
            Some(Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                ProbeError::Nobody(cid)
            }
            Some(Errno::CONNRESET | Errno::CONNREFUSED) => ProbeError::Refused(cid, port),
            _ => other(error),
        }
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(other)?;
    stream.write_all(&null_call()).map_err(other)?;
    let mut bytes = [0; 16];
    stream
        .read_exact(&mut bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ProbeError::Stranger(cid, port),
            _ => other(error),
        })?;
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    judge([word(4), word(8), word(12)], cid, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_record() {
        let call = null_call();
        assert_eq!(call[..4], [0x80, 0, 0, 40]);
        assert_eq!(call.len(), 44);
    }

    #[test]
    fn replies_are_told_apart() {
        assert!(judge([XID, 1, 0], 2, 2049).is_ok());
        assert!(matches!(
            judge([XID, 1, 1], 2, 2049),
            Err(ProbeError::Denied(2))
        ));
        for strange in [[XID, 0, 0], [0, 1, 0], [XID, 1, 2]] {
            assert!(matches!(
                judge(strange, 2, 2049),
                Err(ProbeError::Stranger(2, 2049))
            ));
        }
    }
}
