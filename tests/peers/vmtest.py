# SPDX-License-Identifier: GPL-2.0
"""The kernel's own tools/testing/selftests/vsock/vmtest.sh, taken from KDIR and run in the host VM.

It boots guests of its own with virtme-ng, in network namespaces of both modes, and runs vsock_test and
socat between them and the host. Only its constants of time are changed: it waits 5 s for a QEMU.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Sequence

from rig import Command, CommandTimeout, Host, kernel_log, runs, transports
from rig.console import TRAP

from . import kernel_tools

SELFTESTS = pathlib.Path("tools/testing/selftests")
# In the host VM. The root of the guests is the host's, but for some directories, of which this is none.
HERE = pathlib.PurePosixPath("/tmp/vmtest")
SCRIPT = HERE / SELFTESTS / "vsock/vmtest.sh"
QEMU = HERE / "qemu"
INIT = HERE / "init"
PREFERENCES = "/etc/modprobe.d"

# How much longer it waits than it would, by the names of its constants. WAIT_PERIOD is how often it
# looks, too.
WAIT = {"WAIT_PERIOD": 2, "WAIT_PERIOD_MAX": 4, "WAIT_QEMU": 24}

# What the console of a guest says when its drivers are loaded.
GUEST_IS_UP = "virtme-init: udev is done"

# Modules that it, or a guest, loads by the names of the kernel's own.
LOADED = {"guest": "vmw_vsock_virtio_transport", "loopback": "vsock_loopback"}

# What makes a guest bearable where it is emulated, and changes nothing of what is tested in it: virtme-ng gives it as
# many CPUs as its host has, of which the emulation bears one; devices that nobody asked for; and a root without a
# cache. With that and INIT it boots in a tenth of the time. Each notification of a modern device may be what KVM gives
# up on (see tools/rig/console.py); old devices are notified through ports. It also asks for QEMU's version.
WRAPPER = f"""\
#!/bin/sh
before= extra=
for argument; do
	shift
	if [ "$before" = -append ]; then
		argument="init={INIT} $argument"
		extra="-nodefaults -machine hpet=off -smp 1 -device virtio-9p-pci,fsdev=cached,mount_tag=cached"
		extra="$extra -fsdev local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
		for device in 9p net serial; do extra="$extra -global virtio-$device-pci.disable-modern=on"; done
	fi
	set -- "$@" "$argument"
	before=$argument
