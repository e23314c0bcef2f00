# SPDX-License-Identifier: GPL-2.0
"""A whole run of the benchmark: all pairs, all cells, then counts."""

import dataclasses
import itertools
import os
import pathlib
from collections import defaultdict

import rig

from . import cells, counts, lanes, load, results, table
from .blocks import Comparison, Plan
from .lanes import Lane, Pair
from .progress import Progress

# So many times the emulation may end the machines; the block that is measured then is measured again.
TRAPS_MAX = 5

# A case, and what is counted in it.
CountKey = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    lane: lanes.Kind
    pairs: list[Pair]
    patterns: list[str]
    plan: Plan
    output: pathlib.Path


class Session:
    """Measures in a running lane, and keeps the files up to date."""

    def __init__(self, wanted: Wanted, lane: Lane):
        self.wanted, self.lane = wanted, lane
        self.baseline = lanes.baseline(lane.roles)
        self.results = results.Results(
            *(wanted.lane.name, self.baseline.name, os.environ["RVSOCK_RELEASE"], wanted.lane.cpu, wanted.plan.rounds)
        )
        chosen = cells.choose(wanted.lane.cells, wanted.patterns)
        self.comparisons = [
            Comparison(lane, self.baseline, pair, chosen, wanted.plan) for pair in wanted.pairs
        ]
        self.counted = [
            (direction, size)
            for direction in lane.directions
            for size in counts.TRANSFERS
            if is_counted(direction, size, wanted.patterns)
        ]
        self._counts_left = len(wanted.pairs) * wanted.plan.count_rounds * 2 * len(self.counted)
        self._counts_done = 0
        self.progress = Progress()

    def move_to(self, lane: Lane) -> None:
        """Goes on in a new lane: the emulation has ended the machines of the one before."""
        self.lane = lane
        for comparison in self.comparisons:
            comparison.lane = lane

    def run(self) -> None:
        """Measures what is missing yet."""
        try:
            for comparison in self.comparisons:
                if comparison.pending():
                    self._compare(comparison)
            for comparison in self.comparisons:
                if comparison.variant.name not in self.results.counts:
                    self._count(comparison)
            self.results.incomplete = None
        except KeyboardInterrupt:
            self.results.incomplete = "interrupted"
            raise
        except BaseException as error:
            self.results.incomplete = str(error).partition("\n")[0] or type(error).__name__
            raise
        finally:
            self.results.write(self.wanted.output)

    def _compare(self, comparison: Comparison) -> None:
        name = comparison.variant.name
        self.progress.say(f"{name}: warming up")

        def report() -> None:
            self.results.note_load()
            self.results.rows[name] = [
                results.row(comparison.variant, series)
                for series in comparison.series.values()
                if series.blocks
            ]
            self.results.write(self.wanted.output)
            self._advance(name)

        comparison.run(report)

    def _advance(self, text: str) -> None:
        self.progress.advance(
            self._counts_done + sum(comparison.measured for comparison in self.comparisons),
            self._counts_left + sum(comparison.visits_left() for comparison in self.comparisons),
            text,
        )

    def _count(self, comparison: Comparison) -> None:
        """Counts in the order ABBA, too."""
        if not self.counted:
            return
        name = comparison.variant.name
        found: dict[bool, dict[CountKey, list[float]]] = {False: defaultdict(list), True: defaultdict(list)}
        order = itertools.cycle((False, True, True, False))
        for is_variant in itertools.islice(order, 2 * self.wanted.plan.count_rounds):
            comparison.exchange(comparison.variant if is_variant else comparison.baseline)
            for key, value in self._count_once().items():
                found[is_variant][key].append(value)
            self._counts_left -= len(self.counted)
            self._counts_done += len(self.counted)
            self._advance(f"{name}: counts")
        self.results.counts[name] = [
            results.count(key[0], comparison.variant, key[1], found[False][key], values)
            for key, values in found[True].items()
        ]
        self.results.write(self.wanted.output)

    def _count_once(self) -> dict[CountKey, float]:
        """All counts of the drivers that are loaded."""
        found = {}
        with lanes.servers(self.lane):
            for direction, size in self.counted:
                counted = counts.measure(self.lane, direction, size, self.wanted.plan.count_share)
                found |= {(counts.case(direction, size), name): value for name, value in counted.items()}
        return found


def is_counted(direction: str, size: int, patterns: list[str]) -> bool:
    name = f"{counts.case(direction, size)} counts"
    return not patterns or any(cells.matches(name, pattern) for pattern in patterns)


def run(wanted: Wanted) -> results.Results:
    """Starts the machines and measures; whatever happens, what was measured is in the files."""
    lanes.require_built(wanted.pairs)
    load.program()
    session: Session | None = None
    traps = 0
    try:
        while session is None or session.results.incomplete is not None:
            try:
                with wanted.lane.start() as lane:
                    if session is None:
                        session = Session(wanted, lane)
                    session.move_to(lane)
                    session.run()
            except rig.EmulationTrap as trap:
                traps += 1
                if traps > TRAPS_MAX:
                    raise
                Progress().say(f"{str(trap).splitlines()[0]}: going on with new machines")
    finally:
        if session and (session.results.rows or session.results.counts):
            session.progress.say(f"\n{table.terminal(session.results)}")
    return session.results
