# SPDX-License-Identifier: GPL-2.0
"""Which tests run again, and with what."""

import pytest

pytestmark = pytest.mark.unit
pytest_plugins = ["pytester"]

SUITE = """
import pytest
import rig

runs = []


class Guest:
    def __init__(self, trap):
        self._trap = trap

    def emulation_trap(self):
        return self._trap


class Host:
    guests = []


@pytest.fixture
def host():
    return Host


@pytest.fixture(scope="module")
def guest():
    runs.append("boot")
    Host.guests = []
    yield len([run for run in runs if run == "boot"])
    runs.append("end")


def test_before(guest):
    assert guest == 1


def test_that_is_hit(guest, host):
    {what}


def test_after(guest):
    assert guest == {guests}
"""


def outcomes(pytester: pytest.Pytester, what: str, guests: int) -> dict[str, int]:
    pytester.makepyfile(SUITE.format(what=what, guests=guests))
    pytester.makeconftest(
        "from repetition import Repetition\n\ndef pytest_configure(config):\n"
        "    config.pluginmanager.register(Repetition())\n"
    )
    return pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:timeout").parseoutcomes()


@pytest.mark.parametrize(
    "error", ["rig.EmulationTrap()", "ExceptionGroup('both', [rig.EmulationTrap(), rig.CommandTimeout([], '')])"]
)
def test_a_test_that_the_emulation_ended_runs_again_with_a_new_guest(pytester, error):
    what = f"if guest == 1: raise {error}"
    assert outcomes(pytester, what, guests=2) == {"passed": 3, "warnings": 1}


def test_a_test_whose_guest_the_emulation_ended_unseen_runs_again(pytester):
    what = "if guest == 1: host.guests = [Guest(rig.EmulationTrap())]; assert not 'an answer'"
    assert outcomes(pytester, what, guests=2) == {"passed": 3, "warnings": 1}


@pytest.mark.parametrize("what", ["host.guests = [Guest(None)]; assert False", "assert False"])
def test_a_test_whose_guests_answer_fails(pytester, what):
    assert outcomes(pytester, what, guests=1) == {"passed": 2, "failed": 1}


def test_guests_are_not_asked_when_a_test_is_skipped(pytester):
    what = "host.guests = [Guest(rig.EmulationTrap())]; pytest.skip('no such kernel')"
    assert outcomes(pytester, what, guests=1) == {"passed": 2, "skipped": 1}


@pytest.mark.parametrize("error, runs", [("rig.EmulationTrap()", 4), ("rig.UnprovenTrap()", 2)])
def test_it_is_given_up_in_the_end(pytester, error, runs):
    assert outcomes(pytester, f"raise {error}", guests=runs) == {"passed": 2, "failed": 1, "warnings": runs - 1}


@pytest.mark.parametrize("error", ["rig.MachineHung()", "rig.MachinePanic()", "AssertionError()"])
def test_any_other_failure_counts(pytester, error):
    assert outcomes(pytester, f"raise {error}", guests=1) == {"passed": 2, "failed": 1}
