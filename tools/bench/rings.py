# SPDX-License-Identifier: GPL-2.0
"""The way through the host's device alone: tests/host_alone is the guest, and costs next to nothing."""

import functools
import pathlib

from rig import RigError, programs

from . import load
from .cells import RingCell

PACKAGE = "rvsock-host-alone"

# How much longer than it measures the program may take.
PATIENCE = 60.0


@functools.cache
def program() -> pathlib.Path:
    return programs.build(PACKAGE)


def measure(machine: load.Machine, cell: RingCell, timing: load.Timing) -> dict[str, float]:
    """Gbit/s by direction."""
    seconds = timing.time / 1000
    command = [machine.program(program()), "speed", "--seconds", str(seconds), "--sizes", str(cell.size)]
    output = machine.run(command, timeout=PATIENCE + 2 * seconds).stdout
    return parse(output, cell.size)


def parse(output: str, size: int) -> dict[str, float]:
    """What the program measured with packets of this size; its table has megabytes for each second."""
    head, *lines = [line.split("\t") for line in output.splitlines()]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    found = {row["direction"]: float(row["MB/s"]) * 8e-3 for row in rows if int(row["bytes"]) == size}
    if not found:
        raise RigError(f"{PACKAGE} says nothing of {size} bytes:\n{output}")
    return found
