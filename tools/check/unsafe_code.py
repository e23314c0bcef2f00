# SPDX-License-Identifier: GPL-2.0
"""Where `unsafe` may be, and how much of it there is.

That each block and each implementation has its SAFETY comment is clippy's to say
(`undocumented_unsafe_blocks`, on in the kernel's flags and in the workspace's).
"""

import collections
import dataclasses
import pathlib
import re

from . import sources
from .allowed import Allowed
from .report import Report

ALLOWED = pathlib.Path(__file__).with_name("unsafe_allowed")
# The floors that unsafe lives on: raw C, and one crate for each subsystem of the kernel.
FLOORS = {"bindings", "af_vsock", "socket", "virtio", "vhost", "sunrpc"}

# Comments, strings and characters; lifetimes are not characters.
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(\#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^\n]+?|[^'\\\n])'""", re.DOTALL
)
# `""` is what is left of the "C" in `extern "C"`.
EXTERN = r'(?:extern\s*(?:"")?\s*)?'
KINDS = {
    "block": re.compile(r"\s*\{"),
    "function": re.compile(rf"\s*{EXTERN}fn\s+\w"),
    "implementation": re.compile(r"\s*(impl|trait)\b"),
    "extern block": re.compile(rf"\s*{EXTERN}\{{"),
}
# Says what a pointer points to, and does nothing.
TYPE = re.compile(rf"\s*{EXTERN}fn\s*\(")
# An attribute, or an argument of a macro: `#[unsafe(no_mangle)]`, `unsafe(uninit) static …`.
OTHER = "attribute"


@dataclasses.dataclass(frozen=True)
class Unsafe:
    """One `unsafe` in a file."""

    line: int
    kind: str
    lines: int


@dataclasses.dataclass
class Count:
    """What one crate has."""

    code: int = 0
    lines: int = 0
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def check(checkout: pathlib.Path = sources.CHECKOUT, allowed: Allowed | None = None) -> Report:
    allowed = allowed or Allowed.read(ALLOWED)
    report = Report()
    counts: dict[str, Count] = collections.defaultdict(Count)
    for name in sources.files(checkout, "rust/*.rs"):
        crate = name.parts[1]
        text = (checkout / name).read_text()
        found = occurrences(text)
        add(counts[crate], text, found)
        if crate not in FLOORS:
            report.problems += judge(name, found, allowed)
    report.problems += allowed.stale()
    report.notes = table(counts)
    report.summary = f"{sum(count.lines for count in counts.values())} lines"
    return report


def strip(text: str) -> str:
    """The code alone: comments, strings and characters are emptied, lines stay where they are."""
    return NO_CODE.sub(lambda found: hollow(found[0]), text)


def hollow(text: str) -> str:
    quotes = "" if text.startswith("/") else '""'
    return quotes + "\n" * text.count("\n")


def occurrences(text: str) -> list[Unsafe]:
    code = strip(text)
    found = []
    for word in re.finditer(r"\bunsafe\b", code):
        if TYPE.match(code, word.end()):
            continue
        kind = next((kind for kind, rest in KINDS.items() if rest.match(code, word.end())), OTHER)
        found.append(Unsafe(code.count("\n", 0, word.start()) + 1, kind, lines_of(kind, code, word.end())))
    return found


def lines_of(kind: str, code: str, start: int) -> int:
    """Lines on which the compiler is told to trust: all of a block, one of anything else.

    The body of an unsafe function is not unsafe (`unsafe_op_in_unsafe_fn`).
    """
    if kind == "block":
        return code.count("\n", start, end_of_block(code, start)) + 1
    return 0 if kind == "function" else 1


def end_of_block(code: str, start: int) -> int:
    depth = 0
    for brace in re.finditer(r"[{}]", code[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    return len(code)


def add(count: Count, text: str, found: list[Unsafe]) -> None:
    count.code += sum(1 for line in strip(text).splitlines() if line.strip())
    count.lines += sum(one.lines for one in found)
    count.kinds.update(one.kind for one in found)


def judge(name: pathlib.Path, found: list[Unsafe], allowed: Allowed) -> list[str]:
    """`unsafe` above its floors; the list names the file and how often it is there."""
    if not found:
        return []
    entry = next((entry for entry in allowed.entries if entry.what.split()[0] == str(name)), None)
    if entry is None:
        return [f"{name}:{one.line}: `unsafe` ({one.kind}) above the crates that wrap C" for one in found]
    entry.used = True
    if entry.what.split()[1:] == [str(len(found))]:
        return []
    return [f"{entry.place}: {name} has `unsafe` {len(found)} times"]


def table(counts: dict[str, Count]) -> list[str]:
    row = "{:<18}{:>7}{:>14}{:>8}{:>11}{:>17}{:>12}".format
    lines = [row("crate", "code", "unsafe lines", "blocks", "functions", "implementations", "attributes")]
    for crate, count in sorted(counts.items(), key=lambda item: (item[0] not in FLOORS, item[0])):
        kinds = [count.kinds[kind] for kind in ("block", "function", "implementation", OTHER)]
        lines.append(row(crate, count.code, count.lines, *kinds))
    return lines
