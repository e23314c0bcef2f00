# SPDX-License-Identifier: GPL-2.0
"""`make soak`: hours of mixed load, restarts and faults. Runs inside the tree."""

import argparse
import pathlib
import random
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / "tools"), str(CHECKOUT / "tests")]

from rig import RigError  # noqa: E402

from soak import session  # noqa: E402

DESCRIPTION = (
    "Soaks the three modules: mixed load between host and guests and on loopback, with restarts and faults, "
    "and looks at memory and kernel logs all the while."
)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/soak", description=DESCRIPTION)
    parser.add_argument("--hours", type=float, default=0.0, help="for how long (1)")
    parser.add_argument("--minutes", type=float, default=0.0, help="and minutes")
    parser.add_argument("--seed", type=int, help="repeats the choices of another run")
    parser.add_argument(
        "--implementation",
        choices=("rust", "c"),
        default="rust",
        help="c: the kernel's own, to see what they do in the same place (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=CHECKOUT / "build/soak/soak.md",
        metavar="FILE",
        help="for the report (build/soak/soak.md)",
    )
    options = parser.parse_args(arguments)
    if options.hours < 0 or options.minutes < 0:
        parser.error("time does not go backwards")
    options.seconds = (options.hours * 60 + options.minutes) * 60 or 3600.0
    options.seed = random.randrange(1 << 31) if options.seed is None else options.seed
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        found = session.run(session.Wanted(options.seconds, options.seed, options.implementation, options.out))
    except RigError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print(f"\nreport: {options.out}\nSEED={options.seed}\n{found.verdict}")
    if found.failed:
        return 1
    return 130 if found.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
