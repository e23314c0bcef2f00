# SPDX-License-Identifier: GPL-2.0
"""The control channel to an agent in a virtual machine: frames, and the commands they are about.

The agent (`tools/agent`) is the other end; its frame.rs says what each kind means.
"""

import dataclasses
import enum
import itertools
import struct
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from .errors import (
    CommandFailed,
    CommandTimeout,
    MachineError,
    MachineHung,
    MachineLost,
    RigError,
    describe_status,
)

HEADER = struct.Struct("<IBI")
CHUNK = 32 << 10

# How long a machine may take to answer a ping or to kill a command. On a busy machine that
# emulates both levels, answers were seen to take 8 s.
PATIENCE = 60.0

# How long after a channel the console may end: longer than console.PANIC_GRACE.
CONSOLE_DELAY = 6.0


class Kind(enum.IntEnum):
    START = 1
    STDIN = 2
    SIGNAL = 3
    RESIZE = 4
    PING = 5
    HELLO = 16
    STDOUT = 17
    STDERR = 18
    EXIT = 19
    PONG = 20


class Stream(Protocol):
    """The byte stream that frames travel on."""

    def write(self, data: bytes) -> None: ...

    def read(self) -> bytes:
        """Some bytes; none at the end of the stream."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended; `status` is negative for a signal, as in subprocess."""

    status: int
    stdout: str
    stderr: str


def encode_start(
    arguments: Sequence[str], environment: Mapping[str, str], directory: str | None, terminal: bool
) -> bytes:
    fields = [f"a{argument}" for argument in map(str, arguments)]
    fields += [f"e{name}={value}" for name, value in environment.items()]
    fields += [f"d{directory}"] if directory else []
    fields += ["t"] if terminal else []
    if any("\0" in field for field in fields):
        raise ValueError("a command cannot contain NUL characters")
    return "".join(field + "\0" for field in fields).encode(errors="surrogateescape")


def decode_exit(text: str) -> tuple[int | None, str]:
    """Status, or None and the reason why the command could not be started."""
    word, _, rest = text.partition(" ")
    if word == "exited":
        return int(rest), ""
    if word == "killed":
        return -int(rest), ""
    return None, rest


class Command:
    """A command in a virtual machine, running or ended."""

    def __init__(self, channel: "Channel", identity: int, arguments: Sequence[str]):
        self.arguments = list(map(str, arguments))
        self.status: int | None = None
        self._channel = channel
        self._id = identity
        self._output = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
        self._sinks: dict[Kind, Callable[[bytes], None]] = {}
        self._failure = ""
        self._error: RigError | None = None
        self._changed = threading.Condition()
        self._ended = False

    # What the channel calls.

    def _deliver(self, kind: Kind, payload: bytes) -> None:
        sink = self._sinks.get(kind)
        if sink:
            sink(payload)
            return
        with self._changed:
            self._output[kind] += payload
            self._changed.notify_all()

    def _end(self, status: int | None, failure: str = "", error: RigError | None = None) -> None:
        with self._changed:
            self.status, self._failure, self._error = status, failure, error
            self._ended = True
            self._changed.notify_all()
        for sink in self._sinks.values():
            sink(b"")

    # What users call.

    @property
    def running(self) -> bool:
        return not self._ended

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self._output[Kind.STDOUT].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Error output so far."""
        return self._output[Kind.STDERR].decode(errors="replace")

    def write(self, data: bytes) -> None:
        """Sends bytes to standard input."""
        for at in range(0, len(data), CHUNK):
            self._channel.send(Kind.STDIN, self._id, data[at : at + CHUNK])

    def close_input(self) -> None:
        self._channel.send(Kind.STDIN, self._id, b"")

    def signal(self, number: int) -> None:
        """Signals the command and its children."""
        self._channel.send(Kind.SIGNAL, self._id, bytes([number]))

    def resize(self, rows: int, columns: int) -> None:
        self._channel.send(Kind.RESIZE, self._id, struct.pack("<HH", rows, columns))

    def wait_for(self, text: str, timeout: float) -> None:
        """Waits until `text` appears in the output or error output."""
        with self._changed:
            self._changed.wait_for(lambda: text in self.stdout + self.stderr or self._ended, timeout)
            if text in self.stdout + self.stderr:
                return
        self._check_started()
        raise CommandTimeout(self.arguments, f"did not print {text!r} within {timeout:.0f} s", self._shown())

    def wait(self, timeout: float, check: bool = True) -> Result:
        """Waits for the end; a command that takes longer is killed."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._ended, timeout)
        if not ended:
            self.kill()
            raise CommandTimeout(self.arguments, f"took longer than {timeout:.0f} s", self._shown())
        self._check_started()
        assert self.status is not None
        if check and self.status != 0:
            raise CommandFailed(self.arguments, describe_status(self.status), self._shown())
        return Result(self.status, self.stdout, self.stderr)

    def kill(self) -> None:
        """Kills the command with its children and waits until they are gone."""
        if self._ended:
            return
        self.signal(9)
        with self._changed:
            gone = self._changed.wait_for(lambda: self._ended, PATIENCE)
        if self._error:
            raise self._error
        if not gone:
            self._channel.ping()
            self._channel.hung(f"`{self.arguments[0]}` survived SIGKILL for {PATIENCE:.0f} s, it hangs in the kernel")

    def _check_started(self) -> None:
        if self._error:
            raise self._error
        if self._ended and self.status is None:
            raise CommandFailed(self.arguments, f"could not be started: {self._failure}")

    def _shown(self) -> str:
        """The end of both outputs, for messages."""
        parts = [("stdout", self.stdout), ("stderr", self.stderr)]
        lines = []
        for name, text in parts:
            lines += [f"  {name}| {line}" for line in text.splitlines()[-25:]]
        return "\n".join(lines)


