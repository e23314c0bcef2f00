# SPDX-License-Identifier: GPL-2.0
"""Panic paths in the finished modules.

A panic under a socket lock wedges task, socket and module for good, so nothing of ours may have a
path to one. Crates' own objects prove nothing: what is generic is compiled where it is used. So this
looks at the modules as they are loaded, at each reference to a function of `core` that panics, and at
the function that holds it, with what was inlined into that.

What functions of the kernel image do when they are called is the kernel's.
"""

import dataclasses
import itertools
import pathlib
import re
import subprocess

from . import elf, sources
from .allowed import Allowed, matches
from .report import Report
from .rust_names import demangle, is_rust, owners

ALLOWED = pathlib.Path(__file__).with_name("panic_allowed")
# Crates that others wrote; code of theirs is in our modules where it is generic or inline.
FOREIGN = {"bindings", "build_error", "compiler_builtins", "core", "ffi", "kernel", "macros", "pin_init"}
FOREIGN |= {"pin_init_internal", "uapi", "zerocopy"}

# core::panicking::…, slice_end_index_len_fail, len_mismatch_fail, unwrap_failed, panic_already_borrowed …
PANIC = re.compile(r"\bpanic|_fail(ed)?(_rt)?\b")
PANIC_C = {"panic", "rust_begin_unwind", "rust_build_error", "rust_helper_BUG"}
# What else modules use of `core`. A name in neither list is a problem, so that a panic function with a
# new name cannot slip through.
HARMLESS = re.compile(r"\bcore::(fmt|slice::memchr|str::converts|str::lossy|str::count|unicode)\b")


@dataclasses.dataclass(frozen=True)
class PanicPath:
    """A function refers to a function that panics; the frames say how that was inlined, outwards."""

    function: str
    panic: str
    frames: tuple["Frame", ...]

    @property
    def ours(self) -> bool:
        """Whether code of ours is in it, as the function itself or inlined into it."""
        return not all(map(is_foreign, (self.function, *(frame.function for frame in self.frames))))

    def __str__(self) -> str:
        return "\n    ".join([f"{self.function} can reach {self.panic}", *map(str, self.frames)])


@dataclasses.dataclass(frozen=True)
class Frame:
    """A function that was inlined, and the line in it."""

    function: str
    place: str

    def __str__(self) -> str:
        if is_foreign(self.function):
            return f"in {self.function}"
        return f"in {self.function}, {self.place}"


def check(build: pathlib.Path, allowed: Allowed | None = None) -> Report:
    """Checks the modules that modules.order of a build directory lists."""
    allowed = allowed or Allowed.read(ALLOWED)
    report = Report()
    modules = [elf.Object(path) for path in built_modules(build)]
    found: dict[PanicPath, list[str]] = {}
    for module in modules:
        paths, unknown = panic_paths(module)
        report.problems += unknown
        for one in paths:
            found.setdefault(one, []).append(module.path.name)
    for one in sorted(found, key=str):
        if not is_allowed(one, allowed):
            report.problems.append(f"{one}\n    in {' and in '.join(found[one])}")
    functions = sum(is_rust(function.name) for module in modules for function in module.functions())
    if not functions:
        report.problems.append(f"{build} has no module with Rust in it: nothing was checked")
    report.problems += allowed.stale()
    report.summary = f"{functions} Rust functions in {len(modules)} modules"
    return report


def built_modules(build: pathlib.Path) -> list[pathlib.Path]:
    order = build / "modules.order"
    if not order.exists():
        return []
    return [build / line.replace(".o", ".ko") for line in order.read_text().split()]


def panic_paths(module: elf.Object) -> tuple[set[PanicPath], list[str]]:
    """The panic paths of a module, and problems with names this module cannot judge."""
    references = list(module.references())
    names = demangle(sorted({name for r in references for name in (r.holder, r.target)}))
    defined = {function.name for function in module.functions()}
    panicking = [r for r in references if is_panic(names[r.target])]
    unknown = [
        f"{module.path.name}: is `{names[target]}` a function that panics? Add it to PANIC or HARMLESS"
        for target in sorted({r.target for r in references} - defined)
        if is_rust(target) and is_unknown(names[target])
    ]
    frames = inlined_frames(module, panicking)
    paths = {PanicPath(names[r.holder], names[r.target], frames[r.section.name, r.offset]) for r in panicking}
    return paths, unknown


def is_foreign(function: str) -> bool:
    found = owners(function)
    return "::" in function and found <= FOREIGN


def is_panic(name: str) -> bool:
    return name in PANIC_C or (is_foreign(name) and PANIC.search(name) is not None)


def is_unknown(name: str) -> bool:
    """Whether a function outside the module belongs to `core` and is none we know."""
    if is_panic(name) or HARMLESS.search(name):
        return False
    return "::" in name and owners(name) <= {"core"}


def is_allowed(path: PanicPath, allowed: Allowed) -> bool:
    if path.ours:
        return False
    for entry in allowed.entries:
        function, _, panic = entry.what.rpartition(" -> ")
        if matches(function, path.function) and matches(panic, path.panic):
            entry.used = True
            return True
    return False


Places = dict[tuple[str, int], tuple[Frame, ...]]


def inlined_frames(module: elf.Object, references: list[elf.Reference]) -> Places:
    """The functions behind each place, by section and offset, the innermost first."""
    frames: Places = {}
    for section in sorted({r.section.name for r in references}):
        offsets = sorted({r.offset for r in references if r.section.name == section})
        # `-a` prints each address, which tells one answer from the next.
        command = ["addr2line", "-e", str(module.path), "-j", section, "-a", "-i", "-f", *map(hex, offsets)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        starts = [at for at, line in enumerate(lines) if line.startswith("0x")] + [len(lines)]
        for offset, (start, end) in zip(offsets, itertools.pairwise(starts), strict=True):
            frames[section, offset] = read_frames(lines[start + 1 : end])
    return frames


def read_frames(lines: list[str]) -> tuple[Frame, ...]:
    """What addr2line prints in pairs of lines, function and place; without debug information, `??`."""
    functions, places = lines[::2], lines[1::2]
    names = demangle(functions)
    pairs = zip(functions, places, strict=True)
    return tuple(Frame(names[function], relative(place)) for function, place in pairs if function != "??")


def relative(place: str) -> str:
    """A place without the checkout, and without which of the line's blocks it is."""
    return place.split(" (discriminator")[0].removeprefix(f"{sources.CHECKOUT}/")
