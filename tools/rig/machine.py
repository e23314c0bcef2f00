# SPDX-License-Identifier: GPL-2.0
"""What host and guest have in common: commands, files, modules, the kernel's log."""

import contextlib
import itertools
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence

from . import kernel_log, runs, transports
from .channel import PATIENCE, Channel, Command, Result
from .console import Console

# Commands in an emulated machine on a busy one: the longest quiet time seen for those that do not
# say themselves how long they take is 5 s.
COMMAND_TIMEOUT = 60.0

KMEMLEAK = "/sys/kernel/debug/kmemleak"


class Machine:
    """A running virtual machine. Subclasses set `name`, `console` and `channel`, and have `wait_ready()` and `close()`."""

    name: str
    console: Console
    channel: Channel

    def __init__(self) -> None:
        # Whether it was ended, and so cannot be asked anything.
        self.closed = False
        self._marks = itertools.count(1)
        self._checked = 0
        self._used = True
        self._programs: set[pathlib.Path] = set()

    # Commands.

    def start(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Command:
        """Starts a command in the background."""
        self._used = True
        return self.channel.start(arguments, env, cwd)

    def run(
        self,
        arguments: Sequence[str],
        *,
        timeout: float = COMMAND_TIMEOUT,
        check: bool = True,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Result:
        """Runs a command to its end; raises CommandFailed if its status is not 0 (unless `check` is off)."""
        command = self.start(arguments, env=env, cwd=cwd)
        if input:
            command.write(input)
        command.close_input()
        return command.wait(timeout, check)

    def shell(self, script: str, **options) -> Result:
        """Runs a shell script."""
        return self.run(["sh", "-euc", script], **options)

    def put(self, source: pathlib.Path, target: str, mode: int = 0o644) -> None:
        """Copies a file into the machine."""
        script = f"mkdir -p {shlex.quote(str(pathlib.PurePosixPath(target).parent))}\n"
        script += f"cat > {shlex.quote(target)}\nchmod {mode:o} {shlex.quote(target)}"
        self.shell(script, input=source.read_bytes())

    def program(self, path: pathlib.Path) -> str:
        """The path in the machine of a program that is built outside it."""
        target = f"/run/programs/{path.name}"
        if path not in self._programs:
            self.put(path, target, 0o755)
            self._programs.add(path)
        return target

    # Modules.

    def load(self, role: str, implementation: str) -> None:
        """Makes `implementation` ("c" or "rust") the only transport loaded for `role`.

        Does nothing if it is loaded; to load a module that was built anew, unload it first.
        """
        transports.load(self, role, implementation)

    def unload(self, role: str) -> None:
        """Unloads the transport for `role`, whichever it is."""
        transports.unload(self, role)

    def loaded_modules(self) -> list[str]:
        lines = self.run(["cat", "/proc/modules"]).stdout.splitlines()
        return [line.split()[0] for line in lines]

    # The kernel's log.

    def kernel_log(self, since: int = 0) -> str:
        """What the kernel has logged, complete up to now, from a position of `console.size` on."""
        mark = f"rig: mark {next(self._marks)} of {self.name}"
        self.run(["sh", "-c", f"echo '{mark}' > /dev/kmsg"])
        if not self.console.wait_for(mark, PATIENCE):
            self.channel.hung("runs commands, but its console stays silent")
        return self.console.text(since)

    def check_kernel_log(self) -> None:
        """Raises KernelReport if the kernel complained since the last check.

        Does nothing if no command was started since then.
        """
        if not self._used:
            return
        log = self.kernel_log(self._checked)
        self._checked = self.console.size
        self._used = False
        kernel_log.check(self.name, log)

    def check_leaks(self) -> None:
        """Raises KernelReport if the kernel, where it can tell, finds memory that nothing points to."""
        if not runs.configured("CONFIG_DEBUG_KMEMLEAK"):
            return
        # Objects younger than 5 s are not reported (MSECS_MIN_AGE in mm/kmemleak.c); what one scan
        # takes for a leak because it was moved meanwhile, the next one finds.
        script = f"for scan in 1 2; do sleep 6; echo scan >{KMEMLEAK}; done; cat {KMEMLEAK}; echo clear >{KMEMLEAK}"
        found = self.shell(script, timeout=COMMAND_TIMEOUT * runs.patience()).stdout
        if found.strip():
            raise kernel_log.KernelReport(f"the kernel of {self.name} leaks memory:\n{found}")


@contextlib.contextmanager
def in_use(machine: Machine, run: runs.Run) -> Iterator[None]:
    """From when a machine is ready until it is ended, with its run; at the end nothing may be left in it, and its
    kernel has no complaint."""
    try:
        machine.wait_ready()
        yield
        machine.check_leaks()
        machine.check_kernel_log()
    finally:
        machine.close()
        run.close()
