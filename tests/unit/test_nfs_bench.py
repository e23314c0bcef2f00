# SPDX-License-Identifier: GPL-2.0
"""The benchmark of NFS: what it does when the emulation fails, and what it makes of the figures."""

import contextlib
import itertools

import pytest
import rig
from nfs_bench import __main__ as command
from nfs_bench import ways

pytestmark = pytest.mark.unit

WAYS = [ways.Way("ours", contextlib.nullcontext), ways.Way(ways.BASELINE, contextlib.nullcontext)]
WORK = command.WORKS[0].name


class Bench:
    """Machines of which some fail: `lost` counts the measurements of all ways."""

    def __init__(self, monkeypatch, lost=()):
        self.opened = 0
        self._lost = lost
        self._measurements = itertools.count(1)
        monkeypatch.setattr(command, "opened", self._open)
        monkeypatch.setattr(command, "measure", self._measure)

    @contextlib.contextmanager
    def _open(self, connections):
        self.opened += 1
        machine = type("Machine", (), {"shell": lambda *_: None})()
        yield ways.Machines(machine, machine, None, connections)

    def _measure(self, guest):
        number = next(self._measurements)
        if number in self._lost:
            raise rig.EmulationTrap("the guest is lost\nits console")
        return {WORK: float(number)}


def test_the_first_round_warms_up(monkeypatch):
    bench = Bench(monkeypatch)
    assert command.rounds(WAYS, 2, 1) == {("ours", WORK): [3, 5], (ways.BASELINE, WORK): [4, 6]}
    assert bench.opened == 1


def test_a_round_in_which_the_emulation_failed_is_measured_again(monkeypatch, capsys):
    bench = Bench(monkeypatch, lost=[6])
    # The round that was cut short counts for no way, and new machines are warmed up again.
    assert command.rounds(WAYS, 2, 1) == {("ours", WORK): [3, 9], (ways.BASELINE, WORK): [4, 10]}
    assert bench.opened == 2
    assert "the guest is lost: going on with new machines\n" in capsys.readouterr().err


def test_it_is_given_up_when_the_emulation_keeps_failing(monkeypatch):
    bench = Bench(monkeypatch, lost=range(1, 100))
    with pytest.raises(rig.EmulationTrap):
        command.rounds(WAYS, 2, 1)
    assert bench.opened == command.TRAPS_MAX + 1


def test_ratios_are_those_of_one_round(monkeypatch):
    monkeypatch.setattr(command, "WORKS", command.WORKS[:1])
    samples = {("ours", WORK): [2.0, 8.0, 30.0], (ways.BASELINE, WORK): [1.0, 2.0, 10.0]}
    assert "| ours | 8 MB/s (3.00) |" in command.table(WAYS, samples)
