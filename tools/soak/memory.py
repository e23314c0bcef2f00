# SPDX-License-Identifier: GPL-2.0
"""What the kernels hold, and whether that has grown.

Only what is the same twice can be compared: a machine is idle both times, what can be given back was
given back, and everything has happened once before the first time. Some things come and go by
themselves, so each is looked at several times, and the least counts.
"""

import collections
import re
import time
import typing
from collections.abc import Iterable, Mapping

import leftovers
import rig

FIELDS = re.compile(r"^(\w+(?:\(\w+\))?): +(\d+) kB$", re.MULTILINE)

# Pages that processors have for themselves are free, though MemFree lacks them: megabytes, more or less.
PAGESETS = re.compile(r"^ +count: +(\d+)$", re.MULTILINE)
PAGE = 4

# The counters of the CPUs are added up first.
SCRIPT = "cat /proc/sys/vm/stat_refresh; cat /proc/meminfo; grep ' count:' /proc/zoneinfo"

LOOKS = 3
PAUSE = 2.0

# What may be there besides. A processor keeps some objects of each cache for itself: 66 more were seen in
# small caches. Of the rest, in KiB, 200 more of either were seen.
KEPT_OBJECTS = 256
KEPT_PART = 0.02
KEPT_KERNEL = 2 << 10
KEPT_SLAB = 1 << 10


class Figures(typing.NamedTuple):
    """Memory of a machine, in KiB."""

    available: int
    slab: int
    unreclaimable: int
    # What is neither free, nor the content of files, nor that of a process: the kernel's own.
    kernel: int


class Held(typing.NamedTuple):
    """What an idle machine holds when it has given back what it can."""

    figures: Figures
    left: leftovers.Held


class Before(typing.NamedTuple):
    """What was held after the warm-up, and when that was."""

    seconds: float
    held: Held


class Growth(typing.NamedTuple):
    """One thing that was counted twice."""

    name: str
    before: int
    after: int
    # So much more of it is no leak.
    allowed: int

    @property
    def more(self) -> int:
        return self.after - self.before

    @property
    def is_leak(self) -> bool:
        return self.more > self.allowed


def parse(text: str) -> Figures:
    kib = {name: int(number) for name, number in FIELDS.findall(text)}
    kept = PAGE * sum(map(int, PAGESETS.findall(text)))
    files = kib["Buffers"] + kib["Cached"] + kib["SwapCached"]
    return Figures(
        available=kib["MemAvailable"],
        slab=kib["Slab"],
        unreclaimable=kib["SUnreclaim"],
        kernel=kib["MemTotal"] - kib["MemFree"] - kept - files - kib["AnonPages"],
    )


def figures(machine: rig.Host | rig.Guest) -> Figures:
    """What can be known at once."""
    return parse(machine.shell(SCRIPT).stdout)


def sockets(machine: rig.Host | rig.Guest) -> list[str]:
    """The vsock sockets there are."""
    return leftovers.sockets(machine)


def look(machine: rig.Host | rig.Guest) -> Held:
    """What an idle machine holds."""
    looks = []
    for number in range(LOOKS):
        if number:
            time.sleep(PAUSE)
        left = leftovers.look(machine)
        looks.append(Held(figures(machine), left))
    return least(looks)


def least(looks: Iterable[Held]) -> Held:
    """The least of everything; users of modules and threads as they were in the end."""
    looks = list(looks)
    objects = {
        name: min(each.left.objects.get(name, 0) for each in looks) for name in looks[-1].left.objects
    }
    taken = Figures(
        available=max(each.figures.available for each in looks),
        slab=min(each.figures.slab for each in looks),
        unreclaimable=min(each.figures.unreclaimable for each in looks),
        kernel=min(each.figures.kernel for each in looks),
    )
    return Held(taken, looks[-1].left._replace(objects=objects))


def compare(before: Held, after: Held) -> list[Growth]:
    """Everything that can grow, and how much it has."""
    found = [
        Growth("KiB of the kernel", before.figures.kernel, after.figures.kernel, KEPT_KERNEL),
        Growth("KiB of slabs that stay", before.figures.unreclaimable, after.figures.unreclaimable, KEPT_SLAB),
    ]
    for kind, old, new in (
        ("users of", before.left.module_users, after.left.module_users),
        ("threads", without_numbers(before.left.threads), without_numbers(after.left.threads)),
    ):
        found += counted(kind, old, new, lambda count: 0)
    return found + counted("objects of", before.left.objects, after.left.objects, objects_allowed)


def without_numbers(threads: Mapping[str, int]) -> collections.Counter[str]:
    """Those of a guest have the number of a process in their names."""
    found: collections.Counter[str] = collections.Counter()
    for name, count in threads.items():
        found[re.sub(r"\d+", "N", name)] += count
    return found


def objects_allowed(before: int) -> int:
    return max(KEPT_OBJECTS, round(before * KEPT_PART))


def counted(
    kind: str, before: Mapping[str, int], after: Mapping[str, int], allowed: typing.Callable[[int], int]
) -> list[Growth]:
    names = sorted({*before, *after})
    return [
        Growth(f"{kind} {name}", before.get(name, 0), after.get(name, 0), allowed(before.get(name, 0)))
        for name in names
    ]
