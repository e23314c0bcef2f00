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


def version_key(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def resolve(tree: Tree) -> Kernel:
    """The newest kernel of the series whose binary, modules, headers and source are all there."""
    series = os.environ.get("RVSOCK_KERNEL", SERIES)
    names = set(tree.output(["apt-cache", "pkgnames", "linux-"]).split())
    pattern = re.compile(rf"linux-binary-({re.escape(series)}[.\d]*\+deb\d+-amd64)$")
    releases = [found.group(1) for name in names if (found := pattern.match(name))]
    for release in sorted(releases, key=version_key, reverse=True):
        source = "linux-source-" + ".".join(release.split(".")[:2])
        version = source_version(tree, source, release)
        kernel = Kernel(release, source, version or "")
        wanted = {package.split("=")[0] for package in kernel.packages}
        if version and wanted <= names:
            return kernel
    raise CommandError(
        f"the mirror has no {series} kernel for amd64 with binary, modules, headers and source of "
        f"one version; set RVSOCK_KERNEL to another series (seen: {', '.join(sorted(releases)) or 'none'})"
    )


def source_version(tree: Tree, package: str, release: str) -> str | None:
    """The version of the source package that belongs to `release`."""
    upstream = release.split("+")[0]
    for line in tree.output(["apt-cache", "madison", package]).splitlines():
        version = line.split("|")[1].strip()
        if version.split("-")[0] == upstream:
            return version
    return None


class BuildTree:
    """Sources of the distribution's kernel, prepared for modules; stands for KDIR."""

    def __init__(self, cache: Cache, tree: Tree, kernel: Kernel):
        self.cache = cache
        self.tree = tree
        self.kernel = kernel
        self.path = cache.kernels / kernel.release / "build"

    @property
    def ready(self) -> bool:
        return (self.path / READY).exists() and self.image.exists()

    @property
    def image(self) -> pathlib.Path:
        """The kernel as the distribution ships it."""
        return self.tree.path / "usr/lib/modules" / self.kernel.release / "vmlinuz"

    @property
    def _headers(self) -> pathlib.Path:
        return self.tree.path / "usr/src" / f"linux-headers-{self.kernel.release}"

    def variables(self) -> dict[str, str]:
        """How the commands inside learn which kernel they are for."""
        return {
            "KDIR": str(self.path),
            "RVSOCK_RELEASE": self.kernel.release,
            "RVSOCK_IMAGE": "/" + str(self.image.relative_to(self.tree.path)),
        }

    def prepare(self) -> None:
        self.tree.install(
            f"kernel {self.kernel.release}",
            ["-t", f"{SUITE}-backports", *self.kernel.packages, f"libelf-dev/{SUITE}-backports"],
        )
        check_rust(self._headers / ".config")
        check_toolchain(self.tree, self._headers / ".config")
        self._unpack()
        self._make()
        (self.path / READY).touch()

    def _unpack(self) -> None:
        with Step("kernel sources"):
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            archive = f"/usr/src/{self.kernel.source}.tar.xz"
            self.tree.run(
                "kernel",
                ["tar", "--strip-components=1", "--use-compress-program=xz -T0", "-xf", archive]
                + ["-C", str(self.path)],
            )
            for name in (".config", "Module.symvers", "vmlinux"):
                shutil.copy(self._headers / name, self.path / name)

    def _make(self) -> None:
        with Step("kernel build tree for modules"):
            suffix = "+" + self.kernel.release.split("+", 1)[1]
            self.tree.run(
                "kernel",
                ["make", "-C", str(self.path), f"-j{os.cpu_count()}", f"CC={compiler(self.path)}"]
                + [f"LOCALVERSION={suffix}", "olddefconfig", "modules_prepare", "headers_install"],
            )
        found = (self.path / "include/config/kernel.release").read_text().strip()
        if found != self.kernel.release:
            raise CommandError(f"the build tree calls itself {found}, the kernel {self.kernel.release}")


def setting(config: pathlib.Path, name: str) -> str:
    """A value of a kernel configuration without its quotes; empty if it is not set."""
    found = re.search(rf'^{name}="?([^"\n]*)"?$', config.read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def compiler(build: pathlib.Path) -> str:
    """The C compiler that built the kernel, by its command name."""
    return setting(build / ".config", "CONFIG_CC_VERSION_TEXT").split()[0]


def check_rust(config: pathlib.Path) -> None:
    if setting(config, "CONFIG_RUST") != "y":
        raise CommandError(f"{config}: this kernel was built without CONFIG_RUST and takes no Rust modules")


def check_toolchain(tree: Tree, config: pathlib.Path) -> None:
    """rustc has to match to the letter: the names of all Rust symbols contain its version string."""
    tools = {
        "CONFIG_RUSTC_VERSION_TEXT": (["rustc", "--version"], True),
        "CONFIG_BINDGEN_VERSION_TEXT": (["bindgen", "--version", "workaround-for-0.69.0"], False),
        "CONFIG_CC_VERSION_TEXT": ([setting(config, "CONFIG_CC_VERSION_TEXT").split()[0], "--version"], False),
    }
    for name, (command, fatal) in tools.items():
        wanted = setting(config, name)
        found = (tree.output(command).splitlines() or ["nothing"])[0]
        if found == wanted:
            continue
        message = f"{command[0]}: the kernel was built with '{wanted}', the tree has '{found}'"
        if fatal:
            raise CommandError(f"{message}; modules built with it would not load")
        say(f"  warning: {message}")
