# SPDX-License-Identifier: GPL-2.0
"""Builds what runs inside the machines: the agent."""

import os
import pathlib
import subprocess

from . import runs
from .errors import RigError


def agent() -> pathlib.Path:
    """The agent, statically linked: the guest has no libraries of its own."""
    target = runs.cache() / "target" / "agent"
    command = ["cargo", "build", "--quiet", "--release", "--package", "rvsock-agent"]
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "RUSTFLAGS": "-C target-feature=+crt-static -C strip=symbols",
    }
    result = subprocess.run(command, cwd=runs.CHECKOUT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RigError(f"the agent does not build:\n{result.stderr.rstrip()}")
    return target / "release" / "rvsock-agent"
