# SPDX-License-Identifier: GPL-2.0
"""A guest: QEMU with nested KVM inside the host VM."""

from .machine import Machine


class Guest(Machine):
    """Placeholder until the next commit."""
