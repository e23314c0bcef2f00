# SPDX-License-Identifier: GPL-2.0
"""A guest and its host, each with a program that listens, and traffic between them."""

import contextlib
import time
import typing
from collections.abc import Iterator

import rig
from bench import load
from rig import runs

CID_HOST = 2
DIRECTIONS = ["g2h", "h2g"]

# Longer than a test: traffic is ended by what the test does, or killed.
FOREVER = 3_600_000
# Interrupts of the guest's devices that show that its vsock device is at work.
BUSY = 50
# A device that goes resets its connections at once.
AT_ONCE = 30.0

# What a ring looks like, where it is not as QEMU has it by default.
RINGS = {
    "without EVENT_IDX": {"event_idx": False},
    "without indirect descriptors": {"indirect_desc": False},
    "with neither": {"event_idx": False, "indirect_desc": False},
    "legacy": {"disable-modern": True, "disable-legacy": "off"},
}


class Ends(typing.NamedTuple):
    guest: rig.Guest
    host: rig.Host
    implementation: str
    cid: int

    def path(self, direction: str) -> load.Path:
        if direction == "g2h":
            return load.Path(self.guest, self.host, CID_HOST)
        return load.Path(self.host, self.guest, self.cid)


def interrupts(guest: rig.Guest) -> int:
    lines = guest.run(["grep", "virtio", "/proc/interrupts"]).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines)


def start_traffic(ends: Ends) -> list[rig.Command]:
    """Connections with data on them: the program of the guest, and that of the host."""
    commands = []
    for direction in DIRECTIONS:
        path = ends.path(direction)
        arguments = [path.active.program(load.program()), "run", str(path.cid), str(load.PORT)]
        commands.append(path.active.start([*arguments, "0", str(FOREVER), "stream:4096:2"]))
    return commands


def wait_until_busy(ends: Ends, commands: list[rig.Command]) -> None:
    start = interrupts(ends.guest)
    deadline = time.monotonic() + AT_ONCE * runs.patience()
    while interrupts(ends.guest) < start + BUSY:
        assert time.monotonic() < deadline, [command.stderr for command in commands]
        time.sleep(0.1)
    assert_running(commands)


def assert_running(commands: list[rig.Command]) -> None:
    ended = [command for command in commands if not command.running]
    assert not ended, [(command.arguments, command.status, command.stderr) for command in ended]


@contextlib.contextmanager
def traffic(ends: Ends) -> Iterator[list[rig.Command]]:
    """Connections with data on them, until the end of the block: the program of the guest, and that of the host."""
    commands = start_traffic(ends)
    try:
        wait_until_busy(ends, commands)
        yield commands
    finally:
        for command in commands:
            command.kill()


def assert_reset(command: rig.Command) -> None:
    """Connections do not hang; how they say so depends on what the program was doing."""
    assert command.wait(AT_ONCE * runs.patience(), check=False).status != 0


def wait_for_device(ends: Ends) -> None:
    """A device that was plugged in is found some time later."""
    deadline = time.monotonic() + AT_ONCE * runs.patience()
    while "No such device" in refused(ends):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def assert_works(ends: Ends) -> None:
    """New connections work, also to programs that have been listening since before."""
    wait_for_device(ends)
    for direction in DIRECTIONS:
        tests = ["bytes:65536:1000000", "ping:64"]
        load.run(ends.path(direction), tests, load.Timing(warm_up=0, time=200))


def refused(ends: Ends) -> str:
    """What a program in the guest is told that connects to the host; nothing if it may."""
    arguments = [ends.guest.program(load.program()), "run", str(CID_HOST), str(load.PORT), "0", "1", "connect"]
    return ends.guest.run(arguments, check=False).stderr
