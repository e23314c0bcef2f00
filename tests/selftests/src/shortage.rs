// SPDX-License-Identifier: GPL-2.0
//! Memory that is not to be had, where a case wants it: `failslab`, `fail_page_alloc` and
//! `fail_usercopy` of kernels that have them (Documentation/fault-injection).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context};

use crate::case::Skip;
use crate::errno::Errno;

const ROOT: &str = "/sys/kernel/debug";

/// Allocations of objects, and of pages.
const ALLOCATIONS: [&str; 2] = ["failslab", "fail_page_alloc"];
/// Accesses to memory of the caller.
const ACCESSES: &str = "fail_usercopy";

/// What any kind of failure needs not to happen by itself, and to happen anywhere.
const NEUTRAL: [(&str, &str); 8] = [
    ("probability", "0"),
    ("interval", "1"),
    ("space", "0"),
    ("times", "-1"),
    ("verbose", "0"),
    ("task-filter", "N"),
    ("require-start", "0"),
    ("require-end", "18446744073709551615"),
];

/// Failures that this process asks for, until it is dropped.
pub struct Shortage(());

impl Shortage {
    pub fn new() -> anyhow::Result<Self> {
        if !Path::new(ROOT).join("failslab/require-start").exists() {
            return Err(Skip("this kernel makes no failures on demand".to_owned()).into());
        }
        let this = Self(());
        this.reset()?;
        // Also of who may wait for memory, and of single pages.
        set("failslab", "ignore-gfp-wait", "N")?;
        set("failslab", "cache-filter", "N")?;
        set("fail_page_alloc", "ignore-gfp-wait", "N")?;
        set("fail_page_alloc", "ignore-gfp-highmem", "N")?;
        set("fail_page_alloc", "min-order", "0")?;
        Ok(this)
    }

    fn reset(&self) -> anyhow::Result<()> {
        for kind in ALLOCATIONS.iter().chain([&ACCESSES]) {
            for (name, value) in NEUTRAL {
                set(kind, name, value)?;
            }
        }
        Ok(())
    }

    /// Does `call`, in which what can fail fails the `nth` time; whether it came to that.
    pub fn nth<T>(&self, nth: u32, call: impl FnOnce() -> T) -> anyhow::Result<(T, bool)> {
        self.nth_of(Path::new("/proc/thread-self"), nth, call)
    }

    /// The same, where it is not this thread that fails, but the task with this directory in /proc.
    pub fn nth_of<T>(
        &self,
        task: &Path,
        nth: u32,
        call: impl FnOnce() -> T,
    ) -> anyhow::Result<(T, bool)> {
        let path = task.join("fail-nth");
        let switch = OpenOptions::new().read(true).write(true).open(&path);
        let switch = switch.with_context(|| path.display().to_string())?;
        switch.write_all_at(nth.to_string().as_bytes(), 0)?;
        let result = call();
        let struck = is_off(&switch)?;
        // What is left would strike this, and is used up then.
        while !struck && switch.write_all_at(b"0", 0).is_err() {}
        Ok((result, struck))
    }

    /// Does `call` once for each thing in it that can fail, which fails then; and once more.
    pub fn each(&self, mut call: impl FnMut(u32) -> anyhow::Result<bool>) -> anyhow::Result<u32> {
        for nth in 1..MOST {
            if !call(nth).with_context(|| format!("failure {nth}"))? {
                return Ok(nth - 1);
            }
        }
        anyhow::bail!("{MOST} failures are not enough")
    }

    /// The same, where there has to be something.
    pub fn every(&self, call: impl FnMut(u32) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        ensure!(self.each(call)? > 0, "nothing fails");
        Ok(())
    }

    /// Does `call` as [`nth`](Self::nth), and once more if that made it fail: what it returns then, and
    /// whether it came to a failure.
    pub fn nth_or_again<T>(
        &self,
        nth: u32,
        call: impl Fn() -> Result<T, Errno>,
    ) -> anyhow::Result<(T, bool)> {
        let (result, struck) = self.nth(nth, &call)?;
        if let Err(error) = &result {
            ensure_told(*error)?;
        }
        Ok((result.or_else(|_| call()).context("once more")?, struck))
    }

    /// Counts only what happens in the function at this place, and in what that calls.
    pub fn within(&self, function: &Function) -> anyhow::Result<()> {
        for kind in ALLOCATIONS.iter().chain([&ACCESSES]) {
            require(kind, function.start, function.end)?;
        }
        Ok(())
    }

    /// The same, and of that only allocations.
    pub fn allocations_within(&self, function: &Function) -> anyhow::Result<()> {
        self.within(function)?;
        require(ACCESSES, 1, 1)
    }

    /// From now on the allocation at `site` fails, in whoever comes there: so often, or always.
    pub fn strike(&self, site: &Site, times: Option<u32>) -> anyhow::Result<()> {
        for kind in ALLOCATIONS {
            require(kind, site.address, site.address + 1)?;
            let times = times.map_or("-1".to_owned(), |times| times.to_string());
            set(kind, "times", &times)?;
            set(kind, "probability", "100")?;
        }
        Ok(())
    }

