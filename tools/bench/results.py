# SPDX-License-Identifier: GPL-2.0
"""Rows of results, and the files they are written to."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
import time

from . import chart, lanes, ratio, table
from .blocks import Series
from .lanes import Pair


@dataclasses.dataclass(frozen=True)
class Row:
    """A case of a variant beside the baseline."""

    case: str
    pair: str
    unit: str
    median: float
    baseline: float
    ratio: float
    low: float
    high: float
    # Pairs of samples behind the ratio.
    runs: int
    # Of all baseline samples, and whether enough blocks were steady.
    spread: float
    valid: bool
    # The ratio that is asked for, if one is.
    least: float | None = None

    @property
    def verdict(self) -> str:
        """What is wrong with it: too few steady blocks to judge by, or no part of the interval is what is asked for."""
        if not self.valid:
            return "unsteady"
        return "short" if self.least is not None and self.high < self.least else ""


@dataclasses.dataclass(frozen=True)
class Count:
    """A count for each MiB, of a variant beside the baseline; a ratio above 1 means fewer."""

    case: str
    pair: str
    unit: str
    value: float
    baseline: float
    ratio: float


def row(pair: Pair, series: Series) -> Row:
    pairs = series.pairs
    quality = ratio.of_pairs(pairs, series.quantity.higher_is_better)
    baselines = [baseline for baseline, _ in pairs]
    return Row(
        case=series.quantity.case,
        pair=pair.name,
        unit=series.quantity.unit,
        median=statistics.median(sample for _, sample in pairs),
        baseline=statistics.median(baselines),
        ratio=quality.median,
        low=quality.low,
        high=quality.high,
        runs=len(pairs),
        spread=ratio.spread(baselines),
        valid=series.complete,
        # The baseline beside itself has nothing to reach.
        least=None if pair == lanes.baseline(pair.roles) else series.quantity.least,
    )


def count(case: str, pair: Pair, name: str, baselines: list[float], values: list[float]) -> Count:
    value, baseline = statistics.median(values), statistics.median(baselines)
    unit = f"{name}/MiB"
    return Count(
        case, pair.name, unit, value, baseline, ratio.better(baseline, value, higher_is_better=False)
    )


def fields(entry: Row | Count) -> dict[str, object]:
    """Members by name; JSON knows no infinity, which is the ratio where one side counts nothing."""
    return {name: None if value == math.inf else value for name, value in dataclasses.asdict(entry).items()}


@dataclasses.dataclass
class Results:
    """Everything that is known so far."""

    lane: str
    baseline: str
    kernel: str
    cpu: str
    rounds: int
    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    counts: dict[str, list[Count]] = dataclasses.field(default_factory=dict)
    loads: list[float] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.time)
    # Why it ended before all was measured.
    incomplete: str | None = "still running, or killed"

    def note_load(self) -> None:
        self.loads.append(os.getloadavg()[0])

    @property
    def load_average(self) -> dict[str, float]:
        """Of the machine below all emulation; 2 or so are the benchmark's own."""
        loads = self.loads or [os.getloadavg()[0]]
        return {"least": min(loads), "median": statistics.median(loads), "most": max(loads)}

    def all_rows(self) -> list[Row]:
        return [each for rows in self.rows.values() for each in rows]

    def unmet(self) -> list[Row]:
        """What falls short of what is asked for, or cannot be judged."""
        return [row for row in self.all_rows() if row.least is not None and row.verdict]

    def all_counts(self) -> list[Count]:
        return [each for counts in self.counts.values() for each in counts]

    def as_json(self) -> str:
        content = {
            "complete": self.incomplete is None,
            "incomplete_because": self.incomplete,
            "lane": self.lane,
            "baseline": self.baseline,
            "kernel": self.kernel,
            "cpu": self.cpu,
            "started": time.strftime("%FT%TZ", time.gmtime(self.started)),
            "load_average": self.load_average,
            "rows": list(map(fields, self.all_rows())),
            "counts": list(map(fields, self.all_counts())),
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, directory: pathlib.Path) -> None:
        """All three files. Done after every block, so that an interruption loses one block at most."""
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "bench.json": self.as_json(),
            "bench.md": table.markdown(self),
            "bench.svg": chart.draw(self),
        }
        for name, text in files.items():
            partial = directory / f".{name}"
            partial.write_text(text)
            partial.replace(directory / name)
