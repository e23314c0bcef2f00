# SPDX-License-Identifier: GPL-2.0
"""Lists of exceptions: a line each, with its reason; one that is not needed any more is a problem."""

import dataclasses
import pathlib
import re

COMMENT = "# "


class BadLine(Exception):
    """A line of a list is not of its form."""


@dataclasses.dataclass
class Entry:
    """One line: `what # reason`."""

    place: str
    what: str
    reason: str
    used: bool = False


@dataclasses.dataclass
class Allowed:
    """The entries of one file."""

    entries: list[Entry]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Allowed":
        lines = enumerate(path.read_text().splitlines(), start=1)
        return cls([entry(f"{path.name}:{number}", line) for number, line in lines if is_entry(line)])

    def stale(self) -> list[str]:
        unused = [entry for entry in self.entries if not entry.used]
        return [f"{entry.place}: `{entry.what}` is not there any more: remove the line" for entry in unused]


def is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def entry(place: str, line: str) -> Entry:
    what, _, reason = line.partition(COMMENT)
    if not what.strip() or not reason.strip():
        raise BadLine(f"{place}: not of the form `what # reason`: {line}")
    return Entry(place, what.strip(), reason.strip())


def matches(pattern: str, text: str) -> bool:
    """Whether `text` is `pattern`, in which `*` stands for anything (and nothing else is special)."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
