# SPDX-License-Identifier: GPL-2.0
"""What a machine that hangs was doing, as far as QEMU, the host and the machine's own kernel can tell."""

import re
import time
import typing
from collections.abc import Callable

from .errors import RigError
from .monitor import GuestMonitor, Monitor

if typing.TYPE_CHECKING:
    from .host import Host

# How long QEMU may take to answer, and the kernel to print its stack.
PATIENCE = 10.0
# Where the CPU is, several times: the same place always, or a loop.
SAMPLES = 3

# What registers show of a CPU that does not get to fetch an instruction, and is not told why: the address that it
# faults at is where it is.
FETCH_FAULT = re.compile(r"^RIP=([0-9a-f]{16}) .*?^CR0=\S+ CR2=([0-9a-f]{16}) ", re.MULTILINE | re.DOTALL)
FETCH_FAULT_TEXT = (
    "the guest cannot fetch an instruction, and faults at it for ever. This is a fault of the emulation of nested "
    "virtualization: what the guest was given are registers of the host's kernel, as of the instruction after VMRUN"
)

# Threads of the guest's QEMU, and of the kernel that serve it.
THREADS = "ps -eLo pid,tid,stat,pcpu,time,wchan:24,comm | grep -E 'qemu|vhost|kvm|CPU '"


def of_guest(host: "Host", monitor: Monitor | None, path: str) -> str:
    """Lines for a message. The guest panics of it, if it still can."""
    return describe_threads(host) + of_processors(lambda: monitor or GuestMonitor(host, path, PATIENCE))


def of_processors(connect: Callable[[], Monitor]) -> str:
    """Where the CPUs of a machine are, in lines. Its kernel panics of it."""
    lines = []
    try:
        monitor = connect()
        for _ in range(SAMPLES):
            lines.append(command(monitor, "info registers -a"))
            time.sleep(1)
        lines.append(command(monitor, "info lapic"))
        # Its kernel panics of an NMI that it does not know (unknown_nmi_panic), and shows its stack.
        monitor.execute("inject-nmi")
        time.sleep(PATIENCE)
    except RigError as error:
        lines.append(f"QEMU does not answer either: {error}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def cannot_fetch(found: str) -> bool:
    """Whether all samples of the registers show the same fault for ever, with interrupts pending: no kernel does that."""
    faults = FETCH_FAULT.findall(found)
    return len(set(faults)) == 1 and len(faults) > 1 and faults[0][0] == faults[0][1]


def describe_threads(host: "Host") -> str:
    try:
        return host.run(["sh", "-c", THREADS], timeout=PATIENCE, check=False).stdout
    except RigError as error:
        return f"the host does not answer either: {error}"


def command(monitor: Monitor, line: str) -> str:
    """What a command of QEMU's monitor for humans prints, without floating point."""
    text = str(monitor.execute("human-monitor-command", **{"command-line": line}))
    kept = [line for line in text.splitlines() if not line.startswith(("FP", "XMM", "YMM", "Opmask", "FCW"))]
    return "\n".join([f"({line})", *kept])
