# SPDX-License-Identifier: GPL-2.0
"""Kernels built here from the distribution's sources: with checks, or as a program of the machine."""

import dataclasses
import hashlib
import math
import pathlib
import re
import shutil
import time

from cache import Cache
from console import CommandError, Step
from debian import Tree
from kernel import READY, BuildTree, Kernel, compiler

CONFIGS = pathlib.Path(__file__).resolve().parent / "configs"
GIGABYTES = 5
UNPACKED = ".rvsock-unpacked"


@dataclasses.dataclass(frozen=True)
class Flavour:
    """A kernel to build: its configuration is what the fragments name, and nothing else."""

    name: str
    purpose: str
    fragments: tuple[str, ...]
    arch: str
    image: str
    # Files that `make` compiles and links for all of it; measured, only the estimate depends on it.
    steps: int
    # Built by LLVM: with KASAN, the kernel takes Rust from no other compiler.
    clang: bool = False


STOCK = "stock"
FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            "debug",
            "checks locks, contexts, objects, DMA, leaks; in the virtual machines",
            ("base", "vm", "checks"),
            "x86",
            "arch/x86/boot/bzImage",
            2550,
        ),
        Flavour(
            "kasan",
            "checks every access to memory, arithmetic, locks; in the virtual machines",
            ("base", "vm", "sanitizers"),
            "x86",
            "arch/x86/boot/bzImage",
            2580,
            clang=True,
        ),
        Flavour(
            "uml",
            "User Mode Linux, at native speed",
            ("base", "uml"),
            "um",
            "linux",
            1670,
        ),
        Flavour(
            "uml-debug",
            "User Mode Linux with the checks of debug",
            ("base", "uml", "checks"),
            "um",
            "linux",
            1760,
        ),
    )
}


def find(name: str) -> Flavour | None:
    """The flavour called `name`; None for the distribution's kernel."""
    if name == STOCK:
        return None
    if name not in FLAVOURS:
        raise CommandError(f"there is no kernel '{name}'; there are: {', '.join([STOCK, *FLAVOURS])}")
    return FLAVOURS[name]


def options(config: str) -> dict[str, str]:
    """The options of a configuration or fragment; what is off has the value n."""
    found = {}
    for line in config.splitlines():
        if match := re.fullmatch(r"(CONFIG_\w+)=(.*)", line):
            found[match[1]] = match[2]
        elif match := re.fullmatch(r"# (CONFIG_\w+) is not set", line):
            found[match[1]] = "n"
    return found


def check_options(fragment: str, config: str) -> None:
    """Every option that `fragment` asks for has to be in `config`: kconfig drops silently."""
    got = options(config)
    lost = [
        f"{name}={value} is {got.get(name, 'n')}"
        for name, value in options(fragment).items()
        if got.get(name, "n") != value
    ]
    if lost:
        raise CommandError(
            "these options of the configuration did not take (missing dependencies, or gone from this "
            f"kernel): {', '.join(lost)}"
        )


class Progress:
    """How far a kernel build is, from the lines in its log; knows what an interrupted run did."""

    LINE = re.compile(rb"^  (?:CC|RUSTC|AS|AR|LD) ", re.MULTILINE)

    def __init__(self, log: pathlib.Path, steps: int):
        self.log = log
        self.steps = steps
        self.started = time.monotonic()
        self.before = self._count()

    def _count(self) -> int:
        return len(self.LINE.findall(self.log.read_bytes())) if self.log.exists() else 0

    def __call__(self) -> str:
        done = self._count()
        share = min(done / self.steps, 0.99)
        rate = (done - self.before) / (time.monotonic() - self.started)
        if rate == 0 or done >= self.steps:
            return f"{share:.0%}"
        return f"{share:.0%}, about {math.ceil((self.steps - done) / rate / 60)} min left"


class FlavourTree(BuildTree):
    """The tree of a kernel built here; `make` continues it where an interrupted run was."""

    def __init__(self, cache: Cache, tree: Tree, kernel: Kernel, flavour: Flavour):
        self.flavour = flavour
        self.arch = flavour.arch
        self.image_name = "linux" if flavour.arch == "um" else "vmlinuz"
        super().__init__(cache, tree, kernel, f"{kernel.upstream}{kernel.distribution}-{flavour.name}")

    def variables(self) -> dict[str, str]:
        if self.arch != "um":
            return super().variables()
        # arch/um compiles Rust as position-independent, with references that its module loader does
        # not know; and C, but not Rust, for modules that lie far from the kernel.
        return super().variables() | {"KRUSTFLAGS": "-Crelocation-model=static -Ccode-model=large"}

    @property
    def fragment(self) -> str:
        """All the configuration there is, fragments joined."""
        local = self.release.removeprefix(self.kernel.upstream)
        parts = [(CONFIGS / f"{name}.config").read_text() for name in self.flavour.fragments]
        return "\n".join([f'CONFIG_LOCALVERSION="{local}"', *parts])

    @property
    def _fingerprint(self) -> str:
        """Of what the build is made from; another one means to build again."""
        return hashlib.sha256((self.kernel.source_version + self.fragment).encode()).hexdigest()

    @property
    def ready(self) -> bool:
        return self.marked(READY, self._fingerprint) and self.image.exists()

    def build(self, stock: BuildTree) -> None:
        """Builds and installs the kernel, or what is missing of it."""
        # Before: a fragment may change while it is built.
        fingerprint = self._fingerprint
        if not self.marked(UNPACKED, self.kernel.source_version):
            self.cache.require_space(GIGABYTES)
            self.unpack()
            (self.path / UNPACKED).write_text(self.kernel.source_version)
        if (self.path / READY).exists():
            # A complete build of something else: how much of it stays, only `make` knows.
            (self.path / READY).unlink()
            self.log.unlink(missing_ok=True)
        compiled_by = f"CC={compiler(stock.path / '.config')}"
        if self.flavour.clang:
            with self.cache.lock("tree"):
                self.tree.install("LLVM, which builds this kernel", ["clang", "lld", "llvm"])
            compiled_by = "LLVM=1"
        self._configure(compiled_by)
        target = pathlib.PurePath(self.flavour.image).name
        with Step(f"kernel {self.release}", Progress(self.log, self.flavour.steps)):
            self.make(compiled_by, target, "modules")
        self.check_release()
        self._install(compiled_by)
        (self.path / READY).write_text(fingerprint)

    def _configure(self, compiled_by: str) -> None:
        (self.path / "rvsock.config").write_text(self.fragment)
        self.make(compiled_by, "KCONFIG_ALLCONFIG=rvsock.config", "allnoconfig")
        check_options(self.fragment, (self.path / ".config").read_text())

    def _install(self, compiled_by: str) -> None:
        """Puts image and modules where a machine with the tree as its root looks for them."""
        with Step(f"installing {self.release}"):
            # User Mode Linux has no headers for programs of its own: they are the machine's.
            self.make("ARCH=x86", "headers_install")
            shutil.rmtree(self.installed, ignore_errors=True)
            self.make(compiled_by, "INSTALL_MOD_STRIP=1", "modules_install")
            shutil.copy(self.path / ".config", self.installed / "config")
            shutil.copy(self.path / "System.map", self.installed / "System.map")
            shutil.copy(self.path / self.flavour.image, self.image)
