# SPDX-License-Identifier: GPL-2.0
"""Results as tables: for the terminal, and as Markdown."""

import time
import typing
from collections.abc import Sequence

from . import counts

if typing.TYPE_CHECKING:
    from .results import Count, Results, Row

METHOD = """\
Ratios above 1 mean better than {baseline}: faster, sooner, or less memory. Drivers are exchanged inside
one running set of virtual machines, in the order baseline, variant, variant, baseline; the ratio is the
median of the pairwise ratios, the interval holds it with 95 % confidence (bootstrap over the pairs).
"C spread" is how far the samples of the baseline lie apart, as a part of their median. A block whose two
baselines differ by more than 15 % is invalid and repeated; "unsteady" is a case with too few valid blocks,
whatever was tried: judge nothing by it. "asked" is the ratio that a case has to reach, where there is
one; it is "short" if its whole interval lies below. Only ratios mean anything: the machines are emulated,
or programs of one that does other work, too.
"""

COUNTED = """\
For each MiB sent over one connection; here too a ratio above 1 means better: fewer. They depend on no clock.

{titles}
"""

ROW_HEAD = ("case", "unit", "C", "this", "ratio", "95 % interval", "runs", "C spread", "asked", "")
COUNT_HEAD = ("case", "count", "C", "this", "ratio")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 3 - len(str(int(abs(value))).lstrip("0"))
    return f"{value:.{max(digits, 0)}f}" if abs(value) >= 0.1 else f"{value:.4f}"


def row_cells(row: "Row") -> tuple[str, ...]:
    return (
        *(row.case, row.unit, number(row.baseline), number(row.median), f"{row.ratio:.2f}"),
        *(f"{row.low:.2f} to {row.high:.2f}", str(row.runs), f"{row.spread * 100:.0f} %"),
        *("" if row.least is None else f"{row.least:.2f}", row.verdict),
    )


def count_cells(count: "Count") -> tuple[str, ...]:
    return (count.case, count.unit, number(count.baseline), number(count.value), f"{count.ratio:.2f}")


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns by spaces; all but the first two to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for line in (head, *rows):
        fields = [
            text.ljust(width) if at < 2 else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(fields).rstrip())
    return "\n".join(lines)


def piped(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---" if at < 2 else "---:" for at in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def summary(results: "Results") -> str:
    load = results.load_average
    text = (
        f"Kernel {results.kernel}, CPU model {results.cpu}, lane {results.lane}, "
        f"baseline {results.baseline}; load average {load['median']:.1f} "
        f"({load['least']:.1f} to {load['most']:.1f})."
    )
    return text if results.incomplete is None else f"{text}\nINCOMPLETE: {results.incomplete}."


def terminal(results: "Results") -> str:
    parts = []
    for name in {**results.rows, **results.counts}:
        parts.append(f"{name}, beside {results.baseline}")
        if rows := results.rows.get(name):
            parts.append(aligned(ROW_HEAD, [row_cells(row) for row in rows]))
        if taken := results.counts.get(name):
            parts.append(aligned(COUNT_HEAD, [count_cells(count) for count in taken]))
    return "\n\n".join([*parts, summary(results)])


def markdown(results: "Results") -> str:
    stamp = time.strftime("%F %R UTC", time.gmtime(results.started))
    parts = ["# Speed beside C", f"{stamp}. {summary(results)}", METHOD.format(baseline=results.baseline)]
    parts.append("![ratios](bench.svg)")
    for name, rows in results.rows.items():
        parts += [f"## {name}", piped(ROW_HEAD, [row_cells(row) for row in rows])]
    if results.counts:
        titles = "\n".join(f"* {name}: {title}" for name, title in counts.TITLES.items())
        parts += ["## Counts", COUNTED.format(titles=titles)]
    for name, taken in results.counts.items():
        parts += [f"### {name}", piped(COUNT_HEAD, [count_cells(count) for count in taken])]
    return "\n\n".join(part.strip() for part in parts) + "\n"