class Channel:
    """One agent. Any thread may use it; one thread of its own reads."""

    def __init__(
        self,
        name: str,
        stream: Stream,
        session: str,
        console_tail: Callable[[], str],
        autopsy: Callable[[], str] = str,
    ):
        """`autopsy` finds out what a machine does that hangs, and raises a MachineError if that has a
        name of its own; nobody uses the machine after it.
        """
        self.name = name
        self.console_tail = console_tail
        self._autopsy = autopsy
        self._stream = stream
        self._session = session
        self._ids = itertools.count(1)
        self._commands: dict[int, Command] = {}
        self._pongs: set[int] = set()
        self._state = threading.Condition()
        self._sending = threading.Lock()
        self._ready = False
        self._error: MachineError | None = None
        self._reader = threading.Thread(target=self._read, name=f"{name} channel", daemon=True)
        self._reader.start()

    # Requests.

    def send(self, kind: Kind, identity: int, payload: bytes) -> None:
        if self._error:
            raise self._error
        with self._sending:
            try:
                self._stream.write(HEADER.pack(len(payload), kind, identity) + payload)
            except OSError as error:
                raise self._error or MachineError(f"{self.name}: control channel: {error}") from None

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        terminal: bool = False,
        sinks: Mapping[Kind, Callable[[bytes], None]] | None = None,
    ) -> Command:
        """Starts a command; output goes to `sinks`, where there is one, in pieces (b"" at the end)."""
        command = Command(self, next(self._ids), arguments)
        command._sinks.update(sinks or {})
        payload = encode_start(arguments, environment or {}, directory, terminal)
        with self._state:
            self._commands[command._id] = command
        self.send(Kind.START, command._id, payload)
        return command

    def ping(self) -> None:
        """Returns when the agent answers."""
        identity = next(self._ids)
        self.send(Kind.PING, identity, b"")
        with self._state:
            self._state.wait_for(lambda: identity in self._pongs or self._error, PATIENCE)
            if self._error:
                raise self._error
            answered = identity in self._pongs
        if not answered:
            self.hung(f"does not answer for {PATIENCE:.0f} s")

    def wait_ready(self, timeout: float) -> None:
        """Returns when the agent is there."""
        with self._state:
            self._state.wait_for(lambda: self._ready or self._error, timeout)
            if self._error:
                raise self._error
            ready = self._ready
        if not ready:
            self.hung(f"did not come up within {timeout:.0f} s")

    def hung(self, what: str) -> typing.NoReturn:
        """Gives the machine up: whatever else is asked of it fails at once, and not after a timeout each."""
        self.fail(MachineHung(f"{self.name} {what}; what it was doing was shown before"))
        try:
            found = self._autopsy()
        except MachineError as error:
            self._error = error
            raise
        raise MachineHung(f"{self.name} {what}\n{found}{self.console_tail()}")

    def fail(self, error: MachineError) -> None:
        """Ends everything with `error`; the first one counts."""
        with self._state:
            if self._error is not None:
                return
            self._error = error
            commands, self._commands = list(self._commands.values()), {}
            self._state.notify_all()
        for command in commands:
            command._end(None, error=error)

    @property
    def error(self) -> MachineError | None:
        return self._error

    # The reading thread.

    def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := self._stream.read():
                buffer += data
                if self._ready or self._find_greeting(buffer):
                    self._take_frames(buffer)
            reason = "closed"
        except (OSError, ValueError) as error:
            reason = str(error)
        # Why the machine ended is seen on its console, and says more than that the channel broke.
        with self._state:
            self._state.wait_for(lambda: self._error, CONSOLE_DELAY)
        self.fail(MachineLost(f"{self.name}: the control channel broke ({reason})\n{self.console_tail()}"))

    def _find_greeting(self, buffer: bytearray) -> bool:
        """Skips what came before the agent's greeting; firmware may write to the port."""
        session = self._session.encode()
        greeting = HEADER.pack(len(session), Kind.HELLO, 0) + session
        at = buffer.find(greeting)
        if at < 0:
            return False
        del buffer[: at + len(greeting)]
        with self._state:
            self._ready = True
            self._state.notify_all()
        return True

    def _take_frames(self, buffer: bytearray) -> None:
        while len(buffer) >= HEADER.size:
            length, kind, identity = HEADER.unpack_from(buffer)
            end = HEADER.size + length
            if len(buffer) < end:
                return
            payload = bytes(buffer[HEADER.size : end])
            del buffer[:end]
            self._handle(Kind(kind), identity, payload)

    def _handle(self, kind: Kind, identity: int, payload: bytes) -> None:
        if kind == Kind.PONG:
            with self._state:
                self._pongs.add(identity)
                self._state.notify_all()
            return
        with self._state:
            command = self._commands.get(identity)
        if command is None:
            return
        if kind == Kind.EXIT:
            with self._state:
                self._commands.pop(identity, None)
            command._end(*decode_exit(payload.decode(errors="replace")))
        else:
            command._deliver(kind, payload)
