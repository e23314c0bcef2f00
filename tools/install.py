# SPDX-License-Identifier: GPL-2.0
"""`make install` and `make uninstall`: modules for a kernel, what makes it prefer them, and the commands."""

import argparse
import dataclasses
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import commands

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]

# The kernel's own modules, and ours that take their place.
REPLACED = {
    "vsock_loopback": "vsock_loopback_rs",
    "vmw_vsock_virtio_transport": "virtio_transport_rs",
    "vhost_vsock": "vhost_vsock_rs",
}

PREFERENCE = "etc/modprobe.d/rvsock.conf"
HEAD = """\
# modprobe, and whatever loads modules by itself, takes rvsock's instead of the kernel's own. Where
# ours cannot be loaded, as with a kernel that they were not built for, it is the kernel's own.
"""


class Problem(Exception):
    """Nothing was changed, for a reason that the user can do something about."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where to install: below a directory, for a kernel."""

    root: pathlib.Path
    release: str

    @property
    def is_running_system(self) -> bool:
        return self.root == pathlib.Path("/")

    @property
    def modules(self) -> pathlib.Path:
        return self.root / "lib/modules" / self.release / "updates/rvsock"

    @property
    def preference(self) -> pathlib.Path:
        return self.root / PREFERENCE

    def others(self) -> list[pathlib.Path]:
        """Directories with our modules for other kernels."""
        found = (self.root / "lib/modules").glob("*/updates/rvsock")
        return [path for path in found if path != self.modules]

    def depmod(self) -> None:
        """Makes the modules known. A tree that is not a system yet gets that with its kernel."""
        if (self.modules.parents[1] / "modules.order").exists():
            subprocess.run(["depmod", "-b", self.root, self.release], check=True)


def preference() -> str:
    lines = (
        f"install {theirs} /sbin/modprobe --quiet {ours} || /sbin/modprobe --ignore-install {theirs}\n"
        for theirs, ours in REPLACED.items()
    )
    return HEAD + "".join(lines)


def require_permission(target: Target) -> None:
    place = next(path for path in (target.modules, *target.modules.parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise Problem(f"{place} cannot be written to: run it as root, or give a DESTDIR")


def install(target: Target, build: pathlib.Path, programs: pathlib.Path) -> None:
    built = sorted(build.glob("*.ko"))
    if not built:
        raise Problem(
            f"there are no modules for {target.release} in {build}: build them with "
            f"`RVSOCK_KERNEL={target.release} make modules` or `make modules KDIR=...`"
        )
    if target.is_running_system and not target.modules.parents[1].is_dir():
        raise Problem(f"there is no kernel {target.release} in {target.modules.parents[2]}")
    require_permission(target)
    target.modules.mkdir(parents=True, exist_ok=True)
    for path in built:
        shutil.copyfile(path, target.modules / path.name)
        print(f"  {target.modules / path.name}")
    target.preference.parent.mkdir(parents=True, exist_ok=True)
    target.preference.write_text(preference())
    print(f"  {target.preference}")
    target.depmod()
    install_commands(target, programs)
    if target.is_running_system:
        tell_what_is_loaded()


def install_commands(target: Target, programs: pathlib.Path) -> None:
    """What NFS over vsock needs beside the module, if it was built."""
    files = commands.installed(programs)
    if not all(source.exists() for source, _ in files.values()):
        print("Without the commands for NFS over vsock: `make commands` builds them.")
        return
    for name, (source, mode) in files.items():
        path = target.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not into a file that may be running.
        path.unlink(missing_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)
        print(f"  {path}")
    reload_units(target)


def reload_units(target: Target) -> None:
    """Tells systemd of units that came or went."""
    if target.is_running_system and pathlib.Path("/run/systemd/system").exists():
        subprocess.run(["systemctl", "daemon-reload"], check=True)


def uninstall_commands(target: Target) -> None:
    paths = [target.root / name for name in commands.installed(commands.BUILD)]
    for path in filter(pathlib.Path.exists, paths):
        path.unlink()
        print(f"  removed {path}")
    for name in (commands.SCRIPTS, pathlib.PurePath(commands.DOCUMENT).parent):
        directory = target.root / name
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    reload_units(target)


def tell_what_is_loaded() -> None:
    loaded = [name for name in REPLACED if pathlib.Path("/sys/module", name).exists()]
    if loaded:
        print(f"Until the next boot {', '.join(loaded)} stays; or `rmmod` it, with its sockets closed.")
    if shutil.which("update-initramfs"):
        print("A guest that loads its driver from the initramfs needs `update-initramfs -u` as well.")


def uninstall(target: Target) -> None:
    require_permission(target)
    if target.modules.exists():
        shutil.rmtree(target.modules)
        print(f"  removed {target.modules}")
        target.depmod()
    if target.others():
        print(f"  {target.preference} and the commands stay, for {', '.join(map(str, target.others()))}")
        return
    if target.preference.exists():
        target.preference.unlink()
        print(f"  removed {target.preference}")
    uninstall_commands(target)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/install.py", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["install", "uninstall"])
    parser.add_argument("--root", type=pathlib.Path, default="/", help="the root of the system (/)")
    parser.add_argument(
        "--release", default=platform.release(), help="the kernel's, as `uname -r` says (%(default)s)"
    )
    parser.add_argument("--build", type=pathlib.Path, help="where the modules are (build/RELEASE)")
    parser.add_argument(
        "--commands", type=pathlib.Path, default=commands.BUILD, help="where the commands are (build/commands)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    target = Target(options.root.absolute(), options.release)
    try:
        if options.action == "install":
            install(target, options.build or CHECKOUT / "build" / options.release, options.commands)
        else:
            uninstall(target)
    except (Problem, OSError, subprocess.CalledProcessError) as error:
        print(f"{options.action}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
