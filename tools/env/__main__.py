# SPDX-License-Identifier: GPL-2.0
"""Provisions what building and testing need, below a cache directory, and runs commands in it."""

import argparse
import dataclasses
import os
import pathlib
import sys
import time

import debian
import enter
import kernel
from cache import Cache
from console import CommandError, say

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

DESCRIPTION = """\
Provisions a Debian 13 tree with the toolchain and the kernel that the modules are for, and runs
commands in it. Everything lies below one directory (RVSOCK_CACHE, default ~/.cache/rvsock), can
be interrupted and repeated at any point, and is removed by `clean`.
"""

EPILOG = """\
environment:
  RVSOCK_CACHE   the directory (default: rvsock below XDG_CACHE_HOME or ~/.cache)
  RVSOCK_MIRROR  a Debian mirror (default: the one this machine uses)
  RVSOCK_KERNEL  kernel series or release to look for (default: %(series)s)
"""


@dataclasses.dataclass
class Environment:
    """What is provisioned, and how to get there."""

    cache: Cache

    def __post_init__(self) -> None:
        self.tree = debian.Tree(self.cache)

    def build_tree(self) -> kernel.BuildTree | None:
        """The build tree of the kernel on record, if it is complete."""
        recorded = self.cache.recorded("kernel")
        if recorded is None:
            return None
        found = kernel.Kernel(**recorded["kernel"])
        build = kernel.BuildTree(self.cache, self.tree, found)
        return build if build.ready else None

    def packages_current(self) -> bool:
        return self.cache.recorded("packages") == debian.TOOLCHAIN + debian.MACHINES

    def set_up(self, update: bool) -> kernel.BuildTree:
        require_root()
        self.cache.create()
        with self.cache.lock():
            build = self.build_tree()
            if build and self.packages_current() and not update:
                return build
            say(f"Setting up {self.cache.root} (logs in {self.cache.logs})")
            self.cache.require_space(2 if build else debian.GIGABYTES)
            try:
                return self._provision()
            except CommandError as error:
                if build is None:
                    raise
                say(f"  {error}")
                say(f"  keeping the kernel that is there: {build.kernel.release}")
                return build

    def _provision(self) -> kernel.BuildTree:
        started = time.monotonic()
        self.tree.bootstrap()
        self.tree.update()
        self.tree.install("toolchain and virtual machines", debian.TOOLCHAIN + debian.MACHINES)
        build = kernel.BuildTree(self.cache, self.tree, kernel.resolve(self.tree))
        if not build.ready:
            build.prepare()
        self.cache.record("packages", debian.TOOLCHAIN + debian.MACHINES)
        self.cache.record("kernel", {"kernel": dataclasses.asdict(build.kernel)})
        say(f"Kernel {build.kernel.release}, ready after {time.monotonic() - started:.0f} s")
        return build


def require_root() -> None:
    if os.geteuid() != 0:
        raise CommandError("this needs root (it makes a Debian tree and mounts into it): try `sudo -E make …`")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/env",
        description=DESCRIPTION,
        epilog=EPILOG % {"series": kernel.SERIES},
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    set_up = commands.add_parser("setup", help="provision whatever is missing")
    set_up.add_argument("--update", action="store_true", help="look for a newer kernel and packages")
    inside = commands.add_parser("enter", help="run a command inside, with the checkout at its own path")
    inside.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    commands.add_parser("status", help="say what is there")
    commands.add_parser("clean", help="remove the cache directory")
    return parser.parse_args(arguments)


def show_status(environment: Environment) -> int:
    build = environment.build_tree()
    say(f"cache: {environment.cache.root}")
    if build is None:
        say("nothing is provisioned: run `make setup`")
        return 1
    say(f"kernel: {build.kernel.release} ({build.kernel.source} {build.kernel.source_version})")
    say(f"build tree: {build.path}")
    return 0


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    environment = Environment(Cache())
    if options.command == "status":
        return show_status(environment)
    if options.command == "clean":
        return environment.cache.remove()
    build = environment.set_up(getattr(options, "update", False))
    if options.command == "setup":
        return 0
    os.environ.update(build.variables())
    command = options.arguments or ["bash", "-l"]
    if command[0] == "--":
        command = command[1:]
    return enter.run(environment.cache.root, environment.tree.path, CHECKOUT, command)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CommandError as error:
        sys.exit(f"rvsock: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
