# SPDX-License-Identifier: GPL-2.0
"""Which modules make a transport, in C and in Rust, and how to exchange them in a running machine."""

import dataclasses
import pathlib
import subprocess
import tempfile
import time
import typing

from . import runs
from .errors import NotBuilt

if typing.TYPE_CHECKING:
    from .machine import Machine


@dataclasses.dataclass(frozen=True)
class Role:
    """A place in the vsock world and the modules that can fill it, in load order."""

    c: tuple[str, ...]
    rust: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.c + self.rust

    @property
    def own(self) -> set[str]:
        """Modules that no other role has."""
        return set(self.all) - set(SHARED)


ROLES = {
    "loopback": Role(("vsock_loopback",), ("vsock_trace_rs", "vsock_loopback_rs")),
    "guest": Role(("vmw_vsock_virtio_transport",), ("vsock_trace_rs", "virtio_transport_rs")),
    "host": Role(("vhost_vsock",), ("vsock_trace_rs", "vhost_vsock_rs")),
}
IMPLEMENTATIONS = ("c", "rust")

# A socket whose peer does not answer is there for 8 s after it was closed (VSOCK_CLOSE_TIMEOUT).
CLOSING = 20.0

# Shared by roles: unloaded with the last of its users.
SHARED = ("vsock_trace_rs", "vmw_vsock_virtio_transport_common")


def built(module: str) -> pathlib.Path:
    """The file of a module of ours, as `make modules` leaves it."""
    directory = runs.CHECKOUT / "build" / runs.release()
    for path in directory.rglob(f"{module}.ko"):
        return path
    raise NotBuilt(f"there is no {module}.ko below {directory}: run `make modules`")


def dependencies(path: pathlib.Path) -> list[str]:
    """Modules of the kernel that a module needs."""
    output = subprocess.run(["modinfo", "-F", "depends", path], capture_output=True, text=True, check=True)
    return [name for name in output.stdout.strip().split(",") if name and not name.endswith("_rs")]


def loaded(machine: "Machine", role: str) -> list[str]:
    """Modules of a role that are loaded, without those that other roles share."""
    return [name for name in machine.loaded_modules() if name in ROLES[role].own]


def load(machine: "Machine", role: str, implementation: str) -> None:
    """Makes an implementation the only one of a role; does nothing if it is."""
    modules = getattr(ROLES[role], implementation)
    paths = {name: built(name) for name in modules} if implementation == "rust" else {}
    present = machine.loaded_modules()
    if set(modules) <= set(present) and not (ROLES[role].own - set(modules)) & set(present):
        return
    unload(machine, role)
    present = machine.loaded_modules()
    for name in modules:
        if name in present:
            continue
        if name in paths:
            insert(machine, paths[name])
        else:
            machine.run(["modprobe", name])


def insert(machine: "Machine", path: pathlib.Path) -> None:
    """Loads a module of ours, and before it what it needs of the kernel."""
    for name in dependencies(path):
        machine.run(["modprobe", name])
    with tempfile.TemporaryDirectory() as directory:
        # Debug information is nine tenths of a module: under emulation it takes seconds to copy.
        stripped = pathlib.Path(directory) / path.name
        subprocess.run(["objcopy", "--strip-debug", path, stripped], check=True)
        # Copied, because the host's view of the cache may be older than the file.
        machine.put(stripped, f"/run/modules/{path.name}")
    machine.run(["insmod", f"/run/modules/{path.name}"])


def unload(machine: "Machine", role: str) -> None:
    """Removes the modules of a role, and shared ones that nobody else uses any more.

    Waits for sockets that were closed and wait for their peers.
    """
    present = machine.loaded_modules()
    for name in reversed(ROLES[role].all):
        if name in present and name not in SHARED:
            wait_until_unused(machine, name)
            machine.run(["rmmod", name])
    for name in SHARED:
        if name in present and unused(machine, name):
            machine.run(["rmmod", name])


def wait_until_unused(machine: "Machine", module: str) -> None:
    deadline = time.monotonic() + CLOSING * runs.patience()
    while not unused(machine, module) and time.monotonic() < deadline:
        time.sleep(0.5)


def unused(machine: "Machine", module: str) -> bool:
    count = machine.run(["cat", f"/sys/module/{module}/refcnt"], check=False)
    return count.status == 0 and count.stdout.strip() == "0"
