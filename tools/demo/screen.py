# SPDX-License-Identifier: GPL-2.0
"""What the demo prints: steps, commands with what came back and how long it took, and checked claims."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

STYLES = {"heading": "1", "prompt": "1;36", "time": "2", "ok": "1;32", "failed": "1;31"}


class Screen:
    """Standard output; in colours if it is a terminal."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.steps: list[tuple[str, float]] = []
        self.claims = 0
        self._colours = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def styled(self, style: str, text: str) -> str:
        return f"\033[{STYLES[style]}m{text}\033[0m" if self._colours else text

    def say(self, text: str = "", end: str = "\n") -> None:
        print(text, end=end, flush=True)

    def note(self, text: str) -> None:
        for line in text.splitlines():
            self.say(f"   {line}")

    def output(self, text: str) -> None:
        """What a command printed."""
        for line in text.expandtabs().strip("\n").splitlines():
            self.say(f"      {line}".rstrip())

    def ok(self, claim: str) -> None:
        self.claims += 1
        self.say(f"   {self.styled('ok', 'ok')} {claim}")

    def failed(self, text: str) -> None:
        self.say(f"   {self.styled('failed', 'FAILED')} {text}")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A numbered step: its heading, then what happens in it."""
        self.say("\n" + self.styled("heading", f"{len(self.steps) + 1}. {title}") + "\n")
        started = time.monotonic()
        yield
        self.steps.append((title, time.monotonic() - started))

    @contextlib.contextmanager
    def timed(self, text: str) -> Iterator[None]:
        """A line for something that takes a while; its time follows when it is done."""
        self.say(f"   {text} ", end="")
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self.say()
            raise
        self.say(self.styled("time", f"[{time.monotonic() - started:.1f} s]"))

    def command(self, prompt: str, line: str) -> contextlib.AbstractContextManager[None]:
        """The line of a command that is about to run."""
        return self.timed(f"{self.styled('prompt', prompt)} {line}")

    def summary(self) -> None:
        """The steps with their times."""
        total = time.monotonic() - self.started
        headline = f"Everything as expected: {self.claims} claims checked in {total:.0f} s."
        self.say("\n" + self.styled("heading", headline) + "\n")
        steps = [("Building and booting", total - sum(seconds for _, seconds in self.steps)), *self.steps]
        for title, seconds in steps:
            self.say(f"   {seconds:6.1f} s  {title}")
        self.say()
