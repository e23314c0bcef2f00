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
use crate::socket::{Address, Kind, Pair, Socket, DEFAULT_WINDOW};
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
    a_listener_that_ends_while_it_accepts_loses_no_connection,
    shutting_down_while_sending_keeps_what_was_sent,
    setting_options_while_connecting_elsewhere_changes_nothing_else,
    using_a_socket_while_it_changes_its_transport_ends_with_an_error,
);

const ROUNDS: u32 = 200;

/// Rounds of a race whose outcomes are more than a few.
fn rounds(setup: &Setup) -> u32 {
    if setup.long {
        20 * ROUNDS
    } else {
        ROUNDS
    }
}

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
    // One does not suffice: on a busy machine nothing may be under way whenever the window shrinks.
    (0..10).try_for_each(|seed| read_and_resize_the_window(setup, seed))
}

fn read_and_resize_the_window(setup: &Setup, seed: u64) -> anyhow::Result<()> {
    const LEN: usize = 4 << 20;
    let Pair { client, server } = setup.pair(Kind::Stream)?;
    let pattern = Pattern::new(seed);
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

fn a_listener_that_ends_while_it_accepts_loses_no_connection(setup: &Setup) -> anyhow::Result<()> {
    for round in 0..rounds(setup) {
        let kind = [Kind::Stream, Kind::Seqpacket][round as usize % 2];
        let listener = Socket::listening(kind)?;
        // Its end wakes nobody.
        listener.set_receive_timeout(Duration::from_millis(5))?;
        let clients = [(); 3].map(|()| setup.connected_to(&listener, kind));
        let clients = clients.into_iter().collect::<Result<Vec<_>, _>>()?;
        let other = listener.duplicate()?;
        let accepted = thread::scope(|scope| {
            let accepting = scope.spawn(move || {
                let mut accepted = Vec::new();
                while let Ok(server) = listener.accept() {
                    accepted.push(server);
                }
                // Closed by the last of both.
                accepted
            });
            jitter(round);
            if round % 3 > 0 {
                let _ = other.shutdown([libc::SHUT_RD, libc::SHUT_RDWR][round as usize % 2]);
            }
            drop(clients);
            if round % 3 == 0 {
                let _ = other.shutdown(libc::SHUT_RDWR);
            }
            drop(other);
            accepting.join().unwrap()
        });
        for server in &accepted {
            ensure_eq!(read_to_end(server)?, b"");
        }
    }
    Ok(())
}

fn shutting_down_while_sending_keeps_what_was_sent(setup: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(23);
    for round in 0..rounds(setup) {
        let Pair { client, server } = setup.pair(Kind::Stream)?;
        let other = client.duplicate()?;
        let (sent, received) = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut sent = 0;
                loop {
                    match client.send(&pattern.bytes(sent as u64, 5000), 0) {
                        Ok(len) => sent += len,
                        Err(error) => break (sent, error),
                    }
                }
            });
            let reader = scope.spawn(move || read_to_end(&server));
            jitter(round);
            let _ = other.shutdown([libc::SHUT_WR, libc::SHUT_RDWR][round as usize % 2]);
            (writer.join().unwrap(), reader.join().unwrap())
        });
        ensure_eq!(sent.1, Errno(libc::EPIPE), "round {round}");
        let received = received?;
        ensure_eq!(received.len(), sent.0, "round {round}");
        pattern.check(0, &received)?;
    }
    Ok(())
}

/// Where a socket may try to go: to this machine, to a host, to a guest; nobody listens there.
fn elsewhere(setup: &Setup, round: u32) -> Address {
    let cids = [setup.cid, libc::VMADDR_CID_HOST, 4711, setup.cid, 0, 99];
    Address::new(cids[round as usize % cids.len()], 1)
}

/// How connect() may fail there.
fn ensure_unreachable(result: Result<(), Errno>) -> anyhow::Result<()> {
    let errors = [
        libc::ECONNRESET,
        libc::ENODEV,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::ETIMEDOUT,
        libc::EINVAL,
        libc::ESOCKTNOSUPPORT,
        libc::EPROTO,
    ];
    ensure!(
        result.is_err_and(|error| errors.contains(&error.0)),
        "connect() returns {result:?}"
    );
    Ok(())
}

/// A socket that gives up to connect soon, of either kind in turn.
fn impatient_socket(round: u32) -> anyhow::Result<Socket> {
    let kind = [Kind::Stream, Kind::Seqpacket][round as usize % 2];
    let socket = Socket::new(kind)?;
    socket.set_connect_timeout(Duration::from_millis(50))?;
    Ok(socket)
}

fn setting_options_while_connecting_elsewhere_changes_nothing_else(
    setup: &Setup,
) -> anyhow::Result<()> {
    for round in 0..rounds(setup) {
        let socket = impatient_socket(round)?;
        thread::scope(|scope| {
            let setting = scope.spawn(|| -> anyhow::Result<()> {
                for step in 0..20u64 {
                    socket.set_window(20_000 + step)?;
                    socket.set_low_water(1 + step as i32)?;
                    ensure!((20_000..=DEFAULT_WINDOW as u64).contains(&socket.window()?));
                }
                Ok(())
            });
            for step in 0..4 {
                jitter(round + step);
                ensure_unreachable(socket.connect(elsewhere(setup, round + step)))?;
            }
            setting.join().unwrap()
        })?;
    }
    Ok(())
}

fn using_a_socket_while_it_changes_its_transport_ends_with_an_error(
    setup: &Setup,
) -> anyhow::Result<()> {
    for round in 0..rounds(setup) {
        let socket = impatient_socket(round)?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let uses: [fn(&Socket); 4] = [
                |socket| {
                    let _ = socket.send(b"to nobody", libc::MSG_DONTWAIT);
                },
                |socket| {
                    let _ = socket.recv_vec(10, libc::MSG_DONTWAIT);
                },
                |socket| {
                    let _ = (socket.unread(), socket.unsent(), socket.events());
                },
                // Not SO_ERROR: who asks for it takes the error that connect() is about to return.
                |socket| {
                    let _ = socket.shutdown(libc::SHUT_WR);
                },
            ];
            let (done, socket) = (&done, &socket);
            for action in uses {
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        action(socket);
                        thread::yield_now();
                    }
                });
            }
            let mut result = Ok(());
            for step in 0..6 {
                jitter(round + step);
                result = ensure_unreachable(socket.connect(elsewhere(setup, round + step)));
                if result.is_err() {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            result
        })?;
    }
    Ok(())
}
