# SPDX-License-Identifier: GPL-2.0
"""Ratios and their intervals as a drawing (SVG)."""

import math
import typing
from xml.sax.saxutils import escape

if typing.TYPE_CHECKING:
    from .results import Results, Row

WIDTH = 900
LABELS = 300
RIGHT = 70
TOP = 70
LINE = 15
GAP = 9
COLOURS = ("#7f7f7f", "#d95f02", "#1b6ca8", "#2ca02c", "#7b4fa3")
# Ratios that get a grid line, if they are in sight. What lies beyond the outer ones is drawn there.
GRID = (0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)

STYLE = """\
text{font:12px sans-serif;fill:#222}.small{font-size:11px;fill:#555}.title{font-size:15px;font-weight:bold}
.grid{stroke:#ddd}.one{stroke:#222;stroke-width:1.5}.unsteady{opacity:.4}"""


class Scale:
    """Ratios on a logarithmic axis, on which twice and half are equally far from 1."""

    def __init__(self, rows: list["Row"]):
        finite = [value for row in rows for value in (row.low, row.high) if 0 < value < math.inf]
        self.least = max(min([0.8, *finite]), GRID[0]) / 1.05
        self.most = min(max([1.25, *finite]), GRID[-1]) * 1.05

    def x(self, value: float) -> float:
        value = min(max(value, self.least), self.most)
        share = math.log(value / self.least) / math.log(self.most / self.least)
        return LABELS + share * (WIDTH - LABELS - RIGHT)


def draw(results: "Results") -> str:
    """A line for each case and pair: the interval, the median on it, and the ratio beside it."""
    rows = results.all_rows()
    scale = Scale(rows)
    pairs = list(results.rows)
    cases = list(dict.fromkeys(row.case for row in rows))
    parts, y = [], TOP
    for case in cases:
        mine = [row for row in rows if row.case == case]
        parts.append(
            f'<text x="{LABELS - 10}" y="{y + LINE * len(mine) / 2 + 4}" text-anchor="end">'
            f"{escape(case)}</text>"
        )
        for row in mine:
            parts += mark(row, scale, y + LINE / 2, COLOURS[pairs.index(row.pair) % len(COLOURS)])
            y += LINE
        y += GAP
    height = y + 40
    body = [*heading(results, pairs), *grid(scale, y), *parts]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def heading(results: "Results", pairs: list[str]) -> list[str]:
    title = f"Ratio to {results.baseline}: right of 1 is better"
    if results.incomplete:
        title += f" (incomplete: {results.incomplete})"
    parts = [f'<text class="title" x="10" y="24">{escape(title)}</text>']
    x = 10
    for at, pair in enumerate(pairs):
        parts.append(f'<circle cx="{x + 6}" cy="44" r="5" fill="{COLOURS[at % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 16}" y="48">{escape(pair)}</text>')
        x += 40 + 7 * len(pair)
    return parts


def grid(scale: Scale, bottom: float) -> list[str]:
    parts = []
    for value in GRID:
        if scale.least <= value <= scale.most:
            x, style = scale.x(value), "one" if value == 1.0 else "grid"
            parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
            parts.append(
                f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
            )
    return parts


def mark(row: "Row", scale: Scale, y: float, colour: str) -> list[str]:
    style = "" if row.valid else ' class="unsteady"'
    low, middle, high = (scale.x(value) for value in (row.low, row.ratio, row.high))
    return [
        f'<g{style}><line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"',
        f'stroke="{colour}" stroke-width="3"/>',
        f'<circle cx="{middle:.1f}" cy="{y}" r="4.5" fill="{colour}"/></g>',
        f'<text class="small" x="{WIDTH - RIGHT + 12}" y="{y + 4}">{row.ratio:.2f}</text>',
    ]
