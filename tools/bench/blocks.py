# SPDX-License-Identifier: GPL-2.0
"""In which order implementations are measured, what is repeated, and what counts.

A block is baseline, variant, variant, baseline: whatever drifts while it is measured, the machine's
other load above all, meets both alike. Drivers are loaded anew for each of its four visits. Two
baselines of a block that differ too much show that something happened in between: the block is
invalid, and measured again.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from . import load, memory, rings
from .cells import AnyCell, Cell, MemoryCell, Quantity, RingCell
from .lanes import Lane, Pair, servers
from .load import Timing

SPREAD_MAX = 0.15
# Of all blocks of a cell, this many times as many are measured as are needed, if they are invalid.
PATIENCE = 2
# Cells that are measured before drivers are exchanged: few, so that visits are close in time.
CHUNK = 5

# What one visit found, by case.
Visit = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Block:
    """The samples of a quantity in a block."""

    baselines: tuple[float, float]
    variants: tuple[float, float]

    @property
    def valid(self) -> bool:
        first, last = self.baselines
        return abs(first - last) <= SPREAD_MAX * (first + last) / 2

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Each with what was measured beside it."""
        return list(zip(self.baselines, self.variants, strict=True))


@dataclasses.dataclass
class Series:
    """The blocks of a quantity, and how many of them are needed."""

    quantity: Quantity
    needed: int
    blocks: list[Block] = dataclasses.field(default_factory=list)

    @property
    def good(self) -> list[Block]:
        """Blocks that count: quantities that do not gate take what they get."""
        return [block for block in self.blocks if block.valid or not self.quantity.gates]

    @property
    def complete(self) -> bool:
        return len(self.good) >= self.needed

    @property
    def hopeless(self) -> bool:
        return len(self.blocks) >= self.needed * PATIENCE

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Of the blocks that count; of all if those are too few, as something has to be shown."""
        blocks = self.good if self.complete else self.blocks
        return [pair for block in blocks for pair in block.pairs]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How thoroughly to measure."""

    timing: Timing
    # Blocks for each cell; memory hardly varies.
    rounds: int
    memory_rounds: int
    # How often each count is taken, and the part of the usual bytes that is sent for it.
    count_rounds: int
    count_share: int

    def needed(self, cell: AnyCell) -> int:
        return min(self.rounds, self.memory_rounds) if isinstance(cell, MemoryCell) else self.rounds


# 5 blocks are 10 pairs.
FULL = Plan(Timing(150, 500), rounds=5, memory_rounds=2, count_rounds=3, count_share=1)
QUICK = Plan(Timing(50, 100), rounds=1, memory_rounds=1, count_rounds=1, count_share=8)


class Comparison:
    """A variant beside the baseline, cell by cell."""

    def __init__(self, lane: Lane, baseline: Pair, variant: Pair, cells: Sequence[AnyCell], plan: Plan):
        self.lane, self.baseline, self.variant, self.plan = lane, baseline, variant, plan
        self.cells = list(cells)
        self.series = {
            quantity.case: Series(quantity, plan.needed(cell))
            for cell in cells
            for quantity in cell.quantities
        }
        # How often a cell was measured.
        self.measured = 0
        self._host_too = variant.implementations[1:] != baseline.implementations[1:]

    def pending(self) -> list[AnyCell]:
        return [cell for cell in self.cells if any(map(self._wants, cell.quantities))]

    def _wants(self, quantity: Quantity) -> bool:
        series = self.series[quantity.case]
        return not series.complete and not series.hopeless

    def visits_left(self) -> int:
        """How often a cell is still to be measured, if all blocks are valid."""
        missing = (
            max(
                self.series[quantity.case].needed - len(self.series[quantity.case].good)
                for quantity in cell.quantities
            )
            for cell in self.pending()
        )
        return 4 * sum(missing)

    def run(self, report: Callable[[], None]) -> None:
        """Measures until every cell has its blocks; `report` is called after each block."""
        if self.cells:
            self._warm_up()
        while pending := self.pending():
            for chunk in itertools.batched(pending, CHUNK):
                self._block(chunk)
                report()

    def _warm_up(self) -> None:
        """QEMU has translated no code yet, and no page of a program is in memory."""
        timed = [cell for cell in self.cells if isinstance(cell, Cell)][:CHUNK]
        for pair in (self.baseline, self.variant):
            self.visit(pair, timed)

    def _block(self, cells: Sequence[AnyCell]) -> None:
        first, second, third, last = (
            self.visit(pair, cells) for pair in (self.baseline, self.variant, self.variant, self.baseline)
        )
        for quantity in (quantity for cell in cells for quantity in cell.quantities):
            case = quantity.case
            block = Block((first[case], last[case]), (second[case], third[case]))
            self.series[case].blocks.append(block)

    def exchange(self, pair: Pair) -> None:
        self.lane.exchange(pair, self._host_too)

    def visit(self, pair: Pair, cells: Sequence[AnyCell]) -> Visit:
        """One measurement of each cell, with drivers loaded anew."""
        self.exchange(pair)
        self.measured += len(cells)
        found: Visit = {}
        timed = [cell for cell in cells if isinstance(cell, Cell)]
        if timed:
            with servers(self.lane):
                for direction in self.lane.directions:
                    found |= self._timed(direction, [cell for cell in timed if cell.direction == direction])
        for cell in cells:
            if isinstance(cell, MemoryCell):
                found |= values(cell, memory.measure(self.lane.path(cell.direction), cell))
            elif isinstance(cell, RingCell):
                found |= values(cell, rings.measure(self.lane.host, cell, self.plan.timing))
        return found

    def _timed(self, direction: str, cells: Sequence[Cell]) -> Visit:
        if not cells:
            return {}
        answers = load.run(self.lane.path(direction), [cell.test for cell in cells], self.plan.timing)
        found: Visit = {}
        for cell, answer in zip(cells, answers, strict=True):
            found |= values(cell, answer)
        return found


def values(cell: AnyCell, answer: dict[str, float]) -> Visit:
    return {quantity.case: quantity.value(answer) for quantity in cell.quantities}
