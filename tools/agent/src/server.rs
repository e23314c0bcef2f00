// SPDX-License-Identifier: GPL-2.0
//! Reads frames and does what they ask for.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::command::{describe, Control, Spec, Started};
use crate::frame::{Frame, Kind};

/// Bytes of output in one frame.
const CHUNK: usize = 32 << 10;

/// What the threads of all commands share.
struct Shared<W> {
    output: Mutex<W>,
    commands: Mutex<HashMap<u32, Control>>,
}

impl<W: Write> Shared<W> {
    fn send(&self, kind: Kind, id: u32, payload: impl Into<Vec<u8>>) {
        // Without a reader there is nobody to tell: the end of the input ends the program.
        let _ = Frame::new(kind, id, payload).write(&mut *locked(&self.output));
    }

    fn with_command(&self, id: u32, action: impl FnOnce(&mut Control)) {
        // A command may have ended while a frame for it was under way.
        if let Some(control) = locked(&self.commands).get_mut(&id) {
            action(control);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one rig until it closes the stream, then kills what still runs.
pub fn serve(
    mut input: impl Read,
    output: impl Write + Send + 'static,
    session: &str,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        output: Mutex::new(output),
        commands: Mutex::default(),
    });
    shared.send(Kind::Hello, 0, session);
    let result = loop {
        match Frame::read(&mut input) {
            Ok(Some(frame)) => handle(&shared, frame),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    for control in locked(&shared.commands).values() {
        control.signal(libc::SIGKILL as u8);
    }
    result
}

fn handle<W: Write + Send + 'static>(shared: &Arc<Shared<W>>, frame: Frame) {
    let Frame { kind, id, payload } = frame;
    match (kind, payload.as_slice()) {
        (Kind::Start, payload) => start(shared, id, payload),
        (Kind::Stdin, _) => shared.with_command(id, |control| control.stdin(payload)),
        (Kind::Signal, &[signal]) => shared.with_command(id, |control| control.signal(signal)),
        (Kind::Resize, &[r0, r1, c0, c1]) => {
            let (rows, columns) = (u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1]));
            shared.with_command(id, |control| control.resize(rows, columns));
        }
        (Kind::Ping, _) => shared.send(Kind::Pong, id, payload),
        _ => eprintln!("rvsock-agent: ignoring a frame that makes no sense: {kind:?}"),
    }
}

fn start<W: Write + Send + 'static>(shared: &Arc<Shared<W>>, id: u32, payload: &[u8]) {
    let started = Spec::parse(payload).and_then(|spec| {
        spec.start()
            .map_err(|error| format!("{}: {error}", spec.arguments[0].to_string_lossy()))
    });
    match started {
        Ok(Started {
            control,
            child,
            outputs,
        }) => {
            locked(&shared.commands).insert(id, control);
            let shared = Arc::clone(shared);
            thread::spawn(move || finish(&shared, id, child, outputs));
        }
        Err(reason) => shared.send(Kind::Exit, id, format!("failed {reason}")),
    }
}

/// Streams the output of a command to its end, and reports how it ended.
///
/// The end of the output counts, not the end of the process: a command that leaves a child behind
/// that still holds its output is not over, and can still be signalled.
fn finish<W: Write + Send + 'static>(
    shared: &Arc<Shared<W>>,
    id: u32,
    mut child: std::process::Child,
    outputs: Vec<Box<dyn Read + Send>>,
) {
    let streams: Vec<_> = outputs
        .into_iter()
        .zip([Kind::Stdout, Kind::Stderr])
        .map(|(output, kind)| {
            let shared = Arc::clone(shared);
            thread::spawn(move || stream(&shared, id, kind, output))
        })
        .collect();
    let status = child.wait();
    for stream in streams {
        let _ = stream.join();
    }
    locked(&shared.commands).remove(&id);
    let text = status.map_or_else(|error| format!("failed {error}"), describe);
    shared.send(Kind::Exit, id, text);
}

