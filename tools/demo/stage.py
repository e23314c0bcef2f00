# SPDX-License-Identifier: GPL-2.0
"""The two machines of the demo, and how commands in them are shown and their results checked."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import rig
from rig import runs, transports
from rig.channel import Command
from rig.machine import Machine

from .screen import Screen

# The implementation on each side: "rust" is ours, "c" the kernel's own.
SIDES = {"guest": "rust", "host": "rust"}
LANGUAGES = {"rust": "ours, in Rust", "c": "the kernel's own, in C"}

# What vsock.ko calls the transport of each side; C and Rust have the same names.
TRANSPORTS = {"guest": "virtio_transport", "host": "vhost_transport"}

CID_HOST = 2
CID_GUEST = 3

# The longest of the commands, ssh, takes 3 s on a quiet machine without KVM, 20 s on a very busy one.
TIMEOUT = 120.0

SEARCH_PATH = "/run/programs:/usr/sbin:/usr/bin:/sbin:/bin"


class Unexpected(Exception):
    """Something is not as the demo claims."""


@dataclasses.dataclass
class Stage:
    """Where the steps play."""

    screen: Screen
    host: rig.Host
    guest: rig.Guest
    sides: Mapping[str, str]

    def machine(self, side: str) -> Machine:
        return {"guest": self.guest, "host": self.host}[side]

    def modules(self, side: str) -> tuple[str, ...]:
        """The modules of a side, in load order; the last one is the transport."""
        return getattr(transports.ROLES[side], self.sides[side])

    def ours(self, side: str) -> bool:
        return self.sides[side] == "rust"

    def _start(self, side: str, line: str) -> Command:
        # In the host the checkout is there, at its own path: commands are as in the README.
        directory = str(runs.CHECKOUT) if side == "host" else None
        return self.machine(side).start(["sh", "-euc", line], env={"PATH": SEARCH_PATH}, cwd=directory)

    def run(self, side: str, line: str, timeout: float = TIMEOUT) -> str:
        """Shows and runs a command line; what it printed."""
        with self.screen.command(f"{side}#", line):
            command = self._start(side, line)
            command.close_input()
            result = command.wait(timeout)
        self.screen.output(result.stdout)
        return result.stdout

    @contextlib.contextmanager
    def background(self, side: str, line: str, ready: str) -> Iterator[Command]:
        """Shows a command and runs it beside the block; the block starts when it has printed `ready`."""
        with self.screen.command(f"{side}#", f"{line} &"):
            command = self._start(side, f"exec {line}")
            if ready:
                command.wait_for(ready, TIMEOUT)
        try:
            yield command
        finally:
            if self.host.channel.error is None:
                command.kill()

    def prepare(self, side: str, path: str, text: str, mode: int = 0o644) -> None:
        """Writes a file that on real machines an administrator would have put there."""
        script = f'mkdir -p "$(dirname {path})"; cat >{path}; chmod {mode:o} {path}'
        self.machine(side).shell(script, input=text.encode())

    def require(self, holds: bool, claim: str) -> None:
        """Shows a claim that holds, or ends the demo with it."""
        if not holds:
            raise Unexpected(claim)
        self.screen.ok(claim)


def install(stage: Stage, programs: list[pathlib.Path]) -> None:
    """Puts programs where both machines' commands find them."""
    for path in programs:
        for machine in (stage.host, stage.guest):
            machine.program(path)
