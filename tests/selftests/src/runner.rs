// SPDX-License-Identifier: GPL-2.0
//! Runs cases, each in a process of its own, and prints KTAP.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, process};

use crate::case::{Case, Setup, Skip};
use crate::errno::check;

/// Sockets that wait for an answer of their peer hold their module this long at most: the 8 s of
/// VSOCK_CLOSE_TIMEOUT, and what a busy machine adds.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs `cases`; whether none failed.
pub fn run_all(cases: &[&Case], setup: &Setup, timeout: Duration) -> bool {
    println!("KTAP version 1\n1..{}", cases.len());
    let mut good = true;
    for (number, case) in (1..).zip(cases) {
        let outcome = run(case, setup, timeout);
        good &= !matches!(outcome, Outcome::Failed(_));
        report(number, case.name, &outcome);
    }
    good
}

fn report(number: usize, name: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Passed => println!("ok {number} {name}"),
        Outcome::Skipped(reason) => println!("ok {number} {name} # SKIP {reason}"),
        Outcome::Failed(reason) => {
            for line in reason.lines() {
                println!("# {line}");
            }
            println!("not ok {number} {name}");
        }
    }
    // To a pipe, or the last lines before a crash would be lost.
    let _ = std::io::stdout().flush();
}

fn run(case: &Case, setup: &Setup, timeout: Duration) -> Outcome {
    let before = match users(setup) {
        Ok(before) => before,
        Err(reason) => return Outcome::Failed(reason),
    };
    match run_apart(case, setup, timeout) {
        Ok(Outcome::Passed) => match wait_for_release(setup, before) {
            Ok(()) => Outcome::Passed,
            Err(reason) => Outcome::Failed(reason),
        },
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(format!("the case could not be run: {error:#}")),
    }
}

/// Runs a case in a child process, which is killed if it takes too long.
fn run_apart(case: &Case, setup: &Setup, timeout: Duration) -> anyhow::Result<Outcome> {
    let (reader, writer) = pipe()?;
    // SAFETY: There are no other threads.
    let child = check(unsafe { libc::fork() })?;
    if child == 0 {
        drop(reader);
        // Children of the case end with it, however it ends.
        // SAFETY: These affect this process only.
        unsafe { libc::setpgid(0, 0) };
        process::exit(run_here(case, setup, fs::File::from(writer)));
    }
    drop(writer);
    let status = wait(child, timeout)?;
    // SAFETY: The group is that of the child; it may be empty.
    unsafe { libc::kill(-child, libc::SIGKILL) };
    let mut text = String::new();
    // A process that escaped from the group would keep the pipe open: read what there is.
    fs::File::from(reader).read_to_string(&mut text)?;
    Ok(match status {
        None => Outcome::Failed(format!("takes longer than {timeout:?}\n{text}")),
        Some(PASSED) => Outcome::Passed,
        Some(SKIPPED) => Outcome::Skipped(text),
        Some(FAILED) => Outcome::Failed(text),
        Some(status) => Outcome::Failed(format!("ended with wait status {status:#x}\n{text}")),
    })
}

// Wait statuses of a case's process.
const PASSED: i32 = 0;
const FAILED: i32 = 1 << 8;
const SKIPPED: i32 = 4 << 8;

fn run_here(case: &Case, setup: &Setup, mut report: fs::File) -> i32 {
    let Err(error) = (case.run)(setup) else {
        return PASSED >> 8;
    };
    if let Some(Skip(reason)) = error.downcast_ref() {
        let _ = report.write_all(reason.as_bytes());
        return SKIPPED >> 8;
    }
    let _ = report.write_all(format!("{error:#}").as_bytes());
    FAILED >> 8
}

fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: There is room for two descriptors, which are ours afterwards.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// The wait status of a child; none if it had to be killed.
fn wait(child: libc::pid_t, timeout: Duration) -> anyhow::Result<Option<i32>> {
    // SAFETY: The child exists until it is waited for; the descriptor is ours.
    let pidfd = unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, child, 0))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    let mut event = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: There is one event.
    let ended = check(unsafe { libc::poll(&mut event, 1, timeout.as_millis() as i32) })? > 0;
    let mut status = 0;
    // SAFETY: The child is ours and was not waited for.
    unsafe {
        if !ended {
            libc::kill(-child, libc::SIGKILL);
        }
        check(libc::waitpid(child, &mut status, 0))?;
    }
    Ok(ended.then_some(status))
}

/// How many use the module: each of its sockets, and each open file of its devices.
fn users(setup: &Setup) -> Result<u32, String> {
    let Some(module) = &setup.module else {
        return Ok(0);
    };
    let path = PathBuf::from(format!("/sys/module/{module}/refcnt"));
    let count =
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let count = count.trim();
    count.parse().map_err(|_| format!("{count} users"))
}

/// Nobody may use the transport any more who did not before.
fn wait_for_release(setup: &Setup, before: u32) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let count = users(setup)?;
        if count <= before {
            return Ok(());
        }
        if started.elapsed() > RELEASE_TIMEOUT {
            return Err(format!(
                "{count} sockets of the module, {before} before, are left after {RELEASE_TIMEOUT:?}"
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
