# SPDX-License-Identifier: GPL-2.0
"""The Debian 13 tree: made by debootstrap, filled by apt, one mirror for both."""

import os
import pathlib
import re
import shutil
import subprocess

import enter
from cache import Cache
from console import CommandError, Step

SUITE = "trixie"
GIGABYTES = 12

# Keep the lists sorted; the tree is completed when they change.
TOOLCHAIN = """
bc bindgen bison busybox-static cargo cpio dwarves flex gcc-14 git kmod libc6-dev libelf-dev libssl-dev
liburing-dev make pkg-config python3 rsync rust-clippy rust-src rustc rustfmt xz-utils zstd
""".split()
MACHINES = """
iproute2 libpcap0.8t64 openssh-client openssh-server procps python3-pytest python3-pytest-timeout
qemu-system-x86 socat strace systemd-sysv tcpdump udev virtme-ng
""".split()


def mirror() -> str | None:
    """The mirror this machine uses for Debian itself, or None for debootstrap's default."""
    if os.environ.get("RVSOCK_MIRROR"):
        return os.environ["RVSOCK_MIRROR"]
    if shutil.which("apt-get") is None:
        return None
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"],
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"^Debian Debian (https?://\S+)$", listing, re.MULTILINE)
    return found.group(1).rstrip("/") if found else configured_mirror()


def configured_mirror() -> str | None:
    """The first Debian URI in apt's configuration: for machines that never fetched an index."""
    etc = pathlib.Path("/etc/apt")
    files = [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]
    for path in files:
        text = path.read_text() if path.is_file() else ""
        for line in text.splitlines():
            found = re.match(r"(?:deb\s.*?|URIs:\s*)(https?://\S+/debian)/?(?:\s|$)", line)
            if found:
                return found.group(1)
    return None


def install_debootstrap(cache: Cache) -> None:
    if shutil.which("debootstrap"):
        return
    if shutil.which("apt-get") is None:
        raise CommandError("debootstrap is needed, and this machine has no apt-get to install it")
    with Step("debootstrap is missing: installing it"):
        cache.run("debootstrap", ["apt-get", "update"])
        cache.run("debootstrap", ["apt-get", "install", "-y", "--no-install-recommends", "debootstrap"])


class Tree:
    """The tree below the cache directory."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self.path = cache.tree

    def run(self, log: str, command: list[str], **options) -> None:
        """Runs a command inside, with its output in a log."""
        home = self.cache.root / "home"
        home.mkdir(exist_ok=True)
        line = enter.command_line(self.path, [self.cache.root], pathlib.Path("/"), command)
        environment = enter.environment(self.cache.root) | {"DEBIAN_FRONTEND": "noninteractive"}
        self.cache.run(log, line, env=environment, **options)

    def output(self, command: list[str]) -> str:
        """What a command inside prints; empty if it fails."""
        line = enter.command_line(self.path, [], pathlib.Path("/"), command)
        environment = enter.environment(self.cache.root)
        return subprocess.run(line, env=environment, capture_output=True, text=True).stdout

    def bootstrap(self) -> None:
        """Makes the tree, or does nothing if it is there; an interrupted one is made anew."""
        if (self.path / "etc/apt/sources.list.d/rvsock.sources").exists():
            return
        install_debootstrap(self.cache)
        source = mirror()
        partial = self.path.with_suffix(".partial")
        with Step(f"Debian {SUITE} base system"):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(self.path, ignore_errors=True)
            self.cache.run(
                "debootstrap",
                ["debootstrap", "--variant=minbase", SUITE, str(partial), *([source] if source else [])],
            )
            self._configure_apt(partial)
            partial.rename(self.path)

    def _configure_apt(self, tree: pathlib.Path) -> None:
        """Adds backports, from the mirror debootstrap used; makes apt quick and patient."""
        used = (tree / "etc/apt/sources.list").read_text().split()[1]
        (tree / "etc/apt/apt.conf.d/90rvsock").write_text(
            'APT::Install-Recommends "false";\nAcquire::Retries "3";\nAcquire::http::Timeout "30";\n'
            'Acquire::Languages "none";\nDpkg::Use-Pty "0";\n'
        )
        (tree / "etc/dpkg/dpkg.cfg.d/rvsock").write_text(
            "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n"
            "path-exclude=/usr/share/locale/*\n"
        )
        policy = tree / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        (tree / "etc/apt/sources.list.d/rvsock.sources").write_text(
            f"Types: deb\nURIs: {used}\nSuites: {SUITE}-backports\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )

    def update(self) -> None:
        with Step("package lists"):
            self.run("apt", ["apt-get", "update", "--error-on=any"])

    def install(self, title: str, packages: list[str]) -> None:
        """Installs packages; finishes first what an interrupted run left half-configured."""
        with Step(f"packages: {title}"):
            self.run("apt", ["dpkg", "--configure", "-a"])
            self.run("apt", ["apt-get", "install", "-y", "--fix-broken", *packages])
            self.run("apt", ["apt-get", "clean"])
