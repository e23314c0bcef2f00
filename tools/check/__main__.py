# SPDX-License-Identifier: GPL-2.0
"""`make check`: runs all parts, whatever the earlier ones found. Runs inside the tree."""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from check import sources, tracked, unsafe_code  # noqa: E402
from check.allowed import BadLine  # noqa: E402
from check.elf import NotAnObject  # noqa: E402
from check.report import Report  # noqa: E402
from check.toolchain import Toolchain  # noqa: E402

DESCRIPTION = "Checks what can be checked in seconds, without a virtual machine."
EXPECTED = (BadLine, NotAnObject, sources.NoSources, OSError, subprocess.CalledProcessError)


def parts(toolchain: Toolchain) -> dict[str, Callable[[], Report]]:
    """Name and function of each part; quick ones first."""
    return {
        "files": tracked.check,
        "unsafe": unsafe_code.check,
        "rustfmt": toolchain.formatting,
        "modules": toolchain.modules,
        "panics": toolchain.panics,
        "clippy": toolchain.clippy,
        "cargo-clippy": toolchain.cargo_clippy,
        "cargo-test": toolchain.cargo_test,
    }


DOES = """\
parts:
  files         licence lines; no paths or hosts of the author's machine
  unsafe        `unsafe` is where it belongs; how many lines each crate has
  rustfmt       Rust is formatted
  modules       the modules build without warnings
  panics        no code of ours in the modules can panic
  clippy        the kernel's lints on our kernel crates
  cargo-clippy  lints on the cargo workspace
  cargo-test    tests of the cargo workspace
"""


def run_part(name: str, part: Callable[[], Report]) -> bool:
    """Runs a part and prints its line, then what it has to say; whether it found no problem."""
    print(f"{name:<14}", end="", flush=True)
    started = time.monotonic()
    try:
        report = part()
    except EXPECTED as error:
        report = Report([str(error)])
    result = "FAILED" if report.problems else "ok"
    print(f"{result:<8}{time.monotonic() - started:5.1f} s  {report.summary}".rstrip())
    for line in [*report.notes, *report.problems]:
        print("  " + line.replace("\n", "\n  "))
    sys.stdout.flush()
    return not report.problems


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="make check",
        description=DESCRIPTION,
        epilog=DOES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="run these parts only")
    options = parser.parse_args(arguments)
    if "KDIR" not in os.environ or "RVSOCK_CACHE" not in os.environ:
        parser.error("this runs inside the provisioned tree: use `make check`")
    known = parts(Toolchain(sources.CHECKOUT, os.environ["RVSOCK_RELEASE"]))
    if unknown := set(options.parts) - set(known):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    chosen = {name: part for name, part in known.items() if not options.parts or name in options.parts}
    started = time.monotonic()
    failed = [name for name, part in chosen.items() if not run_part(name, part)]
    result = f"failed: {', '.join(failed)}" if failed else f"all {len(chosen)} parts ok"
    print(f"check: {result} ({time.monotonic() - started:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\ncheck: interrupted")
        sys.exit(130)
