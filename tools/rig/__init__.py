# SPDX-License-Identifier: GPL-2.0
"""Boots a host VM and guests in it, and runs commands in either.

    with rig.host() as host:
        host.load("host", "c")
        with host.guest(cid=3) as guest:
            guest.load("guest", "c")
            print(guest.run(["uname", "-r"]).stdout)

Everything here runs inside the tree (`tools/env enter`).
"""

from .channel import Command, Result
from .errors import (
    CommandError,
    CommandFailed,
    CommandTimeout,
    EmulationTrap,
    MachineError,
    MachineHung,
    MachineLost,
    MachinePanic,
    NotBuilt,
    RigError,
    UnprovenTrap,
)
from .guest import SYSTEM_ROOT, VSOCK, Guest
from .host import Host, host
from .kernel_log import KernelReport
from .user_mode import UserMode, user_mode

__all__ = [
    "SYSTEM_ROOT",
    "VSOCK",
    "Command",
    "CommandError",
    "CommandFailed",
    "CommandTimeout",
    "EmulationTrap",
    "Guest",
    "Host",
    "KernelReport",
    "MachineError",
    "MachineHung",
    "MachineLost",
    "MachinePanic",
    "NotBuilt",
    "Result",
    "RigError",
    "UnprovenTrap",
    "UserMode",
    "host",
    "user_mode",
]
