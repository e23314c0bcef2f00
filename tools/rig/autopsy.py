# SPDX-License-Identifier: GPL-2.0
"""What a guest that hangs was doing, as far as QEMU, the host and the guest's own kernel can tell."""

import time
import typing

from .errors import RigError
from .monitor import Monitor

if typing.TYPE_CHECKING:
    from .host import Host

# How long QEMU may take to answer, and the kernel to print its stack.
PATIENCE = 10.0
# Where the CPU is, several times: the same place always, or a loop.
SAMPLES = 3

# Threads of the guest's QEMU, and of the kernel that serve it.
THREADS = "ps -eLo pid,tid,stat,pcpu,time,wchan:24,comm | grep -E 'qemu|vhost|kvm|CPU '"


def of_guest(host: "Host", monitor: Monitor | None, path: str) -> str:
    """Lines for a message. The guest panics of it, if it still can."""
    lines = [describe_threads(host)]
    try:
        monitor = monitor or Monitor(host, path, PATIENCE)
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
