// SPDX-License-Identifier: GPL-2.0
//! The module goes at the moment when its last socket has gone, and not a moment earlier.
//!
//! Sockets hold their module, but what closes them is code of the module.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context};

use crate::case::{wait_until, Setup, Skip, PATIENCE};
use crate::errno::{check, Errno};
use crate::socket::{Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("unload":
    a_module_with_sockets_stays,
    a_module_goes_while_its_last_sockets_close,
    a_module_goes_while_sockets_wait_for_an_answer_that_does_not_come,
    a_module_that_comes_and_goes_is_there_or_not,
);

/// How long a closed socket waits for its peer (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// The module under test.
struct Module<'a> {
    name: CString,
    reload: &'a str,
}

impl<'a> Module<'a> {
    fn of(setup: &'a Setup) -> anyhow::Result<Self> {
        let (Some(name), Some(reload)) = (&setup.module, &setup.reload) else {
            return Err(Skip("needs --module and --reload".into()).into());
        };
        Ok(Self {
            name: CString::new(name.as_str())?,
            reload,
        })
    }

    fn remove(&self) -> Result<(), Errno> {
        // SAFETY: The name is a string.
        check(unsafe {
            libc::syscall(
                libc::SYS_delete_module,
                self.name.as_ptr(),
                libc::O_NONBLOCK,
            )
        })?;
        Ok(())
    }

    /// Tries without a pause until nobody uses the module any more.
    fn remove_at_once(&self, patience: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            match self.remove() {
                Err(Errno(libc::EAGAIN | libc::EBUSY)) if started.elapsed() < patience => {}
                result => return Ok(result?),
            }
        }
    }

    fn load(&self) -> anyhow::Result<()> {
        let mut shell = Command::new("sh");
        let status = shell
            .args(["-c", self.reload])
            .stdin(Stdio::null())
            .status()
            .context("sh")?;
        ensure!(status.success(), "`{}` failed", self.reload);
        Ok(())
    }
}

fn a_module_with_sockets_stays(setup: &Setup) -> anyhow::Result<()> {
    let module = Module::of(setup)?;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    for _ in 0..10 {
        ensure_eq!(module.remove(), Err(Errno(libc::EAGAIN)));
    }
    client.send_all(b"still alive")?;
    ensure_eq!(server.recv_exact(11)?, b"still alive");
    Ok(())
}

fn a_module_goes_while_its_last_sockets_close(setup: &Setup) -> anyhow::Result<()> {
    let module = Module::of(setup)?;
    for round in 0..20 {
        let pairs = (0..10)
            .map(|_| setup.pair(Kind::Stream))
            .collect::<Result<Vec<_>, _>>()?;
        for pair in &pairs {
            pair.client.send_all(&[1; 5000])?;
            // Two closed ends, one with unread data, would wait 8 s for each other.
            ensure_eq!(pair.server.recv_exact(5000)?.len(), 5000);
        }
        thread::scope(|scope| {
            for Pair { client, server } in pairs {
                scope.spawn(move || {
                    if round % 2 == 0 {
                        drop((client, server))
                    } else {
                        drop((server, client))
                    }
                });
            }
            module.remove_at_once(PATIENCE)
        })?;
        module.load()?;
    }
    Ok(())
}

/// The peers have unread data, so that they do not answer the good-bye; they close when the other
/// ends stop waiting.
fn a_module_goes_while_sockets_wait_for_an_answer_that_does_not_come(
    setup: &Setup,
) -> anyhow::Result<()> {
    const SOCKETS: usize = 100;
    let module = Module::of(setup)?;
    let pairs = (0..SOCKETS)
        .map(|_| setup.pair(Kind::Stream))
        .collect::<Result<Vec<_>, _>>()?;
    let (clients, servers): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .map(|pair| (pair.client, pair.server))
        .unzip();
    for (client, server) in clients.iter().zip(&servers) {
        client.send_all(b"unread")?;
        wait_until("it is there", || server.unread() == Ok(6))?;
    }
    drop(clients);
    let closed = Instant::now();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            for server in servers {
                thread::sleep(
                    (CLOSE_TIMEOUT - Duration::from_millis(50)).saturating_sub(closed.elapsed()),
                );
                thread::sleep(Duration::from_millis(1));
                drop(server);
            }
        });
        thread::sleep(
            (CLOSE_TIMEOUT - Duration::from_millis(500)).saturating_sub(closed.elapsed()),
        );
        module.remove_at_once(CLOSE_TIMEOUT + PATIENCE)
    });
    result?;
    module.load()
}

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`
const GET_LOCAL_CID: libc::c_ulong = 0x7b9;

/// What looks for a transport, and what holds one for a moment.
fn storm(setup: &Setup, done: &AtomicBool) -> anyhow::Result<()> {
    let device = File::open("/dev/vsock").context("/dev/vsock")?;
    while !done.load(Ordering::Relaxed) {
        for kind in [Kind::Stream, Kind::Seqpacket] {
            let listener = Socket::listening(kind)?;
            let client = Socket::new(kind)?;
            client.set_connect_timeout(Duration::from_millis(100))?;
            match client.connect(setup.address(&listener)?) {
                // With something unread both ends would wait 8 s for each other.
                Ok(()) => drop(listener.accept()?),
                Err(Errno(
                    libc::ENODEV | libc::ECONNRESET | libc::ETIMEDOUT | libc::ESOCKTNOSUPPORT,
                )) => {}
                Err(error) => return Err(error).context("connect()"),
            }
            let _ = client.set_window(100_000);
            let mut cid = 0u32;
            // SAFETY: The request writes a number.
            check(unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID as _, &mut cid) })?;
        }
        // Now and then nobody holds the module.
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn a_module_that_comes_and_goes_is_there_or_not(setup: &Setup) -> anyhow::Result<()> {
    let module = Module::of(setup)?;
    let rounds = if setup.long { 500 } else { 10 };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let storms = [(); 2].map(|()| scope.spawn(|| storm(setup, &done)));
        let mut result = Ok(());
        for _ in 0..rounds {
            result = module
                .remove_at_once(2 * CLOSE_TIMEOUT)
                .and_then(|()| module.load());
            if result.is_err() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        let ends = storms.map(|storm| storm.join().unwrap());
        ends.into_iter()
            .chain([result])
            .collect::<anyhow::Result<()>>()
    })?;
    setup.pair(Kind::Stream)?.converse()
}
