// SPDX-License-Identifier: GPL-2.0
//! The module goes at the moment when its last socket has gone, and not a moment earlier.
//!
//! Sockets hold their module, but what closes them is code of the module.

use std::ffi::CString;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context};

use crate::case::{wait_until, Setup, Skip, PATIENCE};
use crate::errno::{check, Errno};
use crate::socket::{Kind, Pair};
use crate::{cases, ensure_eq};

cases!("unload":
    a_module_with_sockets_stays,
    a_module_goes_while_its_last_sockets_close,
    a_module_goes_while_sockets_wait_for_an_answer_that_does_not_come,
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
