# SPDX-License-Identifier: GPL-2.0
"""What rustfmt, clippy, the compilers and cargo say."""

import dataclasses
import os
import pathlib
import re
import subprocess

from . import panics, sources
from .report import Report

# What make prints while all is well: `make[1]: …`, `  RUSTC [M] …`, and the command line itself.
CHATTER = re.compile(r"make(\[\d+\])?: (Entering|Leaving)|  [A-Z]+ |make -C ")
WARNING = re.compile(r"^(.*: )?warning", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """The compilers of the tree, and where they leave what they build."""

    checkout: pathlib.Path
    release: str

    @property
    def build(self) -> pathlib.Path:
        return self.checkout / "build" / self.release

    def run(self, command: list[str], **variables: str) -> tuple[int, list[str]]:
        """Exit status and output of a command."""
        result = subprocess.run(
            command,
            cwd=self.checkout,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return result.returncode, result.stdout.splitlines()

    def modules(self) -> Report:
        """Builds the modules; warnings count."""
        status, lines = self.run(make("modules"))
        lines = [line for line in lines if not CHATTER.match(line)]
        return Report(lines if status or any(map(WARNING.match, lines)) else [])

    def panics(self) -> Report:
        """Looks for panic paths in the modules, which have to be those of the sources that are here."""
        if self.modules().problems:
            return Report(["the modules do not build"])
        return panics.check(self.build)

    def clippy(self) -> Report:
        """Compiles our kernel crates with the kernel's lints, in a directory of its own.

        Warnings are errors, of the C compiler as well: those of a compilation that succeeded would not
        come back in the next run.
        """
        command = make("modules", "CLIPPY=1", "KRUSTFLAGS=-Dwarnings", "KCFLAGS=-Werror")
        # From the environment: on its command line the kernel's make takes O for its own.
        status, lines = self.run(command, O=f"{self.build}-clippy")
        return Report([line for line in lines if not CHATTER.match(line)] if status else [])

    def cargo_clippy(self) -> Report:
        lints = ["warnings", "clippy::undocumented_unsafe_blocks"]
        return self.cargo("clippy", "--all-targets", "--", *(f"-D{lint}" for lint in lints))

    def cargo_test(self) -> Report:
        return self.cargo("test", "--no-fail-fast")

    def cargo(self, command: str, *arguments: str) -> Report:
        line = ["cargo", command, "--workspace", "--locked", "--quiet", *arguments]
        status, lines = self.run(line, CARGO_TARGET_DIR=str(self.build.parent / "target" / "check"))
        # They stand behind the dots of the harness.
        models = [found[0] for line in lines if (found := re.search(r"model: .*", line))]
        passed = sum(int(found[1]) for line in lines if (found := re.search(r"(\d+) passed", line)))
        return Report(lines if status else [], models, f"{passed} passed" if passed else "")

    def formatting(self) -> Report:
        names = list(map(str, sources.files(self.checkout, "*.rs")))
        status, lines = self.run(["rustfmt", "--check", "-l", *names])
        if status == 0:
            return Report(summary=f"{len(names)} files")
        found = sorted({line.removeprefix(f"{self.checkout}/") for line in lines})
        return Report([*found, "`make rustfmt` formats them"])


def make(*arguments: str) -> list[str]:
    return ["make", "--no-print-directory", f"-j{os.cpu_count()}", *arguments]
