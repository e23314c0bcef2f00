# SPDX-License-Identifier: GPL-2.0
"""A shell in the host VM with a guest running: the development loop.

The user's terminal is passed through to one command at a time: the shell in the host, or, when that
asks for it, a command in the guest. Requests come from small scripts in the host, through a FIFO.
"""

import contextlib
import fcntl
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator

from . import runs, transports
from .channel import Command, Kind
from .errors import NotBuilt, RigError
from .guest import Guest
from .host import Host, host
from .machine import Machine

WELCOME = """\
This is the host VM; the guest has CID {cid}, the host CID 2. Machines end with this shell.

  guest              a shell in the guest (busybox); Ctrl-D leads back
  guest COMMAND      a command there: guest 'dmesg | tail'
  reload [c|rust]    build the modules, and load them anew in host and guest
  modules            which transports are loaded where
  The checkout is at {checkout}, read-only, and always current.
  Logs of both kernels: {logs} (outside the machines)
"""

# $1 is the name under which the script was called.
REQUEST = """\
#!/bin/sh
exec 9>/run/rig/lock
flock 9
echo "${0##*/} $*" >/run/rig/requests
read status </run/rig/replies
exit "$status"
"""
REQUESTS = ("guest", "reload", "modules")

SERVE = "mkfifo /run/rig/requests /run/rig/replies; : >/run/rig/ready; while :; do cat /run/rig/requests; done"


def preferred(role: str) -> str:
    """Ours if it is built."""
    try:
        for name in transports.ROLES[role].rust:
            transports.built(name)
        return "rust"
    except NotBuilt:
        return "c"


class Terminal:
    """The user's terminal, or whatever input and output are, in front of one command at a time."""

    def __init__(self) -> None:
        self.live = sys.stdin.isatty()
        self._focus: list[Command] = []

    def say(self, text: str) -> None:
        data = text.replace("\n", "\r\n") if self.live else text
        self.show(data.encode() + (b"\r\n" if self.live else b"\n"))

    def show(self, data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        if not self.live:
            yield
            return
        saved = termios.tcgetattr(0)
        previous = signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        try:
            tty.setraw(0)
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            signal.signal(signal.SIGWINCH, previous)

    def start(self, machine: Machine, arguments: list[str]) -> Command:
        """Starts a command and puts it in front."""
        environment = {"TERM": os.environ.get("TERM", "dumb"), "PATH": "/run/rig/bin:/usr/sbin:/usr/bin"}
        sinks = {Kind.STDOUT: self.show, Kind.STDERR: self.show}
        command = machine.channel.start(arguments, environment, terminal=self.live, sinks=sinks)
        self._focus.append(command)
        self._resize()
        return command

    def leave(self) -> None:
        """Puts the previous command in front again."""
        self._focus.pop()
        self._resize()

    def _resize(self) -> None:
        if self.live and self._focus:
            rows, columns = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]
            self._focus[-1].resize(rows, columns)

    def forward(self, seconds: float) -> bool:
        """Passes input on for a while; false at its end."""
        if not select.select([0], [], [], seconds)[0]:
            return True
        data = os.read(0, 4096)
        if data:
            self._focus[-1].write(data)
        else:
            self._focus[-1].close_input()
        return bool(data)


class Session:
    """A host, a guest, and the requests that come from the shell in the host."""

    def __init__(self, machine: Host, guest: Guest, terminal: Terminal):
        self.host, self.guest, self.terminal = machine, guest, terminal
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def prepare(self) -> None:
        links = " ".join(f"/run/rig/bin/{name}" for name in REQUESTS)
        script = f"mkdir -p /run/rig/bin; for name in {links}; do cat /run/rig/request >$name; chmod 755 $name; done"
        self.host.run(["sh", "-c", "mkdir -p /run/rig; cat >/run/rig/request"], input=REQUEST.encode())
        self.host.shell(script)
        self.host.channel.start(["sh", "-c", SERVE], sinks={Kind.STDOUT: self._receive})
        self.host.shell("until [ -e /run/rig/ready ]; do sleep 0.1; done")

    def _receive(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            self._requests.put(line)

    def run(self) -> int:
        """The shell, to its end; its status."""
        with self.terminal.raw():
            shell = self.terminal.start(self.host, ["bash", "-i"] if self.terminal.live else ["bash", "-s"])
            self._serve(shell)
        return shell.wait(60, check=False).status

    def _serve(self, until: Command) -> None:
        """Forwards input and answers requests until a command ends."""
        more = True
        while until.running:
            if more:
                more = self.terminal.forward(0.05)
            else:
                time.sleep(0.05)
            with contextlib.suppress(queue.Empty):
                self._answer(self._requests.get_nowait())

    def _answer(self, request: str) -> None:
        name, _, rest = request.partition(" ")
        actions = {"guest": self._guest, "reload": self._reload, "modules": self._modules}
        try:
            status = actions[name](rest.strip())
        except RigError as error:
            self.terminal.say(str(error))
            status = 1
        self.host.shell(f"echo {status} >/run/rig/replies")

    def _guest(self, script: str) -> int:
        command = self.terminal.start(self.guest, ["sh", "-c", script] if script else ["sh", "-i"])
        self._serve(command)
        self.terminal.leave()
        return command.wait(60, check=False).status & 0xFF

    def _modules(self, _: str) -> int:
        for machine, role in ((self.guest, "guest"), (self.host, "host"), (self.host, "loopback")):
            names = transports.loaded(machine, role)
            self.terminal.say(f"{machine.name}: {role} transport: {', '.join(names) or 'none'}")
        return 0

    def _reload(self, implementation: str) -> int:
        if implementation not in ("", *transports.IMPLEMENTATIONS):
            raise RigError(f"reload takes one of: {', '.join(transports.IMPLEMENTATIONS)}")
        started = time.monotonic()
        if implementation != "c":
            self._build()
        built = time.monotonic()
        self.guest.unload("guest")
        self.guest.unplug_vsock()
        for role in ("loopback", "host"):
            self.host.unload(role)
        for role in ("loopback", "host"):
            self.host.load(role, implementation or preferred(role))
        self.guest.plug_vsock()
        self.guest.load("guest", implementation or preferred("guest"))
        ended = time.monotonic()
        self.terminal.say(f"built in {built - started:.1f} s, loaded in {ended - built:.1f} s")
        return self._modules("")

    def _build(self) -> None:
        command = ["make", "--no-print-directory", f"-j{os.cpu_count()}", "modules"]
        result = subprocess.run(command, cwd=runs.CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if result.returncode:
            raise RigError(f"the modules do not build:\n{result.stdout}{result.stderr}")


def run(cid: int, cpu: str | None) -> int:
    terminal = Terminal()
    print("Starting the host VM and a guest ...", flush=True)
    with host(cpu=cpu) as machine:
        machine.load("host", preferred("host"))
        machine.load("loopback", preferred("loopback"))
        with machine.guest(cid=cid) as guest:
            guest.load("guest", preferred("guest"))
            session = Session(machine, guest, terminal)
            session.prepare()
            print(WELCOME.format(cid=cid, checkout=runs.CHECKOUT, logs=machine.directory), flush=True)
            return session.run()
