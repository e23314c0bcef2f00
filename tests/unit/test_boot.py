# SPDX-License-Identifier: GPL-2.0
"""Machines that do not come up: which of them are booted again."""

import sys
import typing

import pytest
from rig import runs
from rig.autopsy import cannot_fetch
from rig.console import Console
from rig.errors import EmulationTrap, MachineError, MachineHung, MachineLost, MachinePanic
from rig.host import BOOTS, Host, boot

pytestmark = pytest.mark.unit

BIOS = b"qemu-system-x86_64: warning: an old CPU\n"
KERNEL = BIOS + b"[    0.000000] Linux version 7.2\n"


class Boot(typing.NamedTuple):
    """What a guest prints, and why it does not come up."""

    output: bytes
    error: MachineError | None
    # What is found when it is asked later.
    trap: EmulationTrap | None = None


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

        def emulation_trap(self):
            return self._boot.trap

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


@pytest.fixture
def hosts(monkeypatch, tmp_path):
    """Host VMs that come up, or not, as is listed; those that were started, and whether they have ended."""
    errors, started = [], []

    class Machine:
        def __init__(self, run, *_options):
            self.run, self.ended = run, False
            started.append(self)

        def wait_up(self):
            if error := errors.pop(0):
                raise error

        def close(self):
            self.ended = True

    monkeypatch.setattr(sys.modules[Host.__module__], "Host", Machine)
    monkeypatch.setattr(runs, "cache", lambda: tmp_path)
    return errors, started


def test_a_host_that_hangs_in_its_boot_is_booted_again(hosts, capsys):
    errors, started = hosts
    errors += [MachineHung(), None]
    machine, run = boot(3072, 2, "max")
    assert [each.ended for each in started] == [True, False]
    assert (machine, run) == (started[1], started[1].run)
    assert "booted again" in capsys.readouterr().err
    # Whose run nobody uses any more is removed in the end.
    assert [each.run._lock.closed for each in started] == [True, False]
    run.close()


@pytest.mark.parametrize("error", [MachinePanic(), MachineLost()])
def test_one_that_ends_in_its_boot_is_not(hosts, error):
    errors, started = hosts
    errors += [error, None]
    with pytest.raises(type(error)):
        boot(3072, 2, "max")
    assert [each.ended for each in started] == [True]


def test_a_host_that_never_comes_up_is_given_up(hosts):
    errors, started = hosts
    errors += [MachineHung()] * (BOOTS + 1)
    with pytest.raises(MachineHung):
        boot(3072, 2, "max")
    assert [each.ended for each in started] == [True] * BOOTS


@pytest.mark.parametrize("trap", [EmulationTrap("hangs"), None])
def test_who_fails_because_a_guest_hangs_is_told(booting, trap):
    booting.boots = [Boot(KERNEL, None, trap)]
    error = AssertionError("no answer")
    with pytest.raises(type(trap or error)) as raised, booting.guest(3):
        raise error
    assert error in (raised.value, raised.value.__context__)
    assert booting.guests == []


def sample(place: str, fault: str) -> str:
    """A part of what QEMU says of a CPU."""
    return (
        f"RAX=000000010105b000 RBX=ff11000005b8b300 RCX=0000000000000001 RDX=0000000000000000\n"
        f"RIP={place} RFL=00010246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n"
        f"CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]\n"
        f"CR0=80050033 CR2={fault} CR3=0000000112cbd000 CR4=00751ef0\n"
    )


HERE, THERE = "ffffffffc04f057c", "ffffffffc04f0580"


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([(HERE, HERE)] * 3, True),
        # One may be by chance.
        ([(HERE, HERE)], False),
        ([(HERE, HERE), (THERE, THERE)], False),
        ([(HERE, THERE)] * 3, False),
        ([], False),
    ],
)
def test_a_fetch_that_faults_for_ever_is_the_emulations(samples, expected):
    assert cannot_fetch("did not come up\n" + "".join(sample(*each) for each in samples)) == expected
