# SPDX-License-Identifier: GPL-2.0
"""What the commands print while they work: one line a step, with the time it took."""

import sys
import threading
import time
from collections.abc import Callable

# Seconds between two lines about a long step where the output is no terminal.
REPORT_INTERVAL = 60


class CommandError(Exception):
    """Something the user has to know or do; printed without a traceback."""


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)


class Step:
    """Context manager that announces a step and, when it ends, how long it took.

    `progress` says how far the step is; it is asked once a second on a terminal.
    """

    def __init__(self, title: str, progress: Callable[[], str] = lambda: ""):
        self.title = title
        self._progress = progress
        self._live = sys.stdout.isatty()
        self._done = threading.Event()

    def __enter__(self) -> "Step":
        self.started = time.monotonic()
        if not self._live:
            say(f"  {self.title} ...")
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def _tick(self) -> None:
        while not self._done.wait(1 if self._live else REPORT_INTERVAL):
            line = f"  {self.title} ... {self.elapsed():3.0f} s  {self._progress()}".rstrip()
            if self._live:
                print(f"\r{line}\033[K", end="", flush=True)
            else:
                say(line)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def __exit__(self, kind, value, traceback) -> None:
        self._done.set()
        self._ticker.join()
        result = "FAILED after" if kind else "done in"
        clear = "\r\033[K" if self._live else ""
        say(f"{clear}  {self.title}: {result} {self.elapsed():.1f} s")
