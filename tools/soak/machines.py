# SPDX-License-Identifier: GPL-2.0
"""The host and its guests. A guest that the emulation ends is booted again, which is no failure."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

import rig
from bench import load
from rig import kernel_log, programs, runs

from . import memory, plan
from .gate import Gate

GUEST_PROGRAMS = ("ss", "ps")

# A guest that ends without a word has had a fault that it could not handle: the host's KVM knows where.
# SVM_EXIT_SHUTDOWN in arch/x86/include/uapi/asm/svm.h.
SHUTDOWN = """
cd /sys/kernel/tracing
if [ -d events/kvm/kvm_exit ]; then
    echo 'exit_reason == 0x7f' > events/kvm/kvm_exit/filter
    echo 1 > events/kvm/kvm_exit/enable
fi"""

# What the rig says of a machine while it still finds out why that hangs, see Channel.hung().
PROVISIONAL = "what it was doing was shown before"
# It takes this long to do so.
AUTOPSY = 120.0

# The console of a guest that has ended says why after a while, see console.PANIC_GRACE.
LAST_WORDS = 10.0

# Who closes a socket while its peer is dying waits for an answer, 8 s at most (VSOCK_CLOSE_TIMEOUT).
CLOSING = 30.0


class Failure(Exception):
    """The soak found something."""


class Trapped(Exception):
    """The emulation ended a guest, and whatever was being done with it."""

    def __init__(self, name: str, error: rig.EmulationTrap):
        super().__init__(f"{name}: {str(error).partition(chr(10))[0]}")
        self.name = name


def packages() -> dict[str, pathlib.Path]:
    """The programs of the load."""
    return {"puppet": programs.build("rvsock-puppet"), "load": load.program()}


@dataclasses.dataclass
class Boot:
    """A guest from its boot to its end."""

    guest: rig.Guest
    stack: contextlib.ExitStack
    # What its kernel held when it had seen everything once.
    before: memory.Before | None = None


class Machines:
    """The host with its modules loaded, and guests that come and go."""

    def __init__(self, host: rig.Host, implementation: str, say: Callable[[str], None]):
        self.host, self.implementation = host, implementation
        self._say = say
        self.boots: dict[str, Boot] = {}
        self.gates = {name: Gate() for name in (*plan.GUESTS, "host")}
        # What the emulation did, in words.
        self.traps: list[str] = []

    def prepare(self) -> None:
        """Makes the host ready, without guests."""
        for role in ("host", "loopback"):
            self.host.load(role, self.implementation)
        self.host.run(["modprobe", "vsock_diag"])
        self.host.shell(SHUTDOWN)
        for path in packages().values():
            self.host.program(path)

    def last_faults(self) -> str:
        """What KVM says of guests that ended without a word."""
        lines = self.host.shell("cat /sys/kernel/tracing/trace").stdout.splitlines()
        return "\n".join(line for line in lines if not line.startswith("#"))

    def machine(self, name: str) -> rig.Host | rig.Guest:
        """The host, or the guest that has a name now."""
        if name == "host":
            return self.host
        try:
            return self.boots[name].guest
        except KeyError:
            raise rig.MachineLost(f"{name} is not there") from None

    def program(self, machine: rig.Host | rig.Guest, package: str) -> str:
        """Where a program of the load is: guests have it from their boot on."""
        path = packages()[package]
        return self.host.program(path) if machine is self.host else str(path)

    def guest(self, name: str) -> rig.Guest:
        return self.boots[name].guest

    def boot(self, name: str) -> None:
        stack = contextlib.ExitStack()
        programs = [*GUEST_PROGRAMS, *map(str, packages().values())]
        guest = stack.enter_context(self.host.guest(cid=plan.GUESTS[name], programs=programs))
        self.boots[name] = Boot(guest, stack)
        self.equip(name)

    def equip(self, name: str) -> None:
        """Loads what a guest needs whose kernel was booted just now."""
        guest = self.guest(name)
        guest.load("guest", self.implementation)
        guest.run(["modprobe", "vsock_diag"])

    def boot_all(self) -> None:
        for name in plan.GUESTS:
            if name not in self.boots:
                self._repeatedly(name, lambda name=name: self.boot(name))

    def _repeatedly(self, name: str, action: Callable[[], None]) -> None:
        """Does it again if the emulation ends the guest in it, as often as the rig boots one."""
        for left in (2, 1, 0):
            try:
                with self.noticing():
                    return action()
            except Trapped as trap:
                self.note(trap)
                self.kill(name)
                if not left:
                    raise Failure(f"{name} does not come up: {trap}") from None

    def kill(self, name: str) -> None:
        """Ends a guest by kill -9 of its QEMU. What its kernel has said is looked at."""
        boot = self.boots.pop(name, None)
        if boot is None:
            return
        text = boot.guest.console.text() if boot.guest.channel.error is None else ""
        boot.guest.close()
        boot.stack.close()
        kernel_log.check(boot.guest.name, text)

    def end_guests(self) -> None:
        """Ends guests that are idle, whose memory and logs are looked at first."""
        for name in list(self.boots):
            self.boots[name].stack.close()
            del self.boots[name]

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """Turns what the emulation did to a guest into `Trapped`, whatever it looks like."""
        try:
            yield
        except rig.MachineError as error:
            trapped = self.trapped()
            if trapped is None and isinstance(error, rig.EmulationTrap) and self.host.channel.error is None:
                # One that did not come up.
                trapped = Trapped("a guest", error)
            if trapped:
                raise trapped from error
            raise

    @contextlib.contextmanager
    def noticing_late(self) -> Iterator[None]:
        """Also what a program on the host is told before it is known why a guest has ended."""
        try:
            yield
        except rig.CommandError:
            if trapped := self.trapped_soon(lambda trapped: True):
                raise trapped from None
            raise

    def trapped_soon(self, concerns: Callable[[Trapped], bool]) -> Trapped | None:
        """The guest that the emulation has ended, as soon as its console says so."""
        deadline = time.monotonic() + LAST_WORDS * runs.patience()
        while time.monotonic() < deadline:
            if (found := self.trapped()) and concerns(found):
                return found
            time.sleep(0.5)
        return None

    def trapped(self) -> Trapped | None:
        """The guest that the emulation has ended, if there is one."""
        for name, boot in list(self.boots.items()):
            found = boot.guest.channel.error
            if isinstance(found, rig.MachineHung):
                found = self._verdict(boot.guest)
            if isinstance(found, rig.EmulationTrap):
                return Trapped(name, found)
        return None

    def _verdict(self, guest: rig.Guest) -> rig.MachineError | None:
        """Why a guest hangs, once whoever noticed it has found out."""
        deadline = time.monotonic() + AUTOPSY * runs.patience()
        while PROVISIONAL in str(guest.channel.error) and time.monotonic() < deadline:
            time.sleep(1)
        return guest.channel.error

    def note(self, trap: Trapped) -> None:
        self.traps.append(str(trap))
        self._say(f"the emulation ended a guest, which is booted again: {trap}")

    def revive(self, trap: Trapped) -> None:
        """Has all guests again after the emulation has ended one, in whatever was going on."""
        self.note(trap)
        self.kill(trap.name)
        self.host.load("host", self.implementation)
        self.host.load("loopback", self.implementation)
        self.boot_all()

    # What can be known at the end of a round.

    def check_logs(self) -> None:
        """No kernel has complained."""
        self.host.check_kernel_logs()

    def wait_until_closed(self) -> None:
        """Nobody has a socket any more, nor is one left of those that nobody has."""
        deadline = time.monotonic() + CLOSING * runs.patience()
        for machine in (self.host, *(boot.guest for boot in self.boots.values())):
            while left := memory.sockets(machine):
                if time.monotonic() > deadline:
                    raise Failure(f"{machine.name} has sockets that nobody has any more:\n" + "\n".join(left))
                time.sleep(0.5)
