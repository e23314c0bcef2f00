# SPDX-License-Identifier: GPL-2.0
"""User Mode Linux: the kernel as a program of this machine, with the tree as its root, read-only.

It runs at the machine's own speed, and so it serves for measurements of what needs no hardware.
"""

import contextlib
import os
import pathlib
import secrets
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

from . import programs, runs
from .channel import Channel
from .console import Console
from .errors import MachineError, RigError
from .host import BOOT_TIMEOUT, SocketStream, cpu_time
from .machine import Machine, in_use

# What `make` calls the architecture, see tools/env.
ARCH = "um"

# Where its first process finds the agent's end of the control channel, and the whole of the tree,
# which its own temporary file systems hide elsewhere.
PORT = "/dev/ttyS0"
OUTSIDE = "/mnt"

KERNEL_ARGUMENTS = """
root=/dev/root rootfstype=hostfs rootflags=/ ro seccomp=on con=null con0=null,fd:1 ssl=null
loglevel=7 panic=-1 oops=panic printk.devkmsg=on
""".split()


class UserMode(Machine):
    """A running User Mode Linux; use `user_mode()`."""

    def __init__(self, run: runs.Run, memory: int, cpus: int):
        super().__init__()
        self.name = "user mode"
        self.console = Console(self.name, run.path / "user-mode.log", self._fail)
        self._boot(memory, cpus)

    def _boot(self, memory: int, cpus: int) -> None:
        session = secrets.token_hex(8)
        ours, theirs = socket.socketpair()
        command = [
            *(str(runs.image()), *KERNEL_ARGUMENTS, f"mem={memory}M", f"ncpus={cpus}"),
            *(f"ssl0=fd:{theirs.fileno()}", f"init={runs.RIG / 'user-mode-init'}"),
            *(f"rig_agent={OUTSIDE}{programs.agent()}", f"rig_port={PORT}", f"rig_session={session}"),
            f"rig_outside={OUTSIDE}",
        ]
        self._process = subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.channel = Channel(self.name, SocketStream(ours), session, self.console.tail)
        threading.Thread(target=self._read_console, name="user mode console", daemon=True).start()

    def _read_console(self) -> None:
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            self.console.feed(data)
        self._process.wait()
        self.console.feed(b"")

    def _fail(self, error: MachineError) -> None:
        self.channel.fail(error)

    def wait_ready(self) -> None:
        self.channel.wait_ready(BOOT_TIMEOUT * runs.patience())

    def put(self, source: pathlib.Path, target: str, mode: int = 0o644) -> None:
        """Copies a file into the machine, which sees those of the tree."""
        path = shlex.quote(f"{OUTSIDE}{source.resolve()}")
        self.shell(f"install -D -m {mode:o} {path} {shlex.quote(target)}")

    def cpu_time(self) -> float:
        """Seconds of the machine's CPUs that it has used, with all it runs."""
        return cpu_time(self._process.pid)

    def close(self) -> None:
        """Ends it with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def user_mode(*, memory: int = 1024, cpus: int = 2) -> Iterator[UserMode]:
    """A running User Mode Linux; `memory` in MiB."""
    if os.environ.get("KARCH") != ARCH:
        raise RigError(f"{runs.release()} is no User Mode Linux: KERNEL=uml")
    run = runs.Run()
    machine = UserMode(run, memory, cpus)
    with in_use(machine, run):
        yield machine
