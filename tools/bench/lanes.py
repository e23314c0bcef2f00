# SPDX-License-Identifier: GPL-2.0
"""Where is measured: the machines of a lane, and how the drivers in them are exchanged."""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence

import rig
from rig import transports

from . import cells, load

# With ERMS and FSRM the kernel copies by `rep movsb`, which QEMU emulates byte by byte: copying
# would drown everything else. Without them the picture is that of hardware.
CPU = "max,-erms,-fsrm"

# What runs at native speed has that of this machine.
NATIVE_CPU = "this machine's"

# The kernel gives up on a peer that does not answer after 8 s (VSOCK_CLOSE_TIMEOUT).
UNUSED_TIMEOUT = 60.0

# A guest finds a device some time after it was plugged in, and before that nobody reaches it.
# DRIVER_OK is 4 (virtio specification, 2.1), 0x0013 a vsock device.
WAIT_DRIVEN = """
is_driven() {
    for device in /sys/bus/virtio/devices/*; do
        [ "$(cat $device/device)" = 0x0013 ] && [ $(($(cat $device/status) & 4)) = 4 ] && return
    done
    return 1
}
until is_driven; do sleep 0.1; done"""
DRIVEN_TIMEOUT = 60.0

CID_LOCAL = 1
CID_HOST = 2
CID_GUEST = 3


class UnknownName(Exception):
    """A lane or a pair that there is not."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """The implementation of each role of a lane, in the lane's order of roles."""

    roles: tuple[str, ...]
    implementations: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join(
            f"{implementation}-{role}"
            for role, implementation in zip(self.roles, self.implementations, strict=True)
        )

    def of(self, role: str) -> str:
        return self.implementations[self.roles.index(role)]


class Lane(typing.Protocol):
    """A running set of machines."""

    roles: tuple[str, ...]
    directions: tuple[str, ...]
    host: rig.Host | rig.UserMode
    guest: rig.Guest | None
    # Whether its kernels can count by a key, and how many times the usual bytes are sent to count.
    has_probes: bool
    count_times: int

    def exchange(self, pair: Pair, host_too: bool) -> None:
        """Loads a pair's drivers anew; the one of the host if it differs, and if asked to."""

    def path(self, direction: str) -> load.Path:
        """Which machine is active in a direction, and which answers."""


def parse(roles: Sequence[str], text: str) -> Pair:
    """A pair by its short name: `rust-c` is a Rust guest with a C host."""
    implementations = tuple(text.split("-"))
    if len(implementations) != len(roles) or not set(implementations) <= set(transports.IMPLEMENTATIONS):
        form = "-".join(f"<{role}>" for role in roles)
        known = " or ".join(transports.IMPLEMENTATIONS)
        raise UnknownName(f"there is no pair {text!r}: pairs are {form}, each of them {known}")
    return Pair(tuple(roles), implementations)


def require_built(pairs: Sequence[Pair]) -> None:
    """Raises NotBuilt if a module is missing, before anything takes time."""
    for pair in pairs:
        for role in pair.roles:
            if pair.of(role) == "rust":
                for module in transports.ROLES[role].rust:
                    transports.built(module)


def baseline(roles: Sequence[str]) -> Pair:
    return Pair(tuple(roles), ("c",) * len(roles))


def unload(machine: load.Machine, role: str) -> None:
    """Unloads a role's driver as soon as no socket holds it any more.

    A socket does so until its peer has agreed to the end of the connection, which may be after the
    program that had it.
    """
    names = " ".join(sorted({*transports.ROLES[role].all} - {*transports.SHARED}))
    script = f"""
    for name in {names}; do
        count=/sys/module/$name/refcnt
        while [ -e $count ] && [ "$(cat $count)" != 0 ]; do sleep 0.1; done
    done"""
    machine.shell(script, timeout=UNUSED_TIMEOUT)
    machine.unload(role)


