# SPDX-License-Identifier: GPL-2.0
"""The distribution's kernel: which one, its packages, and the tree that modules are built against."""

import dataclasses
import os
import pathlib
import re
import shutil

from cache import Cache
from console import CommandError, Step, say
from debian import SUITE, Tree

SERIES = "7.2"
READY = ".rvsock-ready"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel release and the version of the source package it was built from."""

    release: str
    source: str
    source_version: str

    @property
    def packages(self) -> list[str]:
        parts = ("binary", "modules", "headers")
        names = [f"linux-{part}-{self.release}" for part in parts]
        return [*names, f"{self.source}={self.source_version}"]

    @property
    def upstream(self) -> str:
        """The version without the distribution's suffix: 7.2.12."""
        return self.release.split("+")[0]

    @property
    def distribution(self) -> str:
        """The distribution's mark in the release: +deb13."""
        return "+" + self.release.split("+", 1)[1].split("-")[0]


def wanted() -> str:
    """The series (7.2) or release (7.2.12+deb13-amd64) to look for."""
    return os.environ.get("RVSOCK_KERNEL") or SERIES


def answers(release: str, request: str) -> bool:
    """Whether `release` is the requested one, or of the requested series."""
    return release == request or release.startswith((f"{request}.", f"{request}+"))


