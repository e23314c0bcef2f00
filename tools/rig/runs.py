# SPDX-License-Identifier: GPL-2.0
"""Where things are: the cache, the kernel, and one directory of logs for every run."""

import fcntl
import os
import pathlib
import shutil
import time

from .errors import RigError

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
RIG = pathlib.Path(__file__).resolve().parent

# Directories of earlier runs that are kept.
KEPT_RUNS = 30


def setting(name: str) -> str:
    """A variable that `tools/env enter` sets."""
    value = os.environ.get(name)
    if not value or not os.environ.get("RVSOCK_INSIDE"):
        raise RigError("the rig works inside the tree only: `python3 tools/env enter -- COMMAND`")
    return value


def cache() -> pathlib.Path:
    return pathlib.Path(setting("RVSOCK_CACHE"))


def cargo_target(name: str) -> pathlib.Path:
    """Where cargo builds, for one set of flags. Not in the cache: cargo takes what another checkout
    has built there for this one's, if its sources are younger."""
    return CHECKOUT / "build" / "target" / name


def release() -> str:
    return setting("RVSOCK_RELEASE")


def image() -> pathlib.Path:
    return pathlib.Path(setting("RVSOCK_IMAGE"))


def configured(option: str) -> bool:
    """Whether the kernel under test has an option, built in."""
    configuration = (pathlib.Path(setting("KDIR")) / ".config").read_text()
    return f"\n{option}=y\n" in configuration


def patience() -> int:
    """How much slower than the stock kernel things may be: checks of locks and memory cost 4-5 times."""
    if configured("CONFIG_KASAN"):
        return 8
    return 5 if configured("CONFIG_PROVE_LOCKING") or configured("CONFIG_DEBUG_KMEMLEAK") else 1


def note(text: str) -> None:
    """Keeps what came of tests in test.log: a terminal, or a CI job's checkout, may be gone when somebody asks."""
    with open(cache() / "log" / "test.log", "a") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


class Run:
    """A directory for the logs of one host VM and its guests, locked while in use."""

    def __init__(self) -> None:
        base = cache() / "runs"
        base.mkdir(exist_ok=True)
        stamp = time.strftime("%m%d-%H%M%S")
        for attempt in range(1000):
            self.path = base / f"{stamp}-{attempt:03d}"
            try:
                self.path.mkdir()
                break
            except FileExistsError:
                continue
        self._lock = open(self.path / "lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        prune(base)

    def close(self) -> None:
        self._lock.close()


def prune(base: pathlib.Path) -> None:
    """Removes the oldest runs that nobody uses."""
    for path in sorted(base.iterdir())[:-KEPT_RUNS]:
        try:
            with open(path / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
