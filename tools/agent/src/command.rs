// SPDX-License-Identifier: GPL-2.0
//! One command: how it is described, started, fed and ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;

/// What a `Start` frame asks for: NUL-terminated fields, each with its kind as first byte.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Field `a`, once an argument: program and arguments.
    pub arguments: Vec<OsString>,
    /// Field `e`, `NAME=VALUE`: additions to the agent's own environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Field `d`: working directory.
    pub directory: Option<OsString>,
    /// Field `t`: give it a terminal of its own instead of three pipes.
    pub terminal: bool,
}

impl Spec {
    pub fn parse(payload: &[u8]) -> Result<Self, String> {
        let mut spec = Self::default();
        for field in payload.split_inclusive(|byte| *byte == 0) {
            let Some((0, field)) = field.split_last() else {
                return Err("field without an end".into());
            };
            let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            match field.split_first() {
                Some((b'a', value)) => spec.arguments.push(text(value)),
                Some((b'e', value)) => {
                    let at = value
                        .iter()
                        .position(|byte| *byte == b'=')
                        .ok_or("environment without =")?;
                    spec.environment
                        .push((text(&value[..at]), text(&value[at + 1..])));
                }
                Some((b'd', value)) => spec.directory = Some(text(value)),
                Some((b't', _)) => spec.terminal = true,
                _ => return Err("field of unknown kind".into()),
            }
        }
        match spec.arguments.is_empty() {
            true => Err("nothing to run".into()),
            false => Ok(spec),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.arguments[0]);
        command
            .args(&self.arguments[1..])
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Starts the command as leader of a process group of its own.
    pub fn start(&self) -> io::Result<Started> {
        if self.terminal {
            self.start_on_terminal()
        } else {
            self.start_on_pipes()
        }
    }

    fn start_on_pipes(&self) -> io::Result<Started> {
        let mut command = self.command();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let outputs: Vec<Box<dyn Read + Send>> = vec![
            Box::new(child.stdout.take().expect("was asked for above")),
            Box::new(child.stderr.take().expect("was asked for above")),
        ];
        let stdin = feed(child.stdin.take().expect("was asked for above"));
        Ok(Started {
            control: Control {
                group: child.id() as i32,
                stdin: Some(stdin),
                terminal: None,
            },
            child,
            outputs,
        })
    }

    fn start_on_terminal(&self) -> io::Result<Started> {
        let (master, slave) = open_terminal()?;
        let mut command = self.command();
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of the process.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let stdin = feed(File::from(master.try_clone()?));
        let output = File::from(master.try_clone()?);
        let control = Control {
            group: child.id() as i32,
            stdin: Some(stdin),
            terminal: Some(master),
        };
        Ok(Started {
            control,
            child,
            outputs: vec![Box::new(output)],
        })
    }
}

/// A command that runs.
pub struct Started {
    pub control: Control,
    pub child: Child,
    /// Standard output and error, or what the terminal shows.
    pub outputs: Vec<Box<dyn Read + Send>>,
}

/// The handle by which later frames reach a command.
pub struct Control {
    group: i32,
    stdin: Option<Sender<Vec<u8>>>,
    terminal: Option<OwnedFd>,
}

impl Control {
    /// Passes bytes on to standard input; no bytes mean its end.
    pub fn stdin(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            self.stdin = None;
        } else if let Some(stdin) = &self.stdin {
            // A command that closed its input or ended needs no more of it.
            let _ = stdin.send(bytes);
        }
    }

    /// Signals the whole process group.
    pub fn signal(&self, signal: u8) {
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(-self.group, signal.into()) };
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Some(terminal) = &self.terminal {
            // SAFETY: `size` is what TIOCSWINSZ reads.
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        }
    }
}

/// Writes what arrives in the returned channel from a thread, so that a command that does not read
/// its input holds up nobody else.
fn feed(mut input: impl Write + Send + 'static) -> Sender<Vec<u8>> {
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        for bytes in receiver {
            if input.write_all(&bytes).is_err() {
                break;
            }
        }
    });
    sender
}

fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the two integers are valid, the optional arguments are absent.
    let result = unsafe { libc::openpty(&mut master, &mut slave, none, none as _, none as _) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in [master, slave] {
        // SAFETY: fcntl with F_SETFD takes no pointers.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: openpty succeeded, so both are open and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) })
}

/// The text of an `Exit` frame.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited {code}"),
        (None, Some(signal)) => format!("killed {signal}"),
        (None, None) => format!("failed with the unknown status {status:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_are_understood() {
        let spec = Spec::parse(b"aecho\0a\0eA=b=c\0d/tmp\0t\0").unwrap();
        assert_eq!(spec.arguments, ["echo", ""]);
        assert_eq!(spec.environment, [("A".into(), "b=c".into())]);
        assert_eq!(spec.directory, Some("/tmp".into()));
        assert!(spec.terminal);
    }

    #[test]
    fn nonsense_is_refused() {
        for payload in [
            &b""[..],
            b"d/\0",
            b"aecho",
            b"aecho\0x\0",
            b"aecho\0eNAME\0",
            b"aecho\0\0",
        ] {
            assert!(Spec::parse(payload).is_err(), "{payload:?}");
        }
    }
}
