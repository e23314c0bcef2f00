# SPDX-License-Identifier: GPL-2.0
"""Builds programs of the workspace that run inside the machines."""

import functools
import os
import pathlib
import subprocess

from . import runs
from .errors import RigError

# Named, so that the flags below are not used for macros, which cannot be static.
TARGET = "x86_64-unknown-linux-gnu"


@functools.cache
def build(package: str) -> pathlib.Path:
    """The program of a package, statically linked: the guest has no libraries of its own.

    All in one place, so that what several of them need is compiled once. Other programs of the
    package are beside it.
    """
    target = runs.cargo_target("static")
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--package", package, "--target", TARGET]
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "RUSTFLAGS": "-C target-feature=+crt-static -C strip=symbols",
    }
    result = subprocess.run(command, cwd=runs.CHECKOUT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RigError(f"{package} does not build:\n{result.stderr.rstrip()}")
    return target / TARGET / "release" / package


def agent() -> pathlib.Path:
    """What carries out the rig's commands in a machine."""
    return build("rvsock-agent")
