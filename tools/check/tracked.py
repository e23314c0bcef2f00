# SPDX-License-Identifier: GPL-2.0
"""What every file has to say (its licence), and what none may (where its author works)."""

import os
import pathlib
import re

from . import sources
from .report import Report

LICENCE = re.compile(r"SPDX-License-Identifier: GPL-2\.0(\s|$|\*/|-->)")
# cargo writes the one; the others have no comments.
WITHOUT_LICENCE = {"Cargo.lock", "COPYING", "LICENSE", "LICENCE"}
WITHOUT_COMMENTS = {".json", ".svg", ".png", ".pcap", ".bin"}

# Directories of every machine: a checkout below one of them says nothing.
ORDINARY = {"/", "/home", "/opt", "/root", "/srv", "/tmp", "/usr", "/usr/src", "/var", "/var/tmp", "/mnt"}
HOME = r"/home/\w+"

HOST = re.compile(r"\bhttps?://(?:[^\s/@]+@)?([\w.-]+)")
# Hosts anybody can reach; anything else may be one that only its author can. Add what a text cites.
PUBLIC = """
127.0.0.1 crates.io debian.org docs.rs example.org github.com gitlab.com ietf.org kernel.org lwn.net man7.org
oasis-open.org python.org qemu.org rfc-editor.org rust-for-linux.com rust-lang.org spdx.org w3.org
""".split()


def check(checkout: pathlib.Path = sources.CHECKOUT) -> Report:
    report = Report()
    private = private_paths(checkout)
    names = sources.files(checkout)
    for name in names:
        text = read_text(checkout / name)
        if text is None:
            continue
        if needs_licence(name) and not has_licence(text):
            report.problems.append(f"{name}: does not begin with `SPDX-License-Identifier: GPL-2.0`")
        report.problems += [f"{name}:{number}: {what}" for number, what in give_aways(text, private)]
    report.summary = f"{len(names)} files"
    return report


def read_text(path: pathlib.Path) -> str | None:
    """The text of a file; None if it is not text."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def needs_licence(name: pathlib.Path) -> bool:
    return name.name not in WITHOUT_LICENCE and name.suffix not in WITHOUT_COMMENTS


def has_licence(text: str) -> bool:
    """Whether the first line names the licence, or the second after a `#!`."""
    lines = text.split("\n", 2)[:2]
    first = lines[1:] if text.startswith("#!") else lines[:1]
    return any(LICENCE.search(line) for line in first)


def private_paths(checkout: pathlib.Path) -> re.Pattern:
    """What paths look like that exist on this machine alone; a path that only ends like one does not."""
    paths = {str(checkout), str(checkout.parent), os.environ.get("RVSOCK_CACHE", "/")} - ORDINARY
    longest_first = sorted(map(re.escape, paths), reverse=True)
    return re.compile(rf"(?<![\w.$}})/])(?:{'|'.join([*longest_first, HOME])})(?![\w-])")


def give_aways(text: str, private: re.Pattern) -> list[tuple[int, str]]:
    """Line numbers and what is wrong there."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        found += [(number, f"a path of this machine: {path}") for path in private.findall(line)]
        hosts = [host for host in HOST.findall(line) if not is_public(host)]
        found += [(number, f"not known as a public host: {host}") for host in hosts]
    return found


def is_public(host: str) -> bool:
    """A host of the list, below a domain of it, or a made-up name without any domain."""
    return "." not in host or any(host == known or host.endswith("." + known) for known in PUBLIC)
