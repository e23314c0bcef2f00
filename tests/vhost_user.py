# SPDX-License-Identifier: GPL-2.0
"""The project's own vhost-user vsock device (tests/device), in the host, and the program that it uses in the guest."""

import contextlib
import subprocess
from collections.abc import Iterator

import rig
from rig import programs, runs

SOCKET = "/run/device.sock"

# How long the guest may take to answer a packet: a machine with a load of 17 took 9 s.
PATIENCE = 30

# How long the device may take to start, and the program in the guest to find it.
START = 60.0


class Device:
    """A running device, which is given one task after the other."""

    def __init__(self, command: rig.Command):
        self._command = command
        self._tasks = 0
        # Who has the device, once it obeys.
        self.guest: rig.Guest | None = None

    def run(self, task: str, timeout: float) -> str:
        """Gives a task; what it has to say. Fails with the device's words if it fails, unless the guest is gone."""
        self._tasks += 1
        self._command.write(f"{task}\n".encode())
        start = f"task {self._tasks} "
        self._command.wait_for(start, timeout)
        self._command.wait_for(f"end of task {self._tasks}\n", timeout)
        line = next(line for line in self._command.stdout.splitlines() if line.startswith(start))
        result = line.removeprefix(start)
        if not result.startswith("passed"):
            if self.guest:
                # To the device one that hangs looks like a driver that does.
                self.guest.run(["true"])
            raise AssertionError(result.replace("\\n", "\n"))
        return result.removeprefix("passed").strip()


def cases() -> list[tuple[str, str | None]]:
    """Names of the conformance cases, and why C is known to differ."""
    output = subprocess.run([programs.build("rvsock-device"), "--list"], capture_output=True, text=True, check=True)
    lines = [line.partition("\t") for line in output.stdout.splitlines()]
    return [(name, reason or None) for name, _, reason in lines]


@contextlib.contextmanager
def device(host: rig.Host, cid: int) -> Iterator[Device]:
    """The device, ready for a guest with this CID."""
    program = host.program(programs.build("rvsock-device"))
    patience = str(PATIENCE * runs.patience())
    command = host.start([program, "--socket", SOCKET, "--cid", str(cid), "--patience", patience])
    try:
        command.wait_for("listening", START * runs.patience())
        yield Device(command)
    finally:
        command.kill()


@contextlib.contextmanager
def obeying(device: Device, guest: rig.Guest) -> Iterator[rig.Command]:
    """The guest does with its sockets what the device wants done."""
    device.guest = guest
    command = guest.start([guest.program(programs.build("rvsock-puppet")), "obey"])
    try:
        yield command
    finally:
        command.kill()


def puppet_state(guest: rig.Guest) -> str:
    """Where the program in the guest and workers that are not idle wait, and whether they do or were
    only not given a CPU; sockets and interrupts: what is to be known of a test that failed.
    """
    script = """
    for task in /proc/[0-9]*/task/*; do
        name=$(cat $task/comm)
        case $name in
        rvsock-puppet | kworker/*) head -n 1 $task/stack | grep -q 'worker_thread\\|rescuer_thread' ||
            { echo "$task $name"; grep State $task/status; cat $task/stack; } ;;
        esac
    done
    ss --vsock --all --numeric --processes
    grep virtio /proc/interrupts"""
    return guest.run(["sh", "-c", script], check=False).stdout
