# SPDX-License-Identifier: GPL-2.0
"""`make bench`: how fast implementations are beside the C ones.

Called from outside the tree it enters it, and brings the results out.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tools"))

FILES = ("bench.md", "bench.svg", "bench.json")

# Lanes that have a kernel of their own, as tools/env calls it.
KERNELS = {"native": "uml"}

DESCRIPTION = (
    "Measures implementations of the transports beside the C ones, inside the same virtual machines."
)
EPILOG = """\
examples:
  tools/bench --pairs rust-c                 a Rust guest with a C host, beside C and C
  tools/bench --cells 'h2g 64KiB,counts'     cases and counts that have one of these in their name
  tools/bench --quick                        a look at whether everything works; the numbers mean little
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lane", default="guest", metavar="LANE", help="guest (and host), loopback, or native (%(default)s)"
    )
    parser.add_argument(
        "--pairs", default="", help="implementations to compare with C, as in `c-c rust-c` (GUEST-HOST)"
    )
    parser.add_argument(
        "--cells", default="", metavar="NAMES", help="parts of names of cases, with commas (all)"
    )
    parser.add_argument("--rounds", type=int, help="blocks for each case, of two pairs each (5)")
    parser.add_argument("--quick", action="store_true", help="short and few runs")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=CHECKOUT / "build/bench",
        metavar="DIR",
        help=f"for {', '.join(FILES)} (build/bench)",
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    options.out = options.out.absolute()
    return options


def enter(options: argparse.Namespace, arguments: list[str]) -> int:
    """Runs inside the tree, which has the checkout but not every directory, and brings the results out."""
    staging = CHECKOUT / "build/bench"
    kernel = ["--kernel", KERNELS[options.lane]] if options.lane in KERNELS else []
    command = [sys.executable, str(CHECKOUT / "tools/env"), "enter", *kernel, "--", "python3", "tools/bench"]
    for name in FILES:
        (staging / name).unlink(missing_ok=True)
    try:
        return subprocess.run([*command, *arguments, "--out", str(staging)], cwd=CHECKOUT).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        bring_out(staging, options.out)


def bring_out(staging: pathlib.Path, output: pathlib.Path) -> None:
    found = [staging / name for name in FILES if (staging / name).exists()]
    if not found:
        return
    if output != staging:
        output.mkdir(parents=True, exist_ok=True)
        for path in found:
            shutil.copy(path, output)
    print(f"results: {output}", file=sys.stderr)


def measure(options: argparse.Namespace) -> int:
    from rig import KernelReport, RigError

    from bench import blocks, lanes, session

    try:
        kind, pairs = lanes.find(options.lane, options.pairs.replace(",", " ").split())
    except lanes.UnknownName as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    plan = blocks.QUICK if options.quick else blocks.FULL
    if options.rounds:
        plan = dataclasses.replace(plan, rounds=options.rounds)
    patterns = [name.strip() for name in options.cells.split(",") if name.strip()]
    try:
        found = session.run(session.Wanted(kind, pairs, patterns, plan, options.out))
    except (RigError, KernelReport) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    unmet = found.unmet()
    for row in unmet:
        print(f"bench: {row.case}: {row.verdict}, {row.least:.2f} is asked for", file=sys.stderr)
    return 1 if unmet else 0


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if "RVSOCK_INSIDE" not in os.environ:
        return enter(options, arguments)
    try:
        return measure(options)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
