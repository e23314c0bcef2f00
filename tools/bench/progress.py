# SPDX-License-Identifier: GPL-2.0
"""Says on the terminal how far the benchmark is, and how long it will take."""

import sys
import time


class Progress:
    """Work in units of about the same length; what was done says how long the rest takes."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def advance(self, done: int, left: int, text: str) -> None:
        """So many units are done and so many are left; what is repeated adds to both."""
        seconds = (time.monotonic() - self._started) / max(done, 1) * left
        rest = f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"
        self._show(f"[{done / (done + left):4.0%}] {text}, {rest}")

    def _show(self, line: str) -> None:
        self._clear()
        live = sys.stderr.isatty()
        print(line[:118], end="" if live else "\n", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
