# SPDX-License-Identifier: GPL-2.0
"""Runs the load program (load/) in the machines."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

from rig import Command, Guest, Host, RigError, UserMode, programs

PORT = 5000

# How much longer than on a quiet machine a test may take: starting and ending it takes 0.1 s there.
START_TIMEOUT = 60.0
TEST_TIMEOUT = 30.0

Machine = Host | Guest | UserMode


@functools.cache
def program() -> pathlib.Path:
    return programs.build("rvsock-load")


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a test is, in milliseconds: what is dropped first, and what is measured."""

    warm_up: int
    time: int


@dataclasses.dataclass(frozen=True)
class Path:
    """From the machine that is active to the one that answers, and its CID as seen from there."""

    active: Machine
    passive: Machine
    cid: int


@contextlib.contextmanager
def server(machine: Machine) -> Iterator[Command]:
    """The passive end, listening."""
    command = machine.start([machine.program(program()), "serve", str(PORT)])
    try:
        command.wait_for("listening", START_TIMEOUT)
        yield command
    finally:
        command.kill()


def run(path: Path, tests: Sequence[str], timing: Timing) -> list[dict[str, float]]:
    """Runs tests against a server; what each measured."""
    arguments = [path.active.program(program()), "run", str(path.cid), str(PORT)]
    arguments += [str(timing.warm_up), str(timing.time), *tests]
    limit = START_TIMEOUT + len(tests) * (TEST_TIMEOUT + (timing.warm_up + timing.time) / 1000)
    answers = [json.loads(line) for line in path.active.run(arguments, timeout=limit).stdout.splitlines()]
    if [answer.get("test") for answer in answers] != list(tests):
        raise RigError(f"{' '.join(arguments)} answered {answers}")
    return answers


@contextlib.contextmanager
def held(path: Path, count: int, size: int) -> Iterator[None]:
    """Connections that are open, and full if `size` is that of the writes which fill them."""
    arguments = [path.active.program(program()), "hold", str(path.cid), str(PORT), str(count), str(size)]
    command = path.active.start(arguments)
    try:
        command.wait_for('"held"', START_TIMEOUT + count * TEST_TIMEOUT / 10)
        yield
        command.close_input()
        command.wait(START_TIMEOUT)
    finally:
        command.kill()
