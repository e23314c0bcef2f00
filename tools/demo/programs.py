# SPDX-License-Identifier: GPL-2.0
"""What the machines need for the demo: our samples, and programs of the tree for the guest's root."""

import os
import pathlib
import subprocess

from rig import RigError, nfs, runs

SAMPLES = ("vsock-echo", "vsock-transfer")

# The guest's root is busybox and these. sshd starts the two behind it by their paths.
GUEST = (
    *("socat", "ss", "tcpdump"),
    *nfs.GUEST_PROGRAMS,
    *("sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth", "ssh-keygen"),
)


def build() -> list[pathlib.Path]:
    """Builds the samples, statically linked: the guest has only the libraries of the programs above."""
    target = runs.cargo_target("samples")
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--package", "rvsock-samples"]
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "RUSTFLAGS": "-C target-feature=+crt-static -C strip=symbols",
    }
    result = subprocess.run(command, cwd=runs.CHECKOUT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RigError(f"the samples do not build:\n{result.stderr.rstrip()}")
    return [target / "release" / name for name in SAMPLES]
