# SPDX-License-Identifier: GPL-2.0
"""Commands of the rig; run them inside the tree: `python3 tools/env enter -- python3 tools/rig …`."""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from rig import RigError, host, shell, transports  # noqa: E402

DESCRIPTION = "Boots a virtual machine with the kernel under test, and a guest in it."


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/rig", description=DESCRIPTION)
    parser.add_argument("--cpu", metavar="MODEL", help="CPU model of host and guest")
    commands = parser.add_subparsers(dest="command", required=True)
    interactive = commands.add_parser("shell", help="a shell in the host VM, with a guest running")
    interactive.add_argument("--cid", type=int, default=3, help="CID of the guest (%(default)s)")
    once = commands.add_parser("run", help="run one command in the host VM or in a guest; its status is ours")
    once.add_argument("--guest", action="store_true", help="in a guest")
    once.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="ROLE=IMPLEMENTATION",
        help=f"load a transport first: {', '.join(transports.ROLES)} = {' or '.join(transports.IMPLEMENTATIONS)}",
    )
    once.add_argument("--timeout", type=float, default=600, help="seconds (%(default)s)")
    once.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.command == "run":
        options.arguments = options.arguments[options.arguments[:1] == ["--"] :]
        if not options.arguments:
            parser.error("a COMMAND is needed")
        options.load = dict(choice(parser, text) for text in options.load)
    return options


def choice(parser: argparse.ArgumentParser, text: str) -> tuple[str, str]:
    role, _, implementation = text.partition("=")
    if role not in transports.ROLES or implementation not in transports.IMPLEMENTATIONS:
        parser.error(f"--load {text}: no such transport")
    return role, implementation


def run_once(options: argparse.Namespace) -> int:
    with host(cpu=options.cpu) as machine:
        for role in ("loopback", "host"):
            if role in options.load or (role == "host" and options.guest):
                machine.load(role, options.load.get(role, "c"))
        if not options.guest:
            return report(machine.run(options.arguments, timeout=options.timeout, check=False))
        with machine.guest() as guest:
            guest.load("guest", options.load.get("guest", "c"))
            return report(guest.run(options.arguments, timeout=options.timeout, check=False))


def report(result) -> int:
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.status if result.status >= 0 else 128 - result.status


def main() -> int:
    options = parse(sys.argv[1:])
    try:
        return shell.run(options.cid, options.cpu) if options.command == "shell" else run_once(options)
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
