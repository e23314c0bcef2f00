# SPDX-License-Identifier: GPL-2.0
"""The serial console of a virtual machine: kept in a file, and watched while it is written."""

import pathlib
import re
import threading
from collections.abc import Callable

from . import runs
from .errors import EmulationTrap, MachineError, MachineLost, MachinePanic, UnprovenTrap

PANIC = re.compile(rb"Kernel panic - not syncing[^\r\n]*")

# How QEMU reports it; TRAP_TEXT says what it is.
TRAP = re.compile(rb"KVM internal error\. Suberror: 3")
TRAP_TEXT = (
    "KVM inside the emulated host gave up on it (\"KVM internal error. Suberror: 3\"). This is a fault of "
    "the emulation, not of the guest: kvm-amd tests the type of exit_int_info without its valid bit, and "
    "QEMU leaves the type of an exception there that it has delivered"
)

# The first instruction of a system call, on the stack of the process: no kernel gets there. Linux
# masks interrupts for SYSCALL, so that nothing can be delivered between it and the change of stacks.
DOUBLE_FAULT = re.compile(
    rb"PANIC: double fault(?:(?!Call Trace)[\s\S])*RIP: 0010:entry_SYSCALL_64\+0x0/(?:(?!Call Trace)[\s\S])*RSP: 0018:00007"
)
DOUBLE_FAULT_TEXT = (
    "an interrupt was delivered in the first instruction of a system call, where they are masked. This is "
    "a fault of the emulation of nested virtualization, not of the guest: it also strikes guests without "
    "a module that is not the kernel's, most of all under many signals"
)

# A trace in which an interrupt came while interrupts were off. Linux then waits for the handler that it
# is in, for ever, with interrupts off.
MASKED_INTERRUPT = re.compile(
    rb"(?<!\? )asm_(?:common_interrupt|sysvec_\w+)\+0x[^\n]*\n"
    rb"(?:(?![^\n]*asm_)[^\n]*\n){0,4}?[^\n]*EFLAGS: ([0-9a-f]{8})"
)
MASKED_INTERRUPT_TEXT = (
    "an interrupt was delivered while interrupts were off, as its trace shows, on which the guest hung. This "
    "is a fault of the emulation of nested virtualization, not of the guest"
)
INTERRUPT_FLAG = 0x200

# An interrupt of the timer inside another one ("base->running != timer"): masked, too. A timer's
# function that enables interrupts would do the same, but where locks are checked it is told so first.
NESTED_TIMER = re.compile(rb"WARNING: kernel/time/hrtimer\.c:\d+ at __hrtimer_run_queues\+")
NESTED_TIMER_TEXT = (
    "an interrupt of the timer was delivered inside another one, where interrupts are off. This is a fault of "
    "the emulation of nested virtualization, not of the guest: it also strikes guests with the C driver alone"
)

# The stack of the thread that runs a guest's CPU is overwritten down to its end: it is found when the thread
# sleeps next.
STACK_END_OF_CPU = re.compile(
    rb"Kernel panic - not syncing: corrupted stack end(?:(?!---\[ end)[\s\S])*kvm_vcpu_ioctl\+0x"
)
# Of others than this one it was not seen yet where all modules are the kernel's.
STACK_END_PROVEN = re.compile(STACK_END_OF_CPU.pattern.replace(b"kvm_vcpu_ioctl", b"shutdown_interception"))
STACK_END_TEXT = (
    "the host's kernel met page faults in its page fault handler, down to the end of the stack, where it came back "
    "from a guest and had that guest's GS. By all that is known this is a fault of the emulation of nested "
    "virtualization"
)

# A breakpoint of the kernel's, which patches its text (static keys), is met where its text has none. Linux takes
# it away first, and then waits until each CPU has been interrupted, so that none can meet it later.
NO_BREAKPOINT = re.compile(
    rb"Oops: int3: 0000 (?:(?!Call Trace|---\[ end)[\s\S])*Code: (?:[0-9a-f]{2} )*(?!cc)[0-9a-f]{2} <[0-9a-f]{2}>"
)
NO_BREAKPOINT_TEXT = (
    "a CPU met a breakpoint of the kernel's own where its text has none any more. This is a fault of the emulation, "
    "which goes on with an instruction that was replaced: it also strikes where all modules are the kernel's"
)

