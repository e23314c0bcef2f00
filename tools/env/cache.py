# SPDX-License-Identifier: GPL-2.0
"""The cache directory: where it is, what is recorded in it, and the lock that guards it."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import subprocess

from console import CommandError, say


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
        """One directory a kernel: build trees, and the images built from them."""
        return self.root / "kernels"

    @property
    def logs(self) -> pathlib.Path:
        return self.root / "log"

    def create(self) -> None:
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
            with self.lock():
                shutil.rmtree(self.root)
        return 0

    @contextlib.contextmanager
    def lock(self):
        """Held while the cache is changed; others wait and say so."""
        with open(self.root / "lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"  waiting for another run that prepares {self.root}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

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

    def run(self, log: str, command: list[str], **options) -> None:
        """Runs a command with its output in a log; on failure the end of the log is shown."""
        path = self.logs / f"{log}.log"
        with open(path, "ab") as output:
            output.write(("$ " + " ".join(map(str, command)) + "\n").encode())
            output.flush()
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options
            )
        if result.returncode:
            tail = path.read_text(errors="replace").splitlines()[-12:]
            raise CommandError(
                "\n    ".join([f"`{command[0]}` failed, the end of {path} says:", *tail])
            )
