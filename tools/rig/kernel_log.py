# SPDX-License-Identifier: GPL-2.0
"""Finds in a kernel log what no test may leave there."""

import re

from .errors import RigError

# Each is the headline of a kind of report, as the kernel prints it; the name says which.
REPORTS = {
    "panic": r"Kernel panic - not syncing",
    "oops": r"\bOops\b|general protection fault|stack segment:|divide error:|invalid opcode:",
    "page fault": r"BUG: unable to handle|BUG: kernel NULL pointer|unable to handle (page|kernel)",
    "BUG": r"kernel BUG at|\bBUG: ",
    "warning": r"\bWARNING: |------------\[ cut here \]",
    "lockdep": (
        r"possible recursive locking|possible circular locking|possible irq lock inversion|inconsistent lock "
        r"state|suspicious RCU usage|lock held when returning|bad unlock balance|held lock freed|"
        r"inconsistent \{|SOFTIRQ-(safe|unsafe)|HARDIRQ-(safe|unsafe)|turning off the locking"
    ),
    "sleep in atomic": r"sleeping function called from invalid context|scheduling while atomic",
    "hung task": r"INFO: task .* blocked for more than|blocked in I/O wait for more than",
    "lockup": r"(?i:\b(soft|hard) lockup)",
    "RCU stall": r"rcu.*(detected (expedited )?stalls?|self-detected stall|kthread starved)",
    "sanitizer": r"\bK(A|M|C)SAN: |\bUBSAN: |BUG: KFENCE|kfence: ",
    "memory leak": r"kmemleak: \d+ new suspected memory leaks|unreferenced object 0x",
    "debug objects": r"ODEBUG: ",
    "list corruption": r"list_(add|del) corruption|slab-.*corruption|Object (already free|padding overwritten)",
    "reference count": r"refcount_t: |percpu ref .* <= 0|unregister_netdevice: waiting",
    "allocation failure": r"page allocation failure|SLUB: Unable to allocate|Out of memory: Killed",
    "Rust panic": r"rust_kernel: panicked at|panicked at ",
}

PATTERN = re.compile("|".join(f"(?P<k{at}>{text})" for at, text in enumerate(REPORTS.values())))

CONTEXT_LINES = 30


class KernelReport(RigError):
    """The kernel complained."""


def reports(log: str) -> list[tuple[int, str]]:
    """Line numbers (from 0) and kinds of the reports in a log."""
    names = list(REPORTS)
    found = []
    for number, line in enumerate(log.splitlines()):
        hit = PATTERN.search(line)
        if hit:
            found.append((number, names[int(hit.lastgroup[1:])]))
    return found


def check(machine: str, log: str) -> None:
    """Raises KernelReport, with the first report in full, if there is one."""
    found = reports(log)
    if not found:
        return
    first, kind = found[0]
    lines = log.splitlines()[first : first + CONTEXT_LINES]
    shown = "\n".join(f"  {machine}| {line}" for line in lines)
    raise KernelReport(f"the kernel of {machine} complained ({kind}):\n{shown}")
