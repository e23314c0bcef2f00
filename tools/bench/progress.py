# SPDX-License-Identifier: GPL-2.0
"""Says on the terminal how far the benchmark is, and how long it will take."""

import sys
import time


class Progress:
    """Work in units of about the same length; what was done says how long the rest takes."""

    def __init__(self, units: int):
        self._units = max(units, 1)
        self._done = 0
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def advance(self, done: int, left: int, text: str) -> None:
        """So many more units are done, and so many are left: repeated ones make it more than was thought."""
        self._done += done
        self._units = self._done + left
        share = self._done / self._units if self._units else 1.0
        self._show(f"[{share:4.0%}] {text}, {self._left(left)}")

    def _left(self, left: int) -> str:
        seconds = (time.monotonic() - self._started) / max(self._done, 1) * left
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _show(self, line: str) -> None:
        self._clear()
        live = sys.stderr.isatty()
        print(line[:118], end="" if live else "\n", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
