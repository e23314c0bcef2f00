# SPDX-License-Identifier: GPL-2.0
"""Guests that do not come up: which of them are booted again."""

import sys
import typing

import pytest
from rig.console import Console
from rig.errors import EmulationTrap, MachineError, MachineHung, MachinePanic
from rig.host import BOOTS, Host

pytestmark = pytest.mark.unit

BIOS = b"qemu-system-x86_64: warning: an old CPU\n"
KERNEL = BIOS + b"[    0.000000] Linux version 7.2\n"


class Boot(typing.NamedTuple):
    """What a guest prints, and why it does not come up."""

    output: bytes
    error: MachineError | None


@pytest.fixture
def booting(monkeypatch, tmp_path):
    """A host whose guests do what is listed in `boots`."""
    host = object.__new__(Host)
    host._guests = []
    host.boots = []

    class Guest:
        name = "guest"

        def __init__(self, _host, _cid):
            self._boot = host.boots.pop(0)
            self.console = Console(self.name, tmp_path / "console", lambda error: None)
            self.console.feed(self._boot.output)

        def wait_ready(self):
            if self._boot.error:
                raise self._boot.error

        def close(self):
            pass

    monkeypatch.setattr(sys.modules[Host.__module__], "Guest", Guest)
    return host


@pytest.mark.parametrize("boot", [Boot(BIOS, MachineHung()), Boot(KERNEL, EmulationTrap())])
def test_a_guest_that_the_emulation_ended_is_booted_again(booting, boot, capsys):
    booting.boots = [boot, Boot(KERNEL, None)]
    guest = booting._boot_guest(3)
    assert booting.guests == [guest]
    assert "booted again" in capsys.readouterr().err


@pytest.mark.parametrize("boot", [Boot(KERNEL, MachineHung()), Boot(KERNEL, MachinePanic())])
def test_one_that_may_have_met_a_fault_of_ours_is_not(booting, boot):
    booting.boots = [boot, Boot(KERNEL, None)]
    with pytest.raises(type(boot.error)):
        booting._boot_guest(3)
    assert booting.guests == []


def test_one_that_never_comes_up_is_given_up(booting):
    booting.boots = [Boot(BIOS, MachineHung())] * (BOOTS + 1)
    with pytest.raises(MachineHung):
        booting._boot_guest(3)
    assert len(booting.boots) == 1
