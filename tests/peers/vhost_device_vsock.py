# SPDX-License-Identifier: GPL-2.0
"""vhost-device-vsock, the rust-vmm project's vsock device in user space."""

import pathlib

from . import crates

NAME = "vhost-device-vsock"
VERSION = "0.3.0"


def build() -> pathlib.Path:
    return crates.build(NAME, VERSION)
