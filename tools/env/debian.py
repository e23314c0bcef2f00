# SPDX-License-Identifier: GPL-2.0
"""The Debian 13 tree: made by debootstrap, filled by apt, one mirror for both."""

import os
import pathlib
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import enter
from cache import Cache
from console import CommandError, Step

SUITE = "trixie"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
GIGABYTES = 12
SOURCES = "etc/apt/sources.list.d/rvsock.sources"

# Keep the lists sorted; the tree is completed when they change.
TOOLCHAIN = """
bc bindgen bison busybox-static cargo cpio dwarves flex gcc-14 git kmod libc6-dev libelf-dev libssl-dev
liburing-dev make pkg-config python3 rsync rust-clippy rust-src rustc rustfmt xz-utils zstd
""".split()
MACHINES = """
fio iproute2 krb5-admin-server krb5-kdc krb5-user libpcap0.8t64 nfs-common nfs-kernel-server
openssh-client openssh-server procps python3-pytest python3-pytest-timeout python3-pytest-xdist
qemu-system-x86 socat strace stress-ng systemd-sysv tcpdump udev virtiofsd virtme-ng
""".split()


def mirror() -> str:
    """RVSOCK_MIRROR, the mirror this machine uses for Debian itself, or Debian's own."""
    asked = os.environ.get("RVSOCK_MIRROR")
    return (asked or machine_mirror() or configured_mirror() or DEFAULT_MIRROR).rstrip("/")


def machine_mirror() -> str | None:
    """The Debian mirror that apt has an index of."""
    if shutil.which("apt-get") is None:
        return None
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"],
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"^Debian Debian (https?://\S+)$", listing, re.MULTILINE)
    return found.group(1) if found else None


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


def check_mirror(source: str) -> None:
    """Asks the mirror for the suite: debootstrap and apt would try a silent one for an hour."""
    try:
        urllib.request.urlopen(f"{source}/dists/{SUITE}/InRelease", timeout=20).close()
    except urllib.error.HTTPError as error:
        raise CommandError(
            f"{source} is no mirror of Debian {SUITE} ({error}): set RVSOCK_MIRROR to one"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(
            f"the mirror {source} does not answer ({reason}): check this machine's network, "
            "or set RVSOCK_MIRROR to another Debian mirror"
        ) from None


def install_debootstrap(cache: Cache) -> None:
    if shutil.which("debootstrap"):
        return
    if shutil.which("apt-get") is None:
        raise CommandError("debootstrap is needed, and this machine has no apt-get to install it: install it")
    log = cache.logs / "debootstrap.log"
    with Step("debootstrap is missing: installing it"):
        cache.run(log, ["apt-get", "update"])
        cache.run(log, ["apt-get", "install", "-y", "--no-install-recommends", "debootstrap"])


def configure_apt(tree: pathlib.Path) -> None:
    """Makes apt quick and patient, and keeps packages from starting services."""
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


def use_mirror(tree: pathlib.Path, source: str) -> None:
    """Lets apt fetch from `source`, and from nowhere else."""
    (tree / "etc/apt/sources.list").unlink(missing_ok=True)
    (tree / SOURCES).write_text(
        f"Types: deb\nURIs: {source}\nSuites: {SUITE} {SUITE}-backports\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


class Tree:
    """The tree below the cache directory."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self.path = cache.tree

    def run(self, log: pathlib.Path, command: list[str]) -> None:
        """Runs a command inside, with its output in a log."""
        home = self.cache.root / "home"
        home.mkdir(exist_ok=True)
        line = enter.command_line(self.path, [self.cache.root], pathlib.Path("/"), command)
        environment = enter.environment(self.cache.root) | {"DEBIAN_FRONTEND": "noninteractive"}
        self.cache.run(log, command, line, env=environment)

    def output(self, command: list[str]) -> str:
        """What a command inside prints; empty if it fails."""
        line = enter.command_line(self.path, [], pathlib.Path("/"), command)
        environment = enter.environment(self.cache.root)
        return subprocess.run(line, env=environment, capture_output=True, text=True).stdout

    def bootstrap(self, source: str) -> None:
        """Makes the tree, or does nothing if it is there; an interrupted one is made anew."""
        if (self.path / SOURCES).exists():
            return
        install_debootstrap(self.cache)
        partial = self.path.with_suffix(".partial")
        options = ["--variant=minbase", "--include=ca-certificates"]
        command = ["debootstrap", *options, SUITE, str(partial), source]
        with Step(f"Debian {SUITE} base system"):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(self.path, ignore_errors=True)
            self.cache.run(self.cache.logs / "debootstrap.log", command, enter.contained(command))
            configure_apt(partial)
            use_mirror(partial, source)
            partial.rename(self.path)

    def update(self, source: str) -> None:
        with Step(f"package lists from {source}"):
            use_mirror(self.path, source)
            self.run(self.cache.logs / "apt.log", ["apt-get", "update", "--error-on=any"])

    def install(self, title: str, packages: list[str]) -> None:
        """Installs packages; finishes first what an interrupted run left half-configured."""
        log = self.cache.logs / "apt.log"
        with Step(f"packages: {title}"):
            self.run(log, ["dpkg", "--configure", "-a"])
            self.run(log, ["apt-get", "install", "-y", "--fix-broken", *packages])
            self.run(log, ["apt-get", "clean"])