class GuestLane:
    """A guest and its host, over virtio."""

    roles: tuple[str, ...] = ("guest", "host")
    directions: tuple[str, ...] = ("g2h", "h2g")
    has_probes = True
    count_times = 1

    def __init__(self, host: rig.Host, guest: rig.Guest):
        self.host, self.guest = host, guest
        self._on_host = "c"

    def exchange(self, pair: Pair, host_too: bool) -> None:
        unload(self.guest, "guest")
        if host_too or self._on_host != pair.of("host"):
            self.guest.unplug_vsock()
            unload(self.host, "host")
            self._on_host = pair.of("host")
            self.host.load("host", self._on_host)
            self.guest.plug_vsock()
        self.guest.load("guest", pair.of("guest"))
        self.guest.shell(WAIT_DRIVEN, timeout=DRIVEN_TIMEOUT)

    def path(self, direction: str) -> load.Path:
        if direction == "g2h":
            return load.Path(self.guest, self.host, CID_HOST)
        return load.Path(self.host, self.guest, CID_GUEST)


class LoopbackLane:
    """Both ends on the host VM's kernel."""

    roles: tuple[str, ...] = ("loopback",)
    directions: tuple[str, ...] = ("local",)
    guest = None
    has_probes = True
    count_times = 1

    def __init__(self, host: rig.Host):
        self.host = host

    def exchange(self, pair: Pair, host_too: bool) -> None:
        unload(self.host, "loopback")
        self.host.load("loopback", pair.of("loopback"))

    def path(self, direction: str) -> load.Path:
        return load.Path(self.host, self.host, CID_LOCAL)


class NativeLane:
    """Both ends, or a guest that is a program and its host, on User Mode Linux."""

    roles: tuple[str, ...] = ("loopback", "host")
    directions: tuple[str, ...] = ("local",)
    guest = None
    has_probes = False
    # CPU time is known in steps of 10 ms: this takes seconds.
    count_times = 32

    def __init__(self, host: rig.UserMode):
        self.host = host

    def exchange(self, pair: Pair, host_too: bool) -> None:
        for role in self.roles:
            unload(self.host, role)
        for role in self.roles:
            self.host.load(role, pair.of(role))

    def path(self, direction: str) -> load.Path:
        return load.Path(self.host, self.host, CID_LOCAL)


@contextlib.contextmanager
def guest_lane() -> Iterator[Lane]:
    with rig.host(cpu=CPU) as host:
        host.load("host", "c")
        with host.guest(cid=CID_GUEST) as guest:
            yield GuestLane(host, guest)


@contextlib.contextmanager
def loopback_lane() -> Iterator[Lane]:
    with rig.host(cpu=CPU) as host:
        yield LoopbackLane(host)


@contextlib.contextmanager
def native_lane() -> Iterator[Lane]:
    with rig.user_mode() as host:
        yield NativeLane(host)


def usual_cells(directions: Sequence[str]) -> list[cells.AnyCell]:
    return cells.timed(directions) + cells.held(directions)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A lane that can be asked for."""

    name: str
    roles: tuple[str, ...]
    start: typing.Callable[[], contextlib.AbstractContextManager[Lane]]
    # Pairs that are compared with the baseline if nothing else is asked for; the first, which is the
    # baseline itself, shows what noise there is.
    pairs: tuple[str, ...]
    cells: list[cells.AnyCell]
    cpu: str = CPU


KINDS = [
    Kind("guest", GuestLane.roles, guest_lane, ("c-c", "rust-c"), usual_cells(GuestLane.directions)),
    Kind("loopback", LoopbackLane.roles, loopback_lane, ("c", "rust"), usual_cells(LoopbackLane.directions)),
    Kind(
        *("native", NativeLane.roles, native_lane, ("c-c", "rust-rust"), cells.native("local")),
        cpu=NATIVE_CPU,
    ),
]


def find(lane: str, pairs: Sequence[str]) -> tuple[Kind, list[Pair]]:
    """A lane by its name, and pairs by theirs, or the usual ones."""
    for kind in KINDS:
        if kind.name == lane:
            return kind, [parse(kind.roles, name) for name in pairs or kind.pairs]
    raise UnknownName(f"there is no lane {lane!r}: lanes are {', '.join(kind.name for kind in KINDS)}")


@contextlib.contextmanager
def servers(lane: Lane) -> Iterator[None]:
    """The passive ends of all directions, listening."""
    with contextlib.ExitStack() as stack:
        machines = [lane.path(direction).passive for direction in lane.directions]
        for machine in dict.fromkeys(machines):
            stack.enter_context(load.server(machine))
        yield
