// SPDX-License-Identifier: GPL-2.0
//! What may happen at the same time on different processors. Each case repeats its race; the kernel
//! must keep its footing, and everybody get an answer that makes sense.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::ensure;

use crate::case::{wait_until, Setup, PATIENCE};
use crate::errno::Errno;
use crate::pattern::Pattern;
use crate::socket::{Kind, Pair, Socket};
use crate::{cases, ensure_eq};

cases!("race":
    connecting_while_the_listener_closes_succeeds_or_is_reset,
    connecting_while_signals_arrive_leaves_no_half_open_socket,
    connecting_while_the_time_is_up_leaves_no_half_open_socket,
    accepting_while_the_client_closes_gives_a_closed_connection,
    sending_while_the_peer_shuts_down_ends_with_epipe,
    both_ends_closing_at_once_with_unread_data,
    sending_and_closing_loses_nothing_that_was_sent,
    reading_and_resizing_the_window_loses_nothing
        => "what is under way when the window shrinks is taken for too much: ENOBUFS",
    many_connections_at_once_keep_their_data_apart,
);

const ROUNDS: u32 = 200;

/// A delay that differs from round to round, from none to as long as a connect() takes.
fn jitter(round: u32) {
    let until = std::time::Instant::now() + Duration::from_micros(u64::from(round * 37 % 300));
    while std::time::Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Reads until the end of the connection, which must come.
fn read_to_end(socket: &Socket) -> anyhow::Result<Vec<u8>> {
    socket.set_receive_timeout(PATIENCE)?;
    let mut all = Vec::new();
    loop {
        match socket.recv_vec(1 << 16, 0) {
            Ok(bytes) if bytes.is_empty() => return Ok(all),
            Ok(bytes) => all.extend(bytes),
            Err(Errno(libc::ECONNRESET | libc::ENOTCONN)) => return Ok(all),
            Err(error) => return Err(error.into()),
        }
    }
}

fn connecting_while_the_listener_closes_succeeds_or_is_reset(setup: &Setup) -> anyhow::Result<()> {
    for round in 0..ROUNDS {
        let listener = Socket::listening(Kind::Stream)?;
        let address = setup.address(&listener)?;
        let client = Socket::new(Kind::Stream)?;
        client.set_connect_timeout(PATIENCE)?;
        let connected = thread::scope(|scope| {
            let connecting = scope.spawn(|| client.connect(address));
            jitter(round);
            drop(listener);
            connecting.join().unwrap()
        });
        match connected {
            Ok(()) => ensure_eq!(read_to_end(&client)?, b""),
            Err(error) => ensure_eq!(error, Errno(libc::ECONNRESET)),
        }
    }
    Ok(())
}

extern "C" fn nothing(_signal: i32) {}

/// Lets SIGUSR1 interrupt system calls.
fn interruptible() {
    // SAFETY: The handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

/// A listener whose connections are accepted and answered with one byte, until this is dropped.
struct Greeter {
    listener: Socket,
    stop: std::sync::Arc<AtomicBool>,
    worker: Option<thread::JoinHandle<()>>,
}

impl Greeter {
    fn new() -> anyhow::Result<Self> {
        let listener = Socket::listening(Kind::Stream)?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (ours, stopped) = (listener.duplicate()?, stop.clone());
        ours.set_receive_timeout(Duration::from_millis(50))?;
        let worker = thread::spawn(move || {
            let mut last = None;
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(socket) = ours.accept() {
                    let _ = socket.send(b"!", libc::MSG_DONTWAIT);
                    // Closed late, so that its client finds it open.
                    last = Some(socket);
                }
            }
            drop(last);
        });
        Ok(Self {
            listener,
            stop,
            worker: Some(worker),
        })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// A socket whose connect() ended like this can connect, if it has not.
fn connects_in_the_end(
    setup: &Setup,
    client: &Socket,
    greeter: &Greeter,
    first: Result<(), Errno>,
) -> anyhow::Result<()> {
    client.set_connect_timeout(PATIENCE)?;
    if let Err(error) = first {
        let given_up = [Errno(libc::EINTR), Errno(libc::ETIMEDOUT)];
        ensure!(given_up.contains(&error), "connect() failed with {error}");
        let again = client.connect(setup.address(&greeter.listener)?);
        // What the listener says to the first request may come late.
        match again {
            Ok(()) | Err(Errno(libc::EISCONN)) => {}
            Err(Errno(libc::ECONNRESET | libc::EPROTO)) => return Ok(()),
            Err(error) => anyhow::bail!("connecting again failed with {error}"),
        }
    }
    client.set_receive_timeout(PATIENCE)?;
    let greeting = client.recv_vec(10, 0);
    ensure!(
        matches!(
            greeting.as_deref(),
            Ok(b"!" | b"") | Err(Errno(libc::ECONNRESET | libc::ENOTCONN))
        ),
        "the greeting is {greeting:?}"
    );
    Ok(())
}

fn connecting_while_signals_arrive_leaves_no_half_open_socket(setup: &Setup) -> anyhow::Result<()> {
    interruptible();
    let greeter = Greeter::new()?;
    let address = setup.address(&greeter.listener)?;
    for round in 0..ROUNDS {
        let client = Socket::new(Kind::Stream)?;
        client.set_connect_timeout(PATIENCE)?;
        let ours = &client;
        let result = thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let connecting = scope.spawn(move || {
                // SAFETY: No memory involved.
                let _ = tell.send(unsafe { libc::pthread_self() });
                ours.connect(address)
            });
            if let Ok(thread) = told.recv() {
                jitter(round);
                // SAFETY: The thread was not joined.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            }
            connecting.join().unwrap()
        });
        connects_in_the_end(setup, &client, &greeter, result)?;
    }
    Ok(())
}

fn connecting_while_the_time_is_up_leaves_no_half_open_socket(setup: &Setup) -> anyhow::Result<()> {
    let greeter = Greeter::new()?;
    let address = setup.address(&greeter.listener)?;
    for _ in 0..ROUNDS {
        let client = Socket::new(Kind::Stream)?;
        // One tick.
        client.set_connect_timeout(Duration::from_micros(1))?;
        // So that it is up before the answer, now and then.
        let load = setup.pair(Kind::Stream)?;
        load.client.send(&[0; 100_000], libc::MSG_DONTWAIT)?;
        let result = client.connect(address);
        connects_in_the_end(setup, &client, &greeter, result)?;
    }
    Ok(())
}

fn accepting_while_the_client_closes_gives_a_closed_connection(
    setup: &Setup,
) -> anyhow::Result<()> {
    let listener = Socket::listening(Kind::Stream)?;
    listener.set_receive_timeout(PATIENCE)?;
    for round in 0..ROUNDS {
        let client = setup.connected_to(&listener, Kind::Stream)?;
        let server = thread::scope(|scope| {
            let accepting = scope.spawn(|| listener.accept());
            jitter(round);
            drop(client);
            accepting.join().unwrap()
        })?;
        ensure_eq!(read_to_end(&server)?, b"");
    }
    Ok(())
}

fn sending_while_the_peer_shuts_down_ends_with_epipe(setup: &Setup) -> anyhow::Result<()> {
    for round in 0..ROUNDS {
        let kind = [Kind::Stream, Kind::Seqpacket][round as usize % 2];
        let Pair { client, server } = setup.pair(kind)?;
        let stopped = thread::scope(|scope| {
            let writer = scope.spawn(|| loop {
                if let Err(error) = client.send(&[1; 3000], 0) {
                    break error;
                }
            });
            jitter(round);
            match round % 3 {
                0 => drop(server),
                1 => {
                    let _ = server.shutdown(libc::SHUT_RDWR);
                }
                _ => {
                    let _ = server.shutdown(libc::SHUT_RD);
                }
            }
            writer.join().unwrap()
        });
        let ended = [
            Errno(libc::EPIPE),
            Errno(libc::ECONNRESET),
            Errno(libc::ENOTCONN),
        ];
        ensure!(
            ended.contains(&stopped),
            "round {round}: send() failed with {stopped}"
        );
    }
    Ok(())
}

fn both_ends_closing_at_once_with_unread_data(setup: &Setup) -> anyhow::Result<()> {
    for round in 0..ROUNDS {
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        client.send_all(b"never read")?;
        server.send_all(b"neither")?;
        if round % 2 == 0 {
            wait_until("it is there", || {
                client.unread() == Ok(7) && server.unread() == Ok(10)
            })?;
        }
        thread::scope(|scope| {
            scope.spawn(move || drop(client));
            jitter(round);
            drop(server);
        });
    }
    Ok(())
}

fn sending_and_closing_loses_nothing_that_was_sent(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(20);
    for round in 0..ROUNDS {
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        let len = (round as usize * 7919) % 300_000;
        thread::scope(|scope| {
            let reader = scope.spawn(move || read_to_end(&server));
            client.send_all(&pattern.bytes(0, len))?;
            drop(client);
            let bytes = reader.join().unwrap()?;
            ensure_eq!(bytes.len(), len, "round {round}");
            pattern.check(0, &bytes)
        })?;
    }
    Ok(())
}

fn reading_and_resizing_the_window_loses_nothing(setup: &Setup) -> anyhow::Result<()> {
    const LEN: usize = 4 << 20;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(21);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.send_all(&pattern.bytes(0, LEN)));
        scope.spawn(|| {
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let _ = server.set_window([262_144, 5000, 100_000, 20_000][round % 4]);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let received = server.recv_exact(LEN);
        done.store(true, Ordering::Relaxed);
        let received = received?;
        ensure_eq!(received.len(), LEN);
        pattern.check(0, &received)?;
        ensure_eq!(writer.join().unwrap(), Ok(()));
        Ok(())
    })
}

fn many_connections_at_once_keep_their_data_apart(setup: &Setup) -> anyhow::Result<()> {
    const CONNECTIONS: u64 = 16;
    const LEN: usize = 500_000;
    let pairs = (0..CONNECTIONS)
        .map(|_| setup.pair(Kind::Stream))
        .collect::<Result<Vec<_>, _>>()?;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for (seed, Pair { client, server }) in (100..).step_by(2).zip(&pairs) {
            for (from, to, seed) in [(client, server, seed), (server, client, seed + 1)] {
                let pattern = Pattern::new(seed);
                scope.spawn(move || from.send_all(&Pattern::new(seed).bytes(0, LEN)));
                workers.push(scope.spawn(move || pattern.check(0, &to.recv_exact(LEN)?)));
            }
        }
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap())
    })
}
