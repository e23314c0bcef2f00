# SPDX-License-Identifier: GPL-2.0
"""What the soak has found: a table over time, memory before and after, a verdict."""

import collections
import dataclasses
import os
import pathlib
import time

from bench.table import piped

from .memory import Growth

HEAD = (
    *("minutes", "rounds", "pairs", "disturbed", "MiB", "connections"),
    *("g2h", "h2g", "local", "ping µs"),
    *("host free", "host slab", "host kernel", "guest free", "guest slab", "guest kernel"),
    *("sockets", "log lines", "load"),
)

LEGEND = """\
Each row is about the time since the one before. *pairs* of programs ended well, *disturbed* ones were ended by a
restart or fault; *MiB* were compared with what was sent, on so many *connections*. *g2h*, *h2g* and *local* (loopback)
are Gbit/s of one connection with writes of 64 KiB, and *ping* the median of a round trip of 64 bytes from the guest:
taken alone, between two rounds, so that their course means something; on an emulated machine nothing else does. *free*
is MemAvailable, *slab* SUnreclaim, *kernel* what is neither free nor of files or processes, in MiB, with all programs
gone; the guest is the one that stays. *sockets* are those left then, *log lines* what the kernels have said meanwhile,
*load* is the load average of the machine below.
"""


@dataclasses.dataclass
class Row:
    """One interval."""

    minutes: float
    rounds: int
    passes: int
    disturbed: int
    mib: float
    connections: int
    # Gbit/s by lane, and µs.
    speeds: dict[str, float]
    # MiB by machine: free, slab, kernel.
    memory: dict[str, tuple[float, float, float]]
    # None where the machines could not be asked.
    sockets: int | None
    log_lines: int
    load: float

    def cells(self) -> tuple[str, ...]:
        speeds = (number(self.speeds.get(name), 2) for name in ("g2h", "h2g", "local"))
        memory = (
            number(value, 1) for name in ("host", "guest") for value in self.memory.get(name, (None, None, None))
        )
        return (
            *(f"{self.minutes:.1f}", str(self.rounds), str(self.passes), str(self.disturbed), f"{self.mib:.0f}"),
            *(str(self.connections), *speeds, number(self.speeds.get("ping"), 0), *memory),
            *(number(self.sockets, 0), str(self.log_lines), f"{self.load:.1f}"),
        )


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@dataclasses.dataclass
class Comparison:
    """A machine after the warm-up and in the end."""

    machine: str
    # Minutes between the two.
    minutes: float
    growth: list[Growth]

    @property
    def leaks(self) -> list[Growth]:
        return [each for each in self.growth if each.is_leak]

    def shown(self) -> list[Growth]:
        """What is always worth a line, and the rest if it has grown."""
        return [each for each in self.growth if each.name.startswith("KiB") or each.more > 0]


@dataclasses.dataclass
class Report:
    """Everything that is known so far."""

    seed: int
    # Minutes that were asked for.
    asked: float
    kernel: str
    cpu: str
    modules: str
    # What each row is about, in minutes at least.
    interval: float
    started: float = dataclasses.field(default_factory=time.time)
    minutes: float = 0.0
    rows: list[Row] = dataclasses.field(default_factory=list)
    passes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    disturbances: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)
    # What the emulation did to guests; that is not counted against anybody.
    traps: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    # What ended it; everything else is empty if nothing did.
    failure: str = ""
    interrupted: bool = False
    finished: bool = False

    @property
    def leaks(self) -> list[tuple[str, Growth]]:
        return [(each.machine, growth) for each in self.comparisons for growth in each.leaks]

    @property
    def failed(self) -> bool:
        return bool(self.failure or self.leaks)

    @property
    def verdict(self) -> str:
        if self.failure:
            return f"FAILED after {self.minutes:.1f} minutes: {self.failure.partition(chr(10))[0]}"
        if self.leaks:
            machine, growth = self.leaks[0]
            what = f"{growth.more} more {growth.name} in {machine}, {growth.allowed} are allowed"
            return f"FAILED: {len(self.leaks)} things have grown: {what}"
        if not self.finished:
            return "still running, or killed"
        nothing = "no warning of a kernel, no wrong byte, nothing that hung, no socket left"
        nothing += ", no growth" if self.comparisons else "; too short for a comparison of memory"
        if self.interrupted:
            return f"interrupted after {self.minutes:.1f} of {self.asked:.0f} minutes; so far {nothing}"
        return f"passed: {nothing}"

    def markdown(self) -> str:
        stamp = time.strftime("%F %R UTC", time.gmtime(self.started))
        head = (
            f"{stamp}. Kernel {self.kernel}, CPU model {self.cpu}; {self.modules}. "
            f"{self.minutes:.1f} of {self.asked:.0f} minutes, `SEED={self.seed}`."
        )
        parts = ["# Soak", head, f"**Verdict: {self.verdict}**"]
        if self.failure:
            parts.append(f"```\n{self.failure}\n```")
        parts += ["## Over time", LEGEND, piped(HEAD, [row.cells() for row in self.rows])]
        if self.comparisons:
            parts.append("## Memory after the warm-up and in the end")
        for each in self.comparisons:
            lines = [
                (growth.name, "LEAK" if growth.is_leak else "", str(growth.before), str(growth.after))
                + (f"{growth.more:+}", str(growth.allowed))
                for growth in each.shown()
            ]
            parts.append(f"{each.machine}, {each.minutes:.1f} minutes apart; {len(each.growth)} things were counted.")
            parts.append(piped(("what", "", "before", "after", "more", "allowed"), lines))
        parts += ["## What was done", tally("pairs of programs", self.passes), tally("disturbance", self.disturbances)]
        faults = "\n".join(f"* {line}" for line in self.traps) or "None."
        parts += ["## Guests that the emulation has ended", faults]
        if self.notes:
            parts += ["## Notes", "\n".join(f"* {line}" for line in self.notes)]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def write(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.markdown())
        partial.replace(path)


def tally(title: str, counted: collections.Counter[str]) -> str:
    return piped((title, "", "times"), [(name, "", str(times)) for name, times in sorted(counted.items())])


def load_average() -> float:
    return os.getloadavg()[0]