fn stream<W: Write>(shared: &Shared<W>, id: u32, kind: Kind, mut output: impl Read) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match output.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal reports EIO once the last process on it is gone.
            Ok(0) | Err(_) => return,
            Ok(length) => shared.send(kind, id, &buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// A rig of its own, with an agent at the other end.
    struct Rig {
        port: UnixStream,
        agent: Option<thread::JoinHandle<io::Result<()>>>,
    }

    impl Rig {
        fn new() -> Self {
            let (port, other) = UnixStream::pair().unwrap();
            port.set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            let agent = thread::spawn(move || serve(other.try_clone().unwrap(), other, "test"));
            let mut rig = Self {
                port,
                agent: Some(agent),
            };
            assert_eq!(rig.receive(), Frame::new(Kind::Hello, 0, *b"test"));
            rig
        }

        fn send(&mut self, kind: Kind, id: u32, payload: impl Into<Vec<u8>>) {
            Frame::new(kind, id, payload).write(&mut self.port).unwrap();
        }

        fn start(&mut self, id: u32, script: &str) {
            self.send(Kind::Start, id, format!("ash\0a-c\0a{script}\0"));
        }

        fn receive(&mut self) -> Frame {
            Frame::read(&mut self.port)
                .unwrap()
                .expect("the agent went away")
        }

        /// All output of a command, and its last word.
        fn finish(&mut self, id: u32) -> (String, String, String) {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let text = |bytes| String::from_utf8(bytes).unwrap();
            loop {
                let frame = self.receive();
                assert_eq!(frame.id, id);
                match frame.kind {
                    Kind::Stdout => stdout.extend(frame.payload),
                    Kind::Stderr => stderr.extend(frame.payload),
                    Kind::Exit => return (text(stdout), text(stderr), text(frame.payload)),
                    kind => panic!("unexpected {kind:?}"),
                }
            }
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = self.port.shutdown(Shutdown::Both);
            if let Some(agent) = self.agent.take() {
                let _ = agent.join();
            }
        }
    }

    #[test]
    fn output_error_output_and_status_come_back() {
        let mut rig = Rig::new();
        rig.start(1, "echo out; echo err >&2; exit 3");
        assert_eq!(
            rig.finish(1),
            ("out\n".into(), "err\n".into(), "exited 3".into())
        );
    }

    #[test]
    fn environment_and_directory_are_passed_on() {
        let mut rig = Rig::new();
        rig.send(Kind::Start, 1, *b"ash\0a-c\0aecho $X; pwd\0eX=1 2\0d/usr\0");
        assert_eq!(rig.finish(1).0, "1 2\n/usr\n");
    }

    #[test]
    fn input_is_passed_on_up_to_its_end() {
        let mut rig = Rig::new();
        rig.start(1, "cat");
        let megabyte = "x".repeat(1 << 20);
        for chunk in megabyte.as_bytes().chunks(CHUNK) {
            rig.send(Kind::Stdin, 1, chunk);
        }
        rig.send(Kind::Stdin, 1, []);
        assert_eq!(rig.finish(1), (megabyte, String::new(), "exited 0".into()));
    }

    #[test]
    fn a_command_that_does_not_read_holds_up_nobody() {
        let mut rig = Rig::new();
        rig.start(1, "exec sleep 60");
        for _ in 0..64 {
            rig.send(Kind::Stdin, 1, vec![0; CHUNK]);
        }
        rig.start(2, "echo alive");
        assert_eq!(rig.finish(2).0, "alive\n");
    }

    #[test]
    fn a_signal_reaches_the_children_too() {
        let mut rig = Rig::new();
        rig.start(1, "sleep 60 & echo started; wait");
        assert_eq!(rig.receive(), Frame::new(Kind::Stdout, 1, *b"started\n"));
        rig.send(Kind::Signal, 1, [9]);
        assert_eq!(
            rig.finish(1),
            (String::new(), String::new(), "killed 9".into())
        );
    }

    #[test]
    fn a_missing_program_is_reported_by_name() {
        let mut rig = Rig::new();
        rig.send(Kind::Start, 1, *b"a/no/such/program\0");
        assert!(rig.finish(1).2.starts_with("failed /no/such/program: "));
        rig.send(Kind::Start, 2, []);
        assert_eq!(rig.finish(2).2, "failed nothing to run");
    }

    #[test]
    fn a_ping_is_answered_and_frames_for_nobody_are_not() {
        let mut rig = Rig::new();
        rig.send(Kind::Stdin, 9, *b"lost");
        rig.send(Kind::Signal, 9, [15]);
        rig.send(Kind::Ping, 4, *b"?");
        assert_eq!(rig.receive(), Frame::new(Kind::Pong, 4, *b"?"));
    }

    #[test]
    fn a_command_on_a_terminal_knows_its_size() {
        let mut rig = Rig::new();
        rig.send(Kind::Start, 1, *b"ash\0a-c\0aread go; stty size\0t\0");
        rig.send(Kind::Resize, 1, [24, 0, 80, 0]);
        rig.send(Kind::Stdin, 1, *b"go\n");
        let (shown, _, end) = rig.finish(1);
        assert!(shown.ends_with("24 80\r\n"), "{shown:?}");
        assert_eq!(end, "exited 0");
    }

    #[test]
    fn commands_die_with_the_connection() {
        let mut rig = Rig::new();
        rig.start(1, "echo $$; exec sleep 60");
        let pid: i32 = String::from_utf8(rig.receive().payload)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        drop(rig);
        for _ in 0..300 {
            // SAFETY: kill takes no pointers; signal 0 only asks.
            if unsafe { libc::kill(pid, 0) } < 0 {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("{pid} is still there");
    }
}
