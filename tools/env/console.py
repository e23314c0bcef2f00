# SPDX-License-Identifier: GPL-2.0
"""What the commands print while they work: one line a step, with the time it took."""

import sys
import threading
import time


class CommandError(Exception):
    """Something the user has to know or do; printed without a traceback."""


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)


class Step:
    """Context manager that announces a step and, when it ends, how long it took."""

    def __init__(self, title: str):
        self.title = title
        self._live = sys.stdout.isatty()
        self._done = threading.Event()

    def __enter__(self) -> "Step":
        self.started = time.monotonic()
        if self._live:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        else:
            say(f"  {self.title} ...")
        return self

    def _tick(self) -> None:
        while not self._done.wait(1):
            print(f"\r  {self.title} ... {self.elapsed():3.0f} s", end="", flush=True)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def __exit__(self, kind, value, traceback) -> None:
        self._done.set()
        if self._live:
            self._ticker.join()
        result = "FAILED after" if kind else "done in"
        prefix = "\r" if self._live else ""
        say(f"{prefix}  {self.title}: {result} {self.elapsed():.1f} s")
