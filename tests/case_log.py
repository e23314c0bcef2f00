# SPDX-License-Identifier: GPL-2.0
"""Runs the two sides of one of the kernel's vsock programs, and reads the results of their cases."""

import dataclasses
import functools
import pathlib
import re
import signal
import time
import warnings
from collections.abc import Callable, Sequence

import rig
from peers import kernel_tools
from rig import runs, transports

CASE = re.compile(r"^(\d+) - ", re.MULTILINE)

# What the programs print after the last case.
COMPLETE = "All tests have been executed"

SIDES = ("server", "client")

# Programs that can be told to skip cases, and so to go on after one that failed.
SKIPPING = ("vsock_test",)

# Races inside the programs, by what a loser prints: the C pair loses each of them as well. Such a
# case is run again, with a warning; a defect with the same words loses every time.
RACES = {
    # The client binds its port a second time when the server says so over TCP, and nothing makes
    # the reset that frees the port arrive before that.
    ("vsock_test", 21): ("bind: Address already in use",),
    # The last connect() of case 33 was interrupted by a signal, and its request reaches the
    # listener of case 34, which stands at the same port: the server accepts a connection that is
    # reset at once.
    ("vsock_test", 34): (
        "send: Broken pipe",
        "send: Connection reset by peer",
        "connect: Connection reset by peer",
    ),
    # The io_uring of the connection before is torn down by work that runs in the client's next
    # system call and interrupts its connect(): EINTR, which the program answers with another
    # connect() of the same socket. The listener is gone by then.
    ("vsock_uring_test", 0): ("connect: Connection reset by peer",),
    ("vsock_uring_test", 1): ("connect: Connection reset by peer",),
}
REPETITIONS = 3

# What the programs print when a case cannot show anything in the set-up they found.
NO_EFFECT = re.compile(r"Test skipped.*|Setup unsupported.*|No transports (?:detected|tested)")

# 15 s for vsock_test on a quiet machine.
TIMEOUT = 180.0

# How long a server may take to end that has lost its client.
ABANDONED = 5.0

# A socket whose peer does not answer is there for 8 s after it was closed (VSOCK_CLOSE_TIMEOUT).
CLOSING = 60.0


@dataclasses.dataclass(frozen=True)
class Case:
    """What one side says about one case."""

    number: int
    output: str

    @property
    def title(self) -> str:
        return self.output.partition("...")[0]

    @property
    def passed(self) -> bool:
        return self.output.rstrip().endswith("ok")

    @property
    def skip_reason(self) -> str | None:
        found = NO_EFFECT.search(self.output)
        if found:
            return found.group()
        return "skipped" if self.output.rstrip().endswith("...skipped") else None


def parse(output: str) -> dict[int, Case]:
    """Cases by number; the last one ends where the program says that it is through."""
    output = output.partition(COMPLETE)[0]
    starts = list(CASE.finditer(output))
    ends = [*(start.start() for start in starts[1:]), len(output)][: len(starts)]
    cases = [
        Case(int(start.group(1)), output[start.start() : end]) for start, end in zip(starts, ends, strict=True)
    ]
    return {case.number: case for case in cases}


@dataclasses.dataclass
class Outcome:
    """Both sides of a program: of several runs if a case ended one before its time."""

    server: dict[int, Case] = dataclasses.field(default_factory=dict)
    client: dict[int, Case] = dataclasses.field(default_factory=dict)
    statuses: list[int] = dataclasses.field(default_factory=list)
    output: str = ""

    def record(self, outputs: Sequence[str], numbers: range) -> None:
        """Takes the results of some cases from what server and client printed."""
        for side, output in zip((self.server, self.client), outputs, strict=True):
            side.update((number, case) for number, case in parse(output).items() if number in numbers)

    def require(self, number: int) -> str | None:
        """Asserts that a case passed on both sides; the reason if it had no effect on one."""
        for name, side in (("server", self.server), ("client", self.client)):
            assert number in side, f"the {name} did not come to case {number}\n{self.output}"
        reason = self.server[number].skip_reason or self.client[number].skip_reason
        if reason is None:
            for name, side in (("server", self.server), ("client", self.client)):
                assert side[number].passed, f"failed on the {name}: {side[number].output}\n{self.output}"
        return reason

    def require_all(self, count: int) -> None:
        """Asserts that this many cases were run, and that the programs were content."""
        assert not any(self.statuses), self.output
        assert sorted(self.server) == sorted(self.client) == list(range(count))