# What a kernel says that ends its machine on purpose.
ORDERLY_END = re.compile(rb"reboot: |sysrq: Resetting")

TAIL_LINES = 40
# A panic's stack trace follows its headline; this long it is waited for.
PANIC_GRACE = 3.0


class Console:
    """What a machine prints. Calls `on_error` once when that shows that the machine cannot go on."""

    def __init__(self, name: str, path: pathlib.Path, on_error: Callable[[MachineError], None]):
        self.name = name
        self.path = path
        self._file = open(path, "wb", buffering=0)
        self._data = bytearray()
        self._on_error = on_error
        self._changed = threading.Condition()
        self.panic_timer: threading.Timer | None = None

    def feed(self, data: bytes) -> None:
        """Takes what was printed; no bytes mean that the machine ended."""
        if not data:
            self._ended()
            return
        with self._changed:
            start = max(0, len(self._data) - 200)
            self._data += data
            self._file.write(data)
            self._changed.notify_all()
        if self.panic_timer is None and PANIC.search(self._data, start):
            self.panic_timer = threading.Timer(PANIC_GRACE, self._ended)
            self.panic_timer.daemon = True
            self.panic_timer.start()
        if TRAP.search(self._data, start):
            self._on_error(self._trap(TRAP_TEXT))
        if NESTED_TIMER.search(self._data, start) and runs.configured("CONFIG_PROVE_LOCKING"):
            self._on_error(self._trap(NESTED_TIMER_TEXT))

    def _ended(self) -> None:
        if self.panic_timer:
            self.panic_timer.cancel()
        found = PANIC.search(self._data)
        if DOUBLE_FAULT.search(self._data):
            self._on_error(self._trap(DOUBLE_FAULT_TEXT))
        elif STACK_END_PROVEN.search(self._data):
            self._on_error(self._trap(STACK_END_TEXT))
        elif STACK_END_OF_CPU.search(self._data):
            self._on_error(self._trap(STACK_END_TEXT, UnprovenTrap))
        elif NO_BREAKPOINT.search(self._data):
            self._on_error(self._trap(NO_BREAKPOINT_TEXT))
        elif found:
            headline = found.group().decode(errors="replace")
            self._on_error(MachinePanic(f"{self.name}: {headline}\n{self.tail()}"))
        else:
            self._on_error(MachineLost(f"{self.name}: the virtual machine ended\n{self.tail()}"))

    def _trap(self, text: str, kind: type[EmulationTrap] = EmulationTrap) -> EmulationTrap:
        return kind(f"{self.name}: {text}\n{self.tail()}")

    def masked_interrupt(self) -> EmulationTrap | None:
        """What a guest hung on, if its last words show that it was the emulation."""
        for found in MASKED_INTERRUPT.finditer(self._data.replace(b"\r", b"")):
            if not int(found[1], 16) & INTERRUPT_FLAG:
                return self._trap(MASKED_INTERRUPT_TEXT)
        return None

    @property
    def orderly_end(self) -> bool:
        """Whether the kernel said that it ends its machine."""
        return bool(ORDERLY_END.search(self._data))

    @property
    def size(self) -> int:
        """A position to pass to `text` later."""
        return len(self._data)

    def text(self, since: int = 0) -> str:
        return bytes(self._data[since:]).decode(errors="replace").replace("\r", "")

    def wait_for(self, text: str, timeout: float) -> bool:
        needle = text.encode()
        with self._changed:
            return self._changed.wait_for(lambda: needle in self._data, timeout)

    def tail(self) -> str:
        """The end of the console, for messages."""
        lines = self.text().splitlines()[-TAIL_LINES:]
        shown = "\n".join(f"  {self.name}| {line}" for line in lines)
        return f"{shown}\n  (all of it: {self.path})"
