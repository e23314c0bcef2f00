# SPDX-License-Identifier: GPL-2.0
"""Provisions what building and testing need, below a cache directory, and runs commands in it."""

import argparse
import dataclasses
import errno
import os
import pathlib
import sys
import time

import debian
import enter
import flavour
import kernel
from cache import Cache
from console import CommandError, say

# Happens at any write, and says all there is to say.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

DESCRIPTION = """\
Provisions a Debian 13 tree with the toolchain and the kernel that the modules are for, and runs
commands in it. Everything lies below one directory (RVSOCK_CACHE, default ~/.cache/rvsock), can
be interrupted and repeated at any point, and is removed by `clean`.
"""

EPILOG = """\
kernels (--kernel, or the variable KERNEL):
  {kernels}
  All but stock are built from its sources when they are first asked for.

environment:
  RVSOCK_CACHE   the directory (default: rvsock below XDG_CACHE_HOME or ~/.cache)
  RVSOCK_MIRROR  a Debian mirror (default: the one this machine uses)
  RVSOCK_KERNEL  kernel series or release to look for (default: {series})

A command that is entered finds KDIR (the kernel's build tree), KARCH (what `make` calls ARCH),
RVSOCK_RELEASE (its `uname -r`) and RVSOCK_IMAGE (what to boot), all of the chosen kernel; for
User Mode Linux also KRUSTFLAGS, which `make` takes from the environment.
"""


@dataclasses.dataclass
class Environment:
    """What is provisioned, and how to get there."""

    cache: Cache

    def __post_init__(self) -> None:
        self.tree = debian.Tree(self.cache)

    def stock(self) -> kernel.StockTree | None:
        """The build tree of the kernel on record, if it is complete and the wanted one."""
        recorded = self.cache.recorded("kernel")
        if recorded is None:
            return None
        found = kernel.Kernel(**recorded["kernel"])
        build = kernel.StockTree(self.cache, self.tree, found)
        return build if build.ready and kernel.answers(found.release, kernel.wanted()) else None

    def packages_current(self) -> bool:
        return set(debian.TOOLCHAIN + debian.MACHINES) <= set(self.cache.recorded("packages") or [])

    def set_up(self, chosen: flavour.Flavour | None, update: bool = False) -> kernel.BuildTree:
        """The build tree of the chosen kernel; whatever is missing is provisioned first."""
        stock = self.stock()
        if stock is None or update or not self.packages_current():
            with self.cache.lock("tree"):
                stock = self._provisioned(update)
        if chosen is None:
            return stock
        build = flavour.FlavourTree(self.cache, self.tree, stock.kernel, chosen)
        if not build.ready:
            with self.cache.lock(f"kernels/{build.release}"):
                if not build.ready:
                    self._build(build, stock)
        return build

    def _provisioned(self, update: bool) -> kernel.StockTree:
        stock = self.stock()
        if stock and self.packages_current() and not update:
            return stock
        self.cache.note(f"Setting up {self.cache.root} (logs in {self.cache.logs})")
        self.cache.require_space(2 if stock else debian.GIGABYTES)
        try:
            return self._provision()
        except CommandError as error:
            if stock is None:
                raise
            self.cache.note(f"  {error}")
            self.cache.note(f"  keeping the kernel that is there: {stock.release}")
            return stock

    def _provision(self) -> kernel.StockTree:
        started = time.monotonic()
        source = debian.mirror()
        debian.check_mirror(source)
        self.tree.bootstrap(source)
        self.tree.update(source)
        packages = debian.TOOLCHAIN + debian.MACHINES
        self.tree.install("toolchain and virtual machines", packages)
        self.cache.record("packages", sorted({*packages, *(self.cache.recorded("packages") or [])}))
        build = kernel.StockTree(self.cache, self.tree, kernel.resolve(self.tree))
        if not build.ready:
            build.prepare()
        resolved = dataclasses.asdict(build.kernel)
        self.cache.record("kernel", {"kernel": resolved, "mirror": source, "when": time.strftime("%F %T")})
        self.cache.note(
            f"Kernel {build.release} ({build.kernel.source} {build.kernel.source_version} from {source}), "
            f"ready after {time.monotonic() - started:.0f} s"
        )
        return build

    def _build(self, build: flavour.FlavourTree, stock: kernel.StockTree) -> None:
        started = time.monotonic()
        self.cache.note(f"Building kernel {build.release} (log in {build.log})")
        build.build(stock)
        self.cache.note(f"Kernel {build.release}, ready after {time.monotonic() - started:.0f} s")

    def show_status(self) -> int:
        stock = self.stock()
        say(f"cache: {self.cache.root}")
        if stock is None:
            say("nothing is provisioned: run `make setup`")
            return 1
        say(f"stock: {stock.release} ({stock.kernel.source} {stock.kernel.source_version}), {stock.path}")
        for each in flavour.FLAVOURS.values():
            build = flavour.FlavourTree(self.cache, self.tree, stock.kernel, each)
            say(f"{each.name}: {build.release}, {build.path if build.ready else 'not built'}")
        return 0


def require_root() -> None:
    if os.geteuid() != 0:
        raise CommandError("this needs root (to make a Debian tree and to mount in it): try `sudo -E make …`")


def parse(arguments: list[str]) -> argparse.Namespace:
    kernels = {flavour.STOCK: "the distribution's"} | {
        each.name: each.purpose for each in flavour.FLAVOURS.values()
    }
    parser = argparse.ArgumentParser(
        prog="tools/env",
        description=DESCRIPTION,
        epilog=EPILOG.format(
            series=kernel.SERIES,
            kernels="\n  ".join(f"{name:<10} {purpose}" for name, purpose in kernels.items()),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--kernel", default=os.environ.get("KERNEL") or flavour.STOCK, metavar="NAME")
    commands = parser.add_subparsers(dest="command", required=True)
    set_up = commands.add_parser("setup", parents=[common], help="provision whatever is missing")
    set_up.add_argument("--update", action="store_true", help="look for a newer kernel and packages")
    inside = commands.add_parser(
        "enter", parents=[common], help="run a command inside, with the checkout at its own path"
    )
    inside.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    commands.add_parser("status", help="say what is there")
    commands.add_parser("clean", help="remove the cache directory")
    return parser.parse_args(arguments)


def run(environment: Environment, options: argparse.Namespace) -> int:
    chosen = flavour.find(options.kernel)
    build = environment.set_up(chosen, getattr(options, "update", False))
    if options.command == "setup":
        return 0
    os.environ.update(build.variables(), KERNEL=options.kernel)
    command = options.arguments or ["bash", "-l"]
    if command[0] == "--":
        command = command[1:]
    return enter.run(environment.cache.root, environment.tree.path, CHECKOUT, command)


def dispatch(options: argparse.Namespace) -> int:
    environment = Environment(Cache())
    if options.command == "status":
        return environment.show_status()
    require_root()
    if options.command == "clean":
        return environment.cache.remove()
    environment.cache.create()
    with environment.cache.in_use():
        return run(environment, options)


def main(arguments: list[str]) -> int:
    """The exit status; what the user has to know goes to standard error."""
    try:
        return dispatch(parse(arguments))
    except CommandError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        message = f"{error}; RVSOCK_CACHE can name a directory on another disk"
    except KeyboardInterrupt:
        return 130
    print(f"rvsock: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
