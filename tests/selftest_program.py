# SPDX-License-Identifier: GPL-2.0
"""Builds the project's own programs of cases (tests/selftests, tests/host_alone) and reads their KTAP."""

import dataclasses
import os
import pathlib
import re
import subprocess
from collections.abc import Sequence

from rig import runs

TESTS = pathlib.Path(__file__).resolve().parent
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


# Statically linked, a program runs in a guest, too, which has no libraries of its own. Packages that
# need procedural macros cannot be built so.
STATIC = "-C target-feature=+crt-static -C strip=symbols"
DYNAMIC = "-C strip=symbols"


def build(package: str = "rvsock-selftests", flags: str = STATIC) -> pathlib.Path:
    """The program of a package."""
    target = runs.cargo_target(package.removeprefix("rvsock-"))
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--package", package]
    environment = os.environ | {"CARGO_TARGET_DIR": str(target), "RUSTFLAGS": flags}
    result = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{package} does not build:\n{result.stderr.rstrip()}")
    return target / "release" / package


def cases(command: Sequence[str | os.PathLike] | None = None) -> list[Case]:
    """The cases that a program lists, by default those of tests/selftests."""
    command = [*(command or [build()]), "--list"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.partition("\t") for line in output.splitlines()]
    return [Case(name, reason or None) for name, _, reason in lines]


def outcome(output: str, name: str) -> Outcome:
    """What a run says about a case."""
    for result in RESULT.finditer(output):
        if result["name"] == name:
            return Outcome(result["status"] == "ok", result["reason"])
    raise AssertionError(f"no result for {name}:\n{output}")
