# SPDX-License-Identifier: GPL-2.0
"""What a socket costs in memory: free memory before and after many are opened."""

import re
import time

from . import load
from .cells import MemoryCell

# What the kernel can give away at once: nothing else changes while connections are held. The
# counters of the CPUs are added up first.
SCRIPT = "cat /proc/sys/vm/stat_refresh; cat /proc/meminfo"
FREE = re.compile(r"^(?:MemFree|Buffers|Cached): +(\d+) kB", re.MULTILINE)

# Packets that are under way arrive, and sockets of earlier tests are gone, within milliseconds.
SETTLE = 0.3


def used(machine: load.Machine) -> int:
    """Memory in use, in KiB, counted from an arbitrary point."""
    return -sum(map(int, FREE.findall(machine.shell(SCRIPT).stdout)))


def measure(path: load.Path, cell: MemoryCell) -> dict[str, float]:
    """KiB for each socket on the passive machine, whose server must not be running."""
    with load.server(path.passive):
        time.sleep(SETTLE)
        before = used(path.passive)
        with load.held(path, cell.count, cell.size):
            time.sleep(SETTLE)
            after = used(path.passive)
    return {"kib": (after - before) / cell.count}
