# SPDX-License-Identifier: GPL-2.0
"""Which files belong to the project: what git tracks, and what it would."""

import pathlib
import subprocess

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


class NoSources(Exception):
    """The checkout cannot say what belongs to it."""


def files(checkout: pathlib.Path = CHECKOUT, pattern: str = "*") -> list[pathlib.Path]:
    """Relative paths, sorted. New files count before they are added, so that nobody has to add one to
    have it checked."""
    command = [
        # The owner of the checkout may be somebody other than the one who runs this.
        *("git", "-c", f"safe.directory={checkout}", "-C", str(checkout)),
        *("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise NoSources(f"`git ls-files` failed in {checkout}: {result.stderr.strip()}")
    names = sorted(set(filter(None, result.stdout.split("\0"))))
    return [pathlib.Path(name) for name in names if (checkout / name).is_file()]
