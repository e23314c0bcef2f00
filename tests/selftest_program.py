# SPDX-License-Identifier: GPL-2.0
"""Reads the KTAP of the project's own programs of cases (tests/selftests, tests/host_alone)."""

import dataclasses
import os
import pathlib
import re
import subprocess
from collections.abc import Sequence

from rig import programs

RESULT = re.compile(r"^(?P<status>ok|not ok) \d+ (?P<name>\S+)(?: # SKIP (?P<reason>.*))?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Case:
    """A case that the program knows, and why C is known to behave differently in it."""

    name: str
    differs_in_c: str | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    passed: bool
    skip_reason: str | None


def program() -> pathlib.Path:
    """The program of tests/selftests."""
    return programs.build("rvsock-selftests")


def cases(command: Sequence[str | os.PathLike] | None = None) -> list[Case]:
    """The cases that a program lists, by default those of tests/selftests."""
    command = [*(command or [program()]), "--list"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.partition("\t") for line in output.splitlines()]
    return [Case(name, reason or None) for name, _, reason in lines]


def outcome(output: str, name: str) -> Outcome:
    """What a run says about a case."""
    for result in RESULT.finditer(output):
        if result["name"] == name:
            return Outcome(result["status"] == "ok", result["reason"])
    raise AssertionError(f"no result for {name}:\n{output}")
