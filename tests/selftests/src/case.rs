// SPDX-License-Identifier: GPL-2.0
//! What a case is, and what it finds.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is said about the machine on the command line.
#[derive(Clone)]
pub struct Setup {
    /// The CID that leads back to this kernel.
    pub cid: u32,
    /// The module of the transport.
    pub module: Option<String>,
    /// A shell command that loads it.
    pub reload: Option<String>,
    /// Take minutes if need be.
    pub long: bool,
    /// A file with all calls of allocators in the module.
    pub sites: Option<PathBuf>,
    /// The port, on another machine, of a program that leads connections back to this kernel.
    pub relay: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            cid: libc::VMADDR_CID_LOCAL,
            module: None,
            reload: None,
            long: false,
            sites: None,
            relay: None,
        }
    }
}

/// One statement about behaviour, and how to show it.
pub struct Case {
    /// The statement, with the name of its file in front.
    pub name: &'static str,
    pub run: fn(&Setup) -> anyhow::Result<()>,
    /// Linux's C transports are known not to behave so, for this reason.
    pub differs_in_c: Option<&'static str>,
}

/// Why a case cannot show anything here.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The cases of a file, named after their functions. After `=>` stands why C differs.
#[macro_export]
macro_rules! cases {
    ($file:literal: $($run:ident $(=> $reason:literal)?),+ $(,)?) => {
        pub const CASES: &[$crate::case::Case] = &[$($crate::case::Case {
            name: concat!($file, ".", stringify!($run)),
            run: $run,
            differs_in_c: $crate::cases!(@reason $($reason)?),
        }),+];
    };
    (@reason) => { None };
    (@reason $reason:literal) => { Some($reason) };
}

/// Fails the case unless both are equal.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(, $($why:tt)+)?) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let why = String::new() $(+ ": " + &format!($($why)+))?;
            let (left, right) = ($crate::case::shown(left), $crate::case::shown(right));
            anyhow::bail!("line {}: {} is {left}, not {right}{why}", line!(), stringify!($left));
        }
    }};
}

/// The beginning of a value: buffers are long.
pub fn shown(value: &impl fmt::Debug) -> String {
    let mut text = format!("{value:?}");
    if text.len() > 1000 {
        let total = text.len();
        text = format!(
            "{}... ({total} characters)",
            text.chars().take(1000).collect::<String>()
        );
    }
    text
}

/// How long to wait for what should happen at once: emulated machines on busy ones are slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long to watch that something does not happen.
pub const A_WHILE: Duration = Duration::from_millis(200);

/// Waits until `condition` is true; fails with `what` if that takes too long.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !condition() {
        anyhow::ensure!(
            started.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Asserts that `condition` stays true for a while.
pub fn stays(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < A_WHILE {
        anyhow::ensure!(condition(), "does not stay so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
