# SPDX-License-Identifier: GPL-2.0
"""What a kernel holds: compared before and after something, it shows what was left behind."""

import collections
import typing

import rig

# What frees late what nobody uses any more is told to do it now.
SCRIPT = """
sync
echo 3 > /proc/sys/vm/drop_caches
for cache in /sys/kernel/slab/*/shrink; do echo 1 > $cache; done
echo -- slab
tail -n +3 /proc/slabinfo
echo -- modules
cut -d' ' -f1,3 /proc/modules
echo -- threads
ps -e -o ppid=,comm=
"""

# Areas of vmalloc that are free are purged many at a time, when there are enough of them.
PURGED_LATE = ("vmap_area",)


class Held(typing.NamedTuple):
    """What a kernel holds, by name."""

    objects: dict[str, int]
    module_users: dict[str, int]
    threads: collections.Counter[str]


def look(machine: rig.Host) -> Held:
    parts = machine.shell(SCRIPT).stdout.split("-- ")
    lines = {name: rest for name, _, rest in (part.partition("\n") for part in parts)}
    words = {name: [line.split() for line in text.splitlines()] for name, text in lines.items()}
    return Held(
        {name: int(active) for name, active, *_ in words["slab"] if name not in PURGED_LATE},
        {name: int(users) for name, users in words["modules"]},
        # Those of the kernel, by their names; workers come and go.
        collections.Counter(
            name for parent, name, *_ in words["threads"] if parent == "2" and not name.startswith("kworker/")
        ),
    )


def sockets(machine: rig.Host) -> list[str]:
    """The vsock sockets there are."""
    return machine.run(["ss", "--vsock", "--all", "--no-header"]).stdout.splitlines()