@dataclasses.dataclass(frozen=True)
class End:
    """One side of a run: where it is and how it reaches the other."""

    machine: rig.Host | rig.Guest
    peer_cid: int
    control_port: int
    control_host: str = ""

    def start(self, program: pathlib.Path, mode: str, skip: Sequence[int]) -> rig.Command:
        arguments = [
            self.machine.program(program),
            f"--mode={mode}",
            f"--control-port={self.control_port}",
            f"--peer-cid={self.peer_cid}",
            *(f"--skip={number}" for number in skip),
        ]
        if self.control_host:
            arguments.append(f"--control-host={self.control_host}")
        # One stream, so that messages stand with the case they belong to.
        return self.machine.start(["sh", "-c", 'exec "$@" 2>&1', "sh", *arguments])


def sockets(machine: rig.Host | rig.Guest) -> str:
    """What shows that sockets exist: a list of them, or of users of the transports where there is no `ss`."""
    names = [name for role in ("guest", "loopback") for name in transports.ROLES[role].all]
    files = " ".join(f"/sys/module/{name}/refcnt" for name in names if name not in transports.SHARED)
    script = f"if command -v ss >/dev/null; then ss -H -a --vsock; else grep -v '^0$' {files} 2>/dev/null; fi"
    return machine.run(["sh", "-c", script], check=False).stdout.strip()


def wait_until_closed(machine: rig.Host | rig.Guest) -> None:
    """Waits until no socket is left of whatever ran before."""
    deadline = time.monotonic() + CLOSING * runs.patience()
    while left := sockets(machine):
        assert time.monotonic() < deadline, f"{machine.name} still has sockets:\n{left}"
        time.sleep(0.5)


def run(program: str, server: End, client: End, skip: Sequence[int] = ()) -> Outcome:
    """Runs both sides of a program, without the cases in `skip`.

    The program ends at the first case that fails; those after it have a run of their own.
    """
    if program == "vsock_diag_test":
        # It wants to see its own sockets only.
        for end in (server, client):
            wait_until_closed(end.machine)
    path = kernel_tools.build(patient=runs.patience() > 1)[program]
    outcome = Outcome()
    first, repeated = 0, 0
    while True:
        outputs, statuses = run_once(path, server, client, sorted({*range(first), *skip}))
        outcome.output += "".join(f"--- {side}\n{text[-3000:]}\n" for side, text in zip(SIDES, outputs, strict=True))
        last = last_case(outputs)
        if repeated < REPETITIONS and race_lost(program, last, outputs):
            repeated += 1
            warnings.warn(f"{program} lost the race of case {last} ({repeated} of {REPETITIONS})", stacklevel=2)
            outcome.record(outputs, range(first, last))
            first = last if program in SKIPPING else 0
            continue
        outcome.record(outputs, range(first, last + 1))
        outcome.statuses += statuses
        if COMPLETE in outputs[0] or last < first or program not in SKIPPING:
            return outcome
        first = last + 1


def once(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Remembers outcomes and errors: a program that hung would hang once more for each of its cases."""

    @functools.cache
    def finished(*arguments) -> Outcome | rig.RigError:
        try:
            return function(*arguments)
        except rig.RigError as error:
            return error

    def outcome(*arguments) -> Outcome:
        result = finished(*arguments)
        if isinstance(result, rig.RigError):
            raise result
        return result

    return outcome


def last_case(outputs: Sequence[str]) -> int:
    """The last case that both sides came to: one may have begun the next when the other fails."""
    return min(max(parse(output), default=-1) for output in outputs)


def race_lost(program: str, number: int, outputs: Sequence[str]) -> bool:
    return any(words in output for words in RACES.get((program, number), ()) for output in outputs)


def run_once(path: pathlib.Path, server: End, client: End, skip: Sequence[int]) -> tuple[list[str], list[int]]:
    """What server and client print, and their statuses."""
    listening = server.start(path, "server", skip)
    client_status = -signal.SIGKILL
    try:
        listening.wait_for("Control socket listening", timeout=60 * runs.patience())
        connecting = client.start(path, "client", skip)
        client_status = finish(connecting, TIMEOUT * runs.patience())
    finally:
        server_status = finish(listening, (ABANDONED if client_status else 60) * runs.patience())
    return [listening.stdout, connecting.stdout], [server_status, client_status]


def finish(command: rig.Command, timeout: float) -> int:
    """The status of a command, which is killed if it takes too long."""
    try:
        return command.wait(timeout, check=False).status
    except rig.CommandTimeout:
        return -signal.SIGKILL