done
exec qemu-system-x86_64 "$@" $extra
"""

# The first process of a guest: mounts its root, which is the host's, with a cache.
FIRST_PROCESS = """\
#!/usr/bin/busybox sh
/usr/bin/busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose cached /mnt
exec /usr/bin/busybox chroot /mnt /usr/lib/python3/dist-packages/virtme/guest/virtme-init
"""

# It copies a user's name into the command line of a guest.
ENVIRONMENT = {"USER": "root", "HOME": "/run/home", "TERM": "dumb"}

# What the console of a guest says when a module of ours is the first that is loaded, and what comes from the kernel.
OURS_IN_GUEST = "vsock_trace_rs: loading out-of-tree module taints kernel"
KERNEL_LINE = re.compile(r"\[ *\d+\.\d+\] .*")

# A boot takes two minutes where guests are emulated, and a test boots up to two.
TIMEOUT = 1500.0
# How long the script may take to clean up.
CLEANING = 60.0


class Outcome(typing.NamedTuple):
    """What became of a test; `result` is "ok", "not ok", "skip", or what else ended it."""

    result: str
    output: str

    @property
    def passed(self) -> bool:
        return self.result == "ok"

    @property
    def tail(self) -> str:
        return f"{self.result}\n{self.output[-5000:]}"


def source() -> pathlib.Path:
    return pathlib.Path(os.environ["KDIR"]) / SELFTESTS


def names() -> list[str]:
    """Its tests, in its order."""
    script = (source() / "vsock/vmtest.sh").read_text()
    return re.search(r"TEST_NAMES=\((.*?)\)", script, re.DOTALL)[1].split()


def patient(script: str) -> str:
    """The script with longer times."""
    for name, factor in WAIT.items():
        script, count = re.subn(
            rf"^(readonly {name}=)(\d+)$", lambda line: f"{line[1]}{int(line[2]) * factor}", script, flags=re.MULTILINE
        )
        if count != 1:
            raise RuntimeError(f"{source()}/vsock/vmtest.sh has no constant {name}")
    return script


def put(host: Host) -> None:
    """Copies what it consists of into the host VM."""
    host.put(source() / "kselftest/ktap_helpers.sh", str(HERE / SELFTESTS / "kselftest/ktap_helpers.sh"))
    host.put(kernel_tools.build(patient=True)["vsock_test"], str(SCRIPT.parent / "vsock_test"), 0o755)
    put_text(host, patient((source() / "vsock/vmtest.sh").read_text()), SCRIPT)
    put_text(host, WRAPPER, QEMU)
    put_text(host, FIRST_PROCESS, INIT)


def put_text(host: Host, text: str, target: pathlib.PurePosixPath) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        host.put(pathlib.Path(file.name), str(target), 0o755)


def prefer(host: Host, implementation: str) -> None:
    """Chooses what is loaded by name, in the host and in its guests."""
    give_up_preferences(host)
    host.shell(f"mkdir -p /run/preferences\nmount --bind /run/preferences {PREFERENCES}")
    roles = LOADED if implementation == "rust" else {}
    for path in {path for role in roles for path in ours(role)}:
        with tempfile.TemporaryDirectory() as directory:
            # Debug information is nine tenths of a module.
            stripped = pathlib.Path(directory) / path.name
            subprocess.run(["objcopy", "--strip-debug", path, stripped], check=True)
            host.put(stripped, str(HERE / path.name))
    host.shell(f"cat >{PREFERENCES}/vmtest.conf", input="".join(map(preference, roles)).encode())


def give_up_preferences(host: Host) -> None:
    host.shell(f"! mountpoint -q {PREFERENCES} || umount {PREFERENCES}")


def ours(role: str) -> list[pathlib.Path]:
    return [transports.built(name) for name in transports.ROLES[role].rust]


def preference(role: str) -> str:
    """A line of modprobe's configuration that has ours loaded where the kernel's own is asked for."""
    needed = sorted({name for path in ours(role) for name in transports.dependencies(path)})
    steps = [f"/usr/sbin/modprobe {name}" for name in needed]
    for path in ours(role):
        # Shared by roles: it may be there.
        steps.append(f"test -d /sys/module/{path.stem} || /usr/sbin/insmod {HERE / path.name}")
    return f"install {LOADED[role]} {'; '.join(steps)}\n"


class Script:
    """Runs of the script, each beginning where the one before did not come to its end."""

    def __init__(self, host: Host, implementation: str, tests: Sequence[str]):
        self._host, self._implementation = host, implementation
        self._left = list(tests)
        self._outcomes: dict[str, Outcome] = {}
        self._trapped: set[str] = set()
        self._command: Command | None = None
        # How much of what is printed is about tests that are over.
        self._seen = 0

    def outcome(self, name: str) -> Outcome:
        """What became of a test, when it is over."""
        while name not in self._outcomes:
            if self._command is None:
                self._start()
            self._follow(self._left[0])
        return self._outcomes[name]

    def _start(self) -> None:
        self._host.unload("loopback")
        self._host.load("host", self._implementation)
        prefer(self._host, self._implementation)
        command = ["sh", "-c", 'exec "$@" 2>&1', "sh", str(SCRIPT), "-v", "-q", str(QEMU), *self._left]
        self._command = self._host.start(command, env=ENVIRONMENT)
        self._command.close_input()
        self._seen = 0

    def _follow(self, name: str) -> None:
        """Waits until a test is over."""
        deadline = time.monotonic() + TIMEOUT * runs.patience()
        while True:
            # In this order: what ended meanwhile has printed all.
            goes_on = self._command.running and time.monotonic() < deadline
            output = self._command.stdout[self._seen :]
            result, end = find_result(output, name)
            if result or not goes_on:
                break
            time.sleep(0.5)
        output = output[:end]
        self._seen += len(output)
        self._judge(name, result or ("took too long" if self._command.running else "the script ended"), output)
        if result is None or not self._left:
            self.close()

    def _judge(self, name: str, result: str, output: str) -> None:
        if TRAP.search(output.encode()) and name not in self._trapped:
            print(f"vmtest: {name} is run again: the emulation ended its guest", file=sys.stderr)
            self._trapped.add(name)
            self.close()
            return
        self._left.remove(name)
        self._outcomes[name] = Outcome(result, output)

    def close(self) -> None:
        """Ends what runs, and has it clean up; a script that comes to its end by itself is waited for."""
        if self._command is None:
            return
        command, self._command = self._command, None
        with contextlib.suppress(CommandTimeout):
            # Without a test that goes on, it has only its own cleaning up to do.
            if find_summary(command.stdout) is None:
                command.signal(signal.SIGTERM)
            command.wait(CLEANING * runs.patience(), check=False)
        self._host.run(["ip", "-all", "netns", "delete"])


def find_summary(output: str) -> str | None:
    """How the script says that all its tests are over."""
    found = re.search(r"^SUMMARY: .*$", output, re.MULTILINE)
    return found and found[0]


def find_result(output: str, name: str) -> tuple[str | None, int]:
    """What the script says of a test, and where in the output it is over. In the line may stand what a guest's
    console has printed before."""
    found = re.search(rf"(not ok|ok) \d+ {name}(?: # (SKIP|exit=\d+))?\r?$", output, re.MULTILINE)
    if not found:
        return None, len(output)
    return "skip" if found[2] == "SKIP" else found[1], found.end()


def check_guests(outcome: Outcome, implementation: str) -> None:
    """Of guests that came up: which module they had, and whether their kernels complained."""
    kernel_log.check("a guest", "\n".join(KERNEL_LINE.findall(outcome.output)))
    if GUEST_IS_UP in outcome.output:
        assert (OURS_IN_GUEST in outcome.output) == (implementation == "rust"), outcome.tail