def version_key(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def resolve(tree: Tree) -> Kernel:
    """The newest wanted kernel whose binary, modules, headers and source are all there."""
    names = set(tree.output(["apt-cache", "pkgnames", "linux-"]).split())
    pattern = re.compile(r"linux-binary-(\d[.\d]*\+deb\d+-amd64)$")
    releases = [found.group(1) for name in names if (found := pattern.match(name))]
    releases.sort(key=version_key, reverse=True)
    for release in releases:
        if not answers(release, wanted()):
            continue
        source = "linux-source-" + ".".join(release.split(".")[:2])
        version = source_version(tree, source, release)
        kernel = Kernel(release, source, version or "")
        if version and {package.split("=")[0] for package in kernel.packages} <= names:
            return kernel
    newest = {tuple(version_key(release)[:2]): release for release in reversed(releases)}
    raise CommandError(
        f"the mirror has no {wanted()} kernel for amd64 with binary, modules, headers and source of one "
        f"version (it has: {', '.join(newest.values()) or 'none of any series'}): set RVSOCK_KERNEL to "
        "another series, or RVSOCK_MIRROR to a mirror that has it"
    )


def source_version(tree: Tree, package: str, release: str) -> str | None:
    """The version of the source package that belongs to `release`."""
    for line in tree.output(["apt-cache", "madison", package]).splitlines():
        version = line.split("|")[1].strip()
        if version.split("-")[0] == release.split("+")[0]:
            return version
    return None


class BuildTree:
    """Kernel sources that modules are built against (KDIR), and the kernel that takes them."""

    arch = "x86"
    image_name = "vmlinuz"

    def __init__(self, cache: Cache, tree: Tree, kernel: Kernel, release: str):
        self.cache = cache
        self.tree = tree
        self.kernel = kernel
        self.release = release
        self.path = cache.kernels / release / "build"

    @property
    def installed(self) -> pathlib.Path:
        """Where the tree has this kernel: image, configuration, modules."""
        return self.tree.path / "usr/lib/modules" / self.release

    @property
    def image(self) -> pathlib.Path:
        return self.installed / self.image_name

    @property
    def log(self) -> pathlib.Path:
        return self.path.parent / "build.log"

    def variables(self) -> dict[str, str]:
        """How the commands inside learn which kernel they are for."""
        return {
            "KDIR": str(self.path),
            "KARCH": self.arch,
            "RVSOCK_RELEASE": self.release,
            "RVSOCK_IMAGE": "/" + str(self.image.relative_to(self.tree.path)),
        }

    def marked(self, marker: str, text: str) -> bool:
        """Whether a step left its marker, for what it was to be made from."""
        path = self.path / marker
        return path.exists() and path.read_text() == text

    def unpack(self) -> None:
        """The sources, anew."""
        archive = f"/usr/src/{self.kernel.source}.tar.xz"
        with Step(f"kernel sources for {self.release}"):
            shutil.rmtree(self.path.parent, ignore_errors=True)
            self.path.mkdir(parents=True)
            self.tree.run(
                self.log,
                ["tar", "--strip-components=1", "--use-compress-program=xz -T0", "-xf", archive]
                + ["-C", str(self.path)],
            )
        found = re.findall(r"^(?:VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", self._makefile(), re.MULTILINE)
        if ".".join(found) != self.kernel.upstream:
            raise CommandError(
                f"{archive} is version {'.'.join(found)}, the kernel {self.kernel.upstream}: "
                "run `python3 tools/env setup --update`"
            )

    def _makefile(self) -> str:
        return (self.path / "Makefile").read_text()

    def make(self, *arguments: str) -> None:
        command = ["make", "-C", str(self.path), f"ARCH={self.arch}", f"-j{os.cpu_count()}"]
        self.tree.run(self.log, [*command, *arguments])

    def check_release(self) -> None:
        found = (self.path / "include/config/kernel.release").read_text().strip()
        if found != self.release:
            raise CommandError(f"the build tree calls itself {found}, the kernel {self.release}")


class StockTree(BuildTree):
    """The tree of the distribution's own kernel."""

    def __init__(self, cache: Cache, tree: Tree, kernel: Kernel):
        super().__init__(cache, tree, kernel, kernel.release)

    @property
    def ready(self) -> bool:
        return self.marked(READY, self.kernel.source_version) and self.image.exists()

    @property
    def _headers(self) -> pathlib.Path:
        return self.tree.path / "usr/src" / f"linux-headers-{self.release}"

    def prepare(self) -> None:
        self.tree.install(
            f"kernel {self.release}",
            ["-t", f"{SUITE}-backports", *self.kernel.packages, f"libelf-dev/{SUITE}-backports"],
        )
        check_rust(self._headers / ".config")
        check_toolchain(self.tree, self._headers / ".config")
        self.unpack()
        for name in (".config", "Module.symvers", "vmlinux"):
            shutil.copy(self._headers / name, self.path / name)
        with Step("kernel build tree for modules"):
            self.make(
                f"CC={compiler(self.path / '.config')}",
                f"LOCALVERSION={self.release.removeprefix(self.kernel.upstream)}",
                *("olddefconfig", "modules_prepare", "headers_install"),
            )
        self.check_release()
        (self.path / READY).write_text(self.kernel.source_version)


def setting(config: pathlib.Path, name: str) -> str:
    """A value of a kernel configuration without its quotes; empty if it is not set."""
    found = re.search(rf'^{name}="?([^"\n]*)"?$', config.read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def compiler(config: pathlib.Path) -> str:
    """The C compiler that built the kernel, by its command name."""
    return setting(config, "CONFIG_CC_VERSION_TEXT").split()[0]


def check_rust(config: pathlib.Path) -> None:
    if setting(config, "CONFIG_RUST") != "y":
        raise CommandError(
            f"{config}: this kernel was built without CONFIG_RUST and takes no Rust modules; "
            "set RVSOCK_KERNEL to another series"
        )


def check_toolchain(tree: Tree, config: pathlib.Path) -> None:
    """rustc has to match to the letter: the names of all Rust symbols contain its version string."""
    tools = {
        "CONFIG_RUSTC_VERSION_TEXT": (["rustc", "--version"], True),
        "CONFIG_BINDGEN_VERSION_TEXT": (["bindgen", "--version", "workaround-for-0.69.0"], False),
        "CONFIG_CC_VERSION_TEXT": ([compiler(config), "--version"], False),
    }
    for name, (command, fatal) in tools.items():
        expected = setting(config, name)
        found = (tree.output(command).splitlines() or ["nothing"])[0]
        if found == expected:
            continue
        message = f"{command[0]}: the kernel was built with '{expected}', the tree has '{found}'"
        if fatal:
            raise CommandError(f"{message}; modules built with it would not load")
        say(f"  warning: {message}")
