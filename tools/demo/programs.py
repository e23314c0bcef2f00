# SPDX-License-Identifier: GPL-2.0
"""What the machines need for the demo: our samples, and programs of the tree for the guest's root."""

import pathlib

from rig import nfs, programs

SAMPLES = ("vsock-echo", "vsock-transfer")

# The guest's root is busybox and these. sshd starts the two behind it by their paths.
GUEST = (
    *("socat", "ss", "tcpdump"),
    *nfs.GUEST_PROGRAMS,
    *("sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth", "ssh-keygen"),
)


def build() -> list[pathlib.Path]:
    """Builds the samples."""
    program = programs.build("rvsock-samples")
    return [program.with_name(name) for name in SAMPLES]
