# SPDX-License-Identifier: GPL-2.0
"""What can go wrong with a machine or a command in it, each with a name of its own."""

import shlex
import signal
from collections.abc import Sequence


class RigError(Exception):
    """Base of all errors of the rig; the text is for the user."""


class MachineError(RigError):
    """A virtual machine cannot go on; the text ends with the end of its console."""


class MachinePanic(MachineError):
    """The kernel panicked."""


class MachineLost(MachineError):
    """The virtual machine ended, or its control channel broke."""


class MachineHung(MachineError):
    """The virtual machine runs but does not answer any more."""


class EmulationTrap(MachineError):
    """A guest or its host met a fault of the emulation, not of its own."""


class UnprovenTrap(EmulationTrap):
    """By all that is known a fault of the emulation, but nothing proves it."""


class CommandError(RigError):
    """A command in a machine did not do what it was asked for."""

    def __init__(self, arguments: Sequence[str], what: str, output: str = ""):
        text = f"`{shlex.join(map(str, arguments))}` {what}"
        super().__init__(f"{text}\n{output.rstrip()}" if output.strip() else text)


class CommandFailed(CommandError):
    """A command ended with a status other than 0."""


class CommandTimeout(CommandError):
    """A command took too long and was killed."""


class NotBuilt(RigError):
    """A module of ours is asked for that is not built."""


def describe_status(status: int) -> str:
    """Words for a status as subprocess counts: negative for signals."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