    /// From now on all allocations fail in tasks with `make-it-fail`, of those that count.
    pub fn strike_marked(&self) -> anyhow::Result<()> {
        for kind in ALLOCATIONS {
            set(kind, "task-filter", "Y")?;
            set(kind, "times", &MANY.to_string())?;
            set(kind, "probability", "100")?;
        }
        Ok(())
    }

    /// How often [`strike_marked`](Self::strike_marked) has come.
    pub fn strikes(&self) -> anyhow::Result<u32> {
        let mut strikes = 0;
        for kind in ALLOCATIONS {
            let left: u32 = fs::read_to_string(switch(kind, "times"))?.trim().parse()?;
            strikes += MANY - left;
        }
        Ok(strikes)
    }

    /// Whether a [`strike`](Self::strike) that was to come so often has come as often.
    pub fn has_struck(&self) -> anyhow::Result<bool> {
        for kind in ALLOCATIONS {
            if fs::read_to_string(switch(kind, "times"))?.trim() == "0" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Nothing fails any more.
    pub fn relent(&self) -> anyhow::Result<()> {
        self.reset()
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        let _ = self.reset();
    }
}

/// More failures than any system call has places for.
const MOST: u32 = 3000;
/// More than a case waits for.
const MANY: u32 = 1_000_000;

fn switch(kind: &str, name: &str) -> PathBuf {
    Path::new(ROOT).join(kind).join(name)
}

fn set(kind: &str, name: &str, value: &str) -> anyhow::Result<()> {
    let path = switch(kind, name);
    fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))
}

/// Only with a return address of this range on the stack.
fn require(kind: &str, start: u64, end: u64) -> anyhow::Result<()> {
    set(kind, "require-start", &start.to_string())?;
    set(kind, "require-end", &end.to_string())
}

/// Whether no failure is due any more.
fn is_off(switch: &File) -> anyhow::Result<bool> {
    let mut text = [0; 16];
    match switch.read_at(&mut text, 0) {
        Ok(len) => Ok(std::str::from_utf8(&text[..len])?.trim() == "0"),
        // This was struck.
        Err(_) => Ok(false),
    }
}

/// What a call may say that has failed for a failure on demand.
pub fn ensure_told(error: Errno) -> anyhow::Result<()> {
    let told = [libc::ENOMEM, libc::ENOBUFS, libc::EFAULT, libc::ENFILE];
    ensure!(told.contains(&error.0), "the error is {error}");
    Ok(())
}

/// A function of the kernel.
#[derive(Clone, Debug)]
pub struct Function {
    start: u64,
    end: u64,
}

/// A call of an allocator, by where it returns to.
#[derive(Clone, Debug)]
pub struct Site {
    /// Function and offset.
    pub name: String,
    address: u64,
}

/// Where functions of the kernel are, or of one of its modules.
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    pub fn of(module: Option<&str>) -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
        let mut symbols = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let owner = words
                .get(3)
                .map(|name| name.trim_matches(|c| "[]".contains(c)));
            if owner == module && matches!(words.get(1), Some(&("t" | "T"))) {
                symbols.push((u64::from_str_radix(words[0], 16)?, words[2].to_owned()));
            }
        }
        symbols.sort();
        ensure!(
            symbols.last().is_some_and(|(address, _)| *address > 0),
            "there are no addresses in /proc/kallsyms"
        );
        Ok(Self(symbols))
    }

    pub fn function(&self, name: &str) -> anyhow::Result<Function> {
        let start = self.address(name)?;
        let next = self.0.iter().find(|(address, _)| *address > start);
        let end = next.map_or(start + 1, |(address, _)| *address);
        Ok(Function { start, end })
    }

    /// The first function with this in its name, which may be mangled.
    pub fn containing(&self, part: &str) -> Option<Function> {
        let is_it = |name: &str| name.contains(part) && !name.starts_with("__");
        let (_, name) = self.0.iter().find(|(_, name)| is_it(name))?;
        self.function(name).ok()
    }

    /// All functions, as if they were one.
    pub fn text(&self) -> anyhow::Result<Function> {
        match (self.0.first(), self.0.last()) {
            (Some((start, _)), Some((end, _))) => Ok(Function {
                start: *start,
                end: *end,
            }),
            _ => anyhow::bail!("there are no functions"),
        }
    }

    fn address(&self, name: &str) -> anyhow::Result<u64> {
        let found = self.0.iter().find(|(_, symbol)| symbol == name);
        Ok(found
            .with_context(|| format!("there is no function {name}"))?
            .0)
    }

    /// The sites that a file lists, one in a line.
    pub fn sites(&self, list: &Path) -> anyhow::Result<Vec<Site>> {
        let text = fs::read_to_string(list).with_context(|| list.display().to_string())?;
        let site = |line: &str| {
            let (function, offset) = line.split_once("+0x").context("not FUNCTION+0xOFFSET")?;
            Ok(Site {
                name: line.to_owned(),
                address: self.address(function)? + u64::from_str_radix(offset, 16)?,
            })
        };
        text.lines().map(site).collect()
    }
}
