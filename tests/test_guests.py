# SPDX-License-Identifier: GPL-2.0
"""Several guests on one host: they come, go, boot, move and die under traffic, beside each other."""

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import leftovers
import pytest
import rig
from bench import load
from ends import (
    RINGS,
    Ends,
    assert_reset,
    assert_running,
    assert_works,
    refused,
    start_traffic,
    traffic,
    wait_until_busy,
)
from rig import runs
from rig.guest import MACHINE_WITH_IOMMU

pytestmark = pytest.mark.matrix

LONG = bool(os.environ.get("LONG"))

# Of the host's side.
IMPLEMENTATIONS = ["c", "rust"] if LONG else ["rust"]

# The guests, and what is in each.
GUESTS = {3: "rust", 4: "c", 5: "rust"}
CID_MIGRATED = 35
CID_WITH_IOMMU = 6

# Each kills all guests.
ROUNDS = 34 if LONG else 4

# Objects that a cache of the kernel may keep for each processor; 96 were seen after 3 guests.
KEPT = 256


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request):
    """That of the host's side."""
    return request.param


@pytest.fixture(scope="module")
def server(implementation, host):
    """The host with one implementation of its side, and a program that listens all the time."""
    host.load("host", implementation)
    host.run(["modprobe", "vsock_diag"])
    with load.server(host):
        yield host


def boot(server: rig.Host, stack: contextlib.ExitStack) -> dict[int, Ends]:
    """Guests, at once, by their CIDs; their drivers are loaded."""

    def start(cid: int) -> Ends:
        guest = stack.enter_context(server.guest(cid=cid))
        guest.load("guest", GUESTS[cid])
        return Ends(guest, server, GUESTS[cid], cid)

    with ThreadPoolExecutor() as pool:
        return dict(zip(GUESTS, pool.map(start, GUESTS), strict=True))


@pytest.fixture(scope="module")
def guests(server):
    with contextlib.ExitStack() as stack:
        yield boot(server, stack)


@contextlib.contextmanager
def serving(*ends: Ends) -> Iterator[None]:
    """Guests with programs that listen."""
    with contextlib.ExitStack() as stack:
        for end in ends:
            stack.enter_context(load.server(end.guest))
        yield


def test_all_of_three_guests_are_served_at_once(guests):
    with serving(*guests.values()), contextlib.ExitStack() as stack:
        commands = [command for ends in guests.values() for command in stack.enter_context(traffic(ends))]
        for ends in guests.values():
            assert_works(ends)
        assert_running(commands)


@pytest.mark.parametrize("cid", [3, 4])
@pytest.mark.parametrize("ring", RINGS)
def test_every_form_of_ring_carries_data(guests, cid, ring):
    """In the guest and in the host; sizes of rings are QEMU's, other ones have tests/host_alone."""
    ends = guests[cid]
    ends.guest.unplug_vsock()
    ends.guest.plug_vsock(**RINGS[ring])
    try:
        with serving(ends):
            assert_works(ends)
    finally:
        ends.guest.unplug_vsock()
        ends.guest.plug_vsock()


def test_the_module_is_exchanged_between_guests(guests, server, implementation):
    for _ in range(2):
        for ends in guests.values():
            ends.guest.unplug_vsock()
        server.unload("host")
        server.load("host", implementation)
        for ends in guests.values():
            ends.guest.plug_vsock()
        with serving(*guests.values()):
            for ends in guests.values():
                assert_works(ends)


def test_a_guest_that_boots_anew_has_its_connections_reset(guests):
    """And those of its neighbour go on."""
    ends, neighbour = guests[3], guests[4]
    with serving(neighbour), traffic(neighbour) as others:
        with serving(ends):
            _, ours = commands = start_traffic(ends)
            wait_until_busy(ends, commands)
            ends.guest.reset()
        ends.guest.load("guest", ends.implementation)
        with serving(ends):
            assert_works(ends)
            assert_reset(ours)
        assert_running(others)


def test_a_guest_moves_to_another_cid_under_traffic(guests):
    """Live migration between two QEMUs: connections are reset on both sides, listeners stay."""
    ends, neighbour = guests[5], guests[4]
    moved = ends._replace(cid=CID_MIGRATED)
    with serving(ends, neighbour), traffic(neighbour) as others:
        with traffic(ends) as commands:
            ends.guest.migrate(CID_MIGRATED)
            guests[5] = moved
            for command in commands:
                assert_reset(command)
        assert_works(moved)
        assert_running(others)


def kill(guests: dict[int, Ends]) -> None:
    """Kills all QEMUs under traffic: it hits a machine that knows nothing of it."""
    ours = []
    with contextlib.ExitStack() as stack:
        for ends in guests.values():
            # What runs in the guest ends with it.
            arguments = [ends.guest.program(load.program()), "serve", str(load.PORT)]
            ends.guest.start(arguments).wait_for("listening", load.START_TIMEOUT)
            _, own = commands = start_traffic(ends)
            stack.callback(own.kill)
            wait_until_busy(ends, commands)
            ours.append(own)
        for ends in guests.values():
            ends.guest.close()
        for command in ours:
            assert_reset(command)
    wait_until_closed(ends.host)


def wait_until_closed(server: rig.Host) -> None:
    """Who closes a socket while its guest is dying waits for an answer, 8 s at most."""
    deadline = time.monotonic() + 30 * runs.patience()
    while left := [line for line in leftovers.sockets(server) if "LISTEN" not in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def test_killed_guests_leave_nothing(guests, server):
    kill(guests)
    before = leftovers.look(server)
    killed = 0
    for _ in range(ROUNDS - 1):
        with contextlib.ExitStack() as stack:
            kill(boot(server, stack))
        killed += len(GUESTS)
    after = leftovers.look(server)
    assert after.module_users == before.module_users
    assert after.threads == before.threads
    more = {name: count - before.objects.get(name, 0) for name, count in after.objects.items()}
    print(f"more objects after {killed} guests: {({name: count for name, count in more.items() if count})}")
    assert {name: count for name, count in more.items() if count > max(killed, KEPT)} == {}


def wait_until_translated(ends: Ends) -> None:
    """At first each address is asked for: with C, too, connect() may not take that long (2 s)."""
    deadline = time.monotonic() + 60 * runs.patience()
    while reason := refused(ends):
        assert time.monotonic() < deadline, reason


def test_memory_behind_an_iommu_is_reached(server):
    """The device asks QEMU where each address of the guest is, and is told when that ends."""
    vsock = {**rig.VSOCK, "iommu_platform": True, "ats": True, "disable-legacy": "on"}
    options = {"vsock": vsock, "kernel": ["intel_iommu=on"], "machine": MACHINE_WITH_IOMMU}
    with server.guest(cid=CID_WITH_IOMMU, **options) as guest:
        guest.load("guest", "rust")
        ends = Ends(guest, server, "rust", CID_WITH_IOMMU)
        with serving(ends):
            wait_until_translated(ends)
            with traffic(ends) as commands:
                assert_works(ends)
                assert_running(commands)
        # Not the same as memory without a translation.
        groups = guest.run(["ls", "/sys/kernel/iommu_groups"]).stdout.split()
        assert groups, "the guest has no IOMMU"
