# SPDX-License-Identifier: GPL-2.0
"""What is measured: a cell is one test of the load program in one direction."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

KIB = 1 << 10
SIZES = (64, 4 * KIB, 64 * KIB, 256 * KIB)
CONNECTIONS = (1, 8)
PING_SIZE = 64
# Packets of a guest that is a program, see rings.py.
RING_SIZES = (4 * KIB, 64 * KIB)

# What is judged at native speed: bulk, by the sizes of the writes, and how much faster than C it has
# to be. System calls are dear there, so that smaller writes show little else.
BULK = (64 * KIB, 256 * KIB)
BULK_LEAST = 1.2

# Sockets that are held to see what one costs, by the size of the writes that fill them (0: none
# do). Many enough to stand out from what the kernel allocates besides, in time.
HELD = {0: 256, 64: 16, 64 * KIB: 32}

# What the load program says about a test.
Answer = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that a cell yields, a row of the results."""

    case: str
    unit: str
    higher_is_better: bool
    value: Callable[[Answer], float]
    # Whether it decides about a run: the others are reported only.
    gates: bool = True
    # The ratio that is asked for, if one is.
    least: float | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
    """Something to measure; `direction` names the lane's end that is active."""

    direction: str
    test: str
    quantities: tuple[Quantity, ...]


@dataclasses.dataclass(frozen=True)
class MemoryCell:
    """Sockets held by the passive end, and how much memory each takes there."""

    direction: str
    count: int
    size: int
    quantities: tuple[Quantity, ...]


@dataclasses.dataclass(frozen=True)
class RingCell:
    """Packets of so many bytes, by the way through the host's device alone, see rings.py."""

    size: int
    quantities: tuple[Quantity, ...]


AnyCell = Cell | MemoryCell | RingCell


def size_name(size: int) -> str:
    return f"{size // KIB}KiB" if size >= KIB else f"{size}B"


def stream(direction: str, size: int, connections: int, least: float | None = None) -> Cell:
    case = f"{direction} {size_name(size)} x{connections}"
    quantity = Quantity(
        case, "Gbit/s", True, lambda answer: answer["bytes"] * 8e-9 / answer["seconds"], least=least
    )
    return Cell(direction, f"stream:{size}:{connections}", (quantity,))


def ping(direction: str) -> Cell:
    case = f"{direction} request-response {size_name(PING_SIZE)}"
    quantities = (
        Quantity(f"{case} p50", "µs", False, lambda answer: answer["p50"]),
        Quantity(f"{case} p99", "µs", False, lambda answer: answer["p99"], gates=False),
    )
    return Cell(direction, f"ping:{PING_SIZE}", quantities)


def connect(direction: str) -> Cell:
    quantity = Quantity(
        f"{direction} connections",
        "1/s",
        True,
        lambda answer: answer["count"] / answer["seconds"],
        gates=False,
    )
    return Cell(direction, "connect", (quantity,))


def memory(direction: str, size: int) -> MemoryCell:
    state = f"full of {size_name(size)} writes" if size else "idle"
    quantity = Quantity(
        f"{direction} memory of a receiver {state}", "KiB", False, lambda answer: answer["kib"], gates=False
    )
    return MemoryCell(direction, HELD[size], size, (quantity,))


def rings(size: int) -> RingCell:
    quantities = tuple(
        Quantity(
            f"rings {direction} {size_name(size)}",
            "Gbit/s",
            True,
            lambda answer, direction=direction: answer[direction],
            gates=False,
        )
        for direction in ("guest to host", "host to guest")
    )
    return RingCell(size, quantities)


def timed(directions: Iterable[str]) -> list[AnyCell]:
    """All cells that take time, in the order of the table."""
    ends = list(directions)
    cells: list[AnyCell] = [
        stream(end, size, count) for count in CONNECTIONS for end in ends for size in SIZES
    ]
    cells += [make(end) for make in (ping, connect) for end in ends]
    return cells


def held(directions: Iterable[str]) -> list[AnyCell]:
    """All cells about memory."""
    return [memory(end, size) for end in directions for size in HELD]


def native(direction: str) -> list[AnyCell]:
    """All cells at native speed."""
    bulk = [
        stream(direction, size, count, BULK_LEAST if size in BULK else None)
        for count in CONNECTIONS
        for size in SIZES
    ]
    return [*bulk, ping(direction), connect(direction), *map(rings, RING_SIZES)]


def matches(case: str, pattern: str) -> bool:
    """Whether a pattern occurs in the name of a case; `*` stands for anything."""
    return fnmatch.fnmatchcase(case, f"*{pattern}*")


def choose(cells: Iterable[AnyCell], patterns: Sequence[str]) -> list[AnyCell]:
    """The cells with a case that one of the patterns occurs in; all if there are none."""
    return [
        cell
        for cell in cells
        if not patterns
        or any(matches(quantity.case, pattern) for quantity in cell.quantities for pattern in patterns)
    ]
