# SPDX-License-Identifier: GPL-2.0
"""The cache directory: where it is, what is recorded in it, and the locks that guard it."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import time

from console import CommandError, say

# Where a virtual machine whose root is the tree sees something else (tools/rig/host-init).
COVERED = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/log", "/var/tmp")


class Cache:
    """Paths and records below RVSOCK_CACHE.

    Nothing in it belongs to one checkout: several checkouts may share it.
    """

    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        default = pathlib.Path(base).expanduser() / "rvsock"
        self.root = pathlib.Path(os.environ.get("RVSOCK_CACHE") or default).absolute()

    @property
    def tree(self) -> pathlib.Path:
        """Debian tree: toolchain, and root file system of the virtual machines."""
        return self.root / "tree"

    @property
    def kernels(self) -> pathlib.Path:
        """One directory a kernel, by its release: the build tree, and the log of its build."""
        return self.root / "kernels"

    @property
    def logs(self) -> pathlib.Path:
        return self.root / "log"

    def create(self) -> None:
        if any(self.root.is_relative_to(directory) for directory in COVERED):
            raise CommandError(
                f"{self.root} cannot hold the cache: the virtual machines, which read from it, have file "
                f"systems of their own on {', '.join(COVERED)}; set RVSOCK_CACHE to another directory"
            )
        for directory in (self.root, self.kernels, self.logs):
            directory.mkdir(parents=True, exist_ok=True)

    def require_space(self, gigabytes: int) -> None:
        free = shutil.disk_usage(self.root).free / 1e9
        if free < gigabytes:
            raise CommandError(
                f"{self.root} has {free:.1f} GB free, {gigabytes} GB are needed: "
                "make room, or set RVSOCK_CACHE to a directory on another disk"
            )

    def remove(self) -> int:
        """Removes everything, unless another run is using it."""
        if self.root.exists():
            with self._locked("in-use", fcntl.LOCK_EX):
                shutil.rmtree(self.root)
        return 0

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """Held as long as something below is used: `remove` refuses then."""
        return self._locked("in-use", fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _locked(self, name: str, kind: int):
        with open(self.root / name, "w") as handle:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CommandError(f"{self.root} is in use by another run") from None
            yield

    @contextlib.contextmanager
    def lock(self, name: str):
        """Held while `name` (the tree, or a kernel) is changed; others wait and say so."""
        with open(self.root / f"{name}.lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"  waiting for another run that prepares {self.root / name}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def note(self, text: str) -> None:
        """Prints a line, and keeps it with its time in setup.log."""
        say(text)
        with open(self.logs / "setup.log", "a") as log:
            log.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text.strip() + "\n")

    def record(self, name: str, value) -> None:
        """Records `value` under `name`, in one step: never half a record."""
        path = self.root / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        partial.replace(path)

    def recorded(self, name: str):
        """What was recorded under `name`, or None."""
        try:
            return json.loads((self.root / f"{name}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def run(self, log: pathlib.Path, command: list[str], wrapped: list[str] = [], **options) -> None:
        """Runs a command, or what wraps it, with its output in a log; shows what matters of a failure."""
        with open(log, "ab") as output:
            output.write(("$ " + " ".join(command) + "\n").encode())
            output.flush()
            start = output.tell()
            result = subprocess.run(
                wrapped or command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **options,
            )
        if result.returncode:
            lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
            raise CommandError("\n    ".join([f"`{command[0]}` failed; from {log}:", *excerpt(lines)]))


def excerpt(lines: list[str], size: int = 12) -> list[str]:
    """The lines around the first error: a parallel `make` goes on for long after it. Or the last ones."""
    first = next((at for at, line in enumerate(lines) if "***" in line), len(lines))
    return lines[: first + 1][-size:]
