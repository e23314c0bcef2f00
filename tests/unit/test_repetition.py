# SPDX-License-Identifier: GPL-2.0
"""Which tests run again, and with what."""

import pytest

pytestmark = pytest.mark.unit
pytest_plugins = ["pytester"]

SUITE = """
import pytest
import rig

runs = []


@pytest.fixture(scope="module")
def guest():
    runs.append("boot")
    yield len([run for run in runs if run == "boot"])
    runs.append("end")


def test_before(guest):
    assert guest == 1


def test_that_is_hit(guest):
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


def test_it_runs_again_once(pytester):
    assert outcomes(pytester, "raise rig.EmulationTrap()", guests=2) == {"passed": 2, "failed": 1, "warnings": 1}


@pytest.mark.parametrize("error", ["rig.MachineHung()", "rig.MachinePanic()", "AssertionError()"])
def test_any_other_failure_counts(pytester, error):
    assert outcomes(pytester, f"raise {error}", guests=1) == {"passed": 2, "failed": 1}
