# SPDX-License-Identifier: GPL-2.0
"""`make commands`: the programs for NFS over vsock, ready to be installed; and what is installed with them."""

import os
import pathlib
import subprocess
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
BUILD = CHECKOUT / "build/commands"
SOURCES = CHECKOUT / "tools/nfs"

# What cargo calls the programs, and where they belong. mount(8) looks for its helpers there.
PROGRAMS = {"nfs-vsock": "usr/sbin/nfs-vsock", "mount-nfs-vsock": "usr/sbin/mount.nfs_vsock"}
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/nfs-vsock",
    "fish": "usr/share/fish/vendor_completions.d/nfs-vsock.fish",
    "zsh": "usr/share/zsh/vendor-completions/_nfs-vsock",
}
MANUAL = "usr/share/man/man8"
UNITS = "usr/lib/systemd/system"
SCRIPTS = "usr/libexec/rvsock"
DOCUMENT = "usr/share/doc/rvsock/nfs.md"


def replace(path: pathlib.Path, content: bytes, mode: int = 0o644) -> None:
    """Others may be reading what was there before: tests side by side build the same."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(content)
    new.chmod(mode)
    os.replace(new, path)


def build() -> None:
    """Leaves programs and completion scripts in build/commands."""
    # Only here: a machine that installs has no rig.
    from rig import programs

    BUILD.mkdir(parents=True, exist_ok=True)
    built = programs.build("rvsock-nfs")
    for name in PROGRAMS:
        replace(BUILD / name, built.with_name(name).read_bytes(), 0o755)
        print(f"  {BUILD / name}")
    for shell in COMPLETIONS:
        command = [built.with_name("nfs-vsock"), "completion", shell]
        replace(BUILD / f"completion.{shell}", subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def installed(build: pathlib.Path) -> dict[str, tuple[pathlib.Path, int]]:
    """The files of the commands below the root of a system: where from, and with which permissions."""
    files = {target: (build / name, 0o755) for name, target in PROGRAMS.items()}
    files |= {target: (build / f"completion.{shell}", 0o644) for shell, target in COMPLETIONS.items()}
    for directory, pattern, mode in ((MANUAL, "man/*", 0o644), (UNITS, "systemd/*", 0o644)):
        files |= {f"{directory}/{path.name}": (path, mode) for path in sorted(SOURCES.glob(pattern))}
    files |= {f"{SCRIPTS}/{path.name}": (path, 0o755) for path in sorted(SOURCES.glob("libexec/*"))}
    return files | {DOCUMENT: (CHECKOUT / "Documentation/nfs.md", 0o644)}


def main() -> None:
    from rig import RigError

    try:
        build()
    except RigError as error:
        sys.exit(f"commands: {error}")


if __name__ == "__main__":
    main()
