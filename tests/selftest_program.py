# SPDX-License-Identifier: GPL-2.0
"""Builds the project's own behaviour tests (tests/selftests) and reads their KTAP."""

import dataclasses
import os
import pathlib
import re
import subprocess

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


def build() -> pathlib.Path:
    """The program, statically linked: a guest has no libraries of its own."""
    target = pathlib.Path(os.environ["RVSOCK_CACHE"]) / "target" / "selftests"
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--package", "rvsock-selftests"]
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "RUSTFLAGS": "-C target-feature=+crt-static -C strip=symbols",
    }
    result = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"tests/selftests does not build:\n{result.stderr.rstrip()}")
    return target / "release" / "rvsock-selftests"


def cases() -> list[Case]:
    output = subprocess.run([build(), "--list"], capture_output=True, text=True, check=True).stdout
    lines = [line.partition("\t") for line in output.splitlines()]
    return [Case(name, reason or None) for name, _, reason in lines]


def outcome(output: str, name: str) -> Outcome:
    """What a run says about a case."""
    for result in RESULT.finditer(output):
        if result["name"] == name:
            return Outcome(result["status"] == "ok", result["reason"])
    raise AssertionError(f"no result for {name}:\n{output}")
