# SPDX-License-Identifier: GPL-2.0
"""The guest's device comes and goes under traffic: that ends connections, and nothing else."""

import contextlib
from collections.abc import Iterator

import pytest
import rig
from bench import load
from ends import RINGS, Ends, assert_reset, assert_works, refused, traffic
from rig import programs, runs, transports

pytestmark = pytest.mark.lifecycle

IMPLEMENTATIONS = ["c", "rust"]

CID_GUEST = 3
# Of that guest when it has come back, and of one beside it.
CID_OTHER = 33
CID_SECOND = 4

SLEEP_TIMEOUT = 120.0

DRIVERS = {"c": "vmw_vsock_virtio_transport", "rust": "virtio_transport_rs"}


@pytest.fixture(scope="module")
def server(host):
    """The host, with a program that listens all the time."""
    host.load("host", "c")
    with load.server(host):
        yield host


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def ends(request, server):
    """A guest with one implementation, and a program in it that listens all the time."""
    # A kernel that goes to sleep copies itself, and one with KASAN is large.
    memory = 1024 if runs.configured("CONFIG_KASAN") else 512
    with server.guest(cid=CID_GUEST, memory=memory) as guest:
        guest.load("guest", request.param)
        with load.server(guest):
            yield Ends(guest, server, request.param, CID_GUEST)


def test_a_device_that_is_unplugged_resets_its_connections(ends):
    with traffic(ends) as commands:
        ends.guest.unplug_vsock()
        # The host is told, too: its device is closed.
        for command in commands:
            assert_reset(command)
    assert "No such device" in refused(ends)
    ends.guest.plug_vsock()
    assert_works(ends)


def test_a_device_that_is_unplugged_may_come_back_as_somebody_else(ends):
    with traffic(ends) as commands:
        ends.guest.unplug_vsock()
        assert_reset(commands[0])
    ends.guest.plug_vsock(**{"guest-cid": CID_OTHER})
    try:
        assert_works(ends._replace(cid=CID_OTHER))
    finally:
        ends.guest.unplug_vsock()
        ends.guest.plug_vsock()
    assert_works(ends)


def refused_messages(ends: Ends) -> str:
    """What a program in the guest is told that connects to the host for messages, where nobody listens."""
    program = ends.guest.program(programs.build("rvsock-puppet"))
    command = [program, "write", "--port", str(load.PORT + 1), "--writers", "1", "--messages", "1"]
    return ends.guest.run(command, check=False).stderr


def test_a_device_that_is_unplugged_may_come_back_with_other_features(ends):
    ends.guest.unplug_vsock()
    ends.guest.plug_vsock(seqpacket="off")
    try:
        assert_works(ends)
        assert "ESOCKTNOSUPPORT" in refused_messages(ends)
    finally:
        ends.guest.unplug_vsock()
        ends.guest.plug_vsock()
    assert_works(ends)
    assert "ECONNRESET" in refused_messages(ends)


@contextlib.contextmanager
def unbound(guest: rig.Guest, implementation: str) -> Iterator[None]:
    """The driver lets go of its device, until the end of the block."""
    driver = f"/sys/bus/virtio/drivers/{DRIVERS[implementation]}"
    names = guest.run(["ls", driver]).stdout.split()
    name = next(name for name in names if name.startswith("virtio"))
    guest.shell(f"echo {name} > {driver}/unbind")
    yield
    guest.shell(f"echo {name} > {driver}/bind")


def test_a_driver_can_be_unbound_and_bound_again(ends):
    for _ in range(3):
        with traffic(ends) as commands, unbound(ends.guest, ends.implementation):
            assert_reset(commands[0])
    assert_works(ends)


@pytest.mark.parametrize("state", ["freeze", "mem", "disk"])
def test_connections_are_reset_by_sleep_and_new_ones_work_after_it(ends, state):
    """Devices are put to sleep and woken; the machine is not (pm_test)."""
    with traffic(ends) as commands:
        script = f"echo devices > /sys/power/pm_test && echo {state} > /sys/power/state"
        ends.guest.shell(script, timeout=SLEEP_TIMEOUT * runs.patience())
        assert_reset(commands[0])
    assert_works(ends)


def test_a_module_in_use_cannot_be_unloaded(ends):
    module = transports.loaded(ends.guest, "guest")[-1]
    with traffic(ends):
        result = ends.guest.run(["rmmod", module], check=False)
        assert result.status != 0
    assert_works(ends)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_driver_may_come_after_its_device(server, implementation):
    """And finds it again as often as it is loaded."""
    with server.guest(cid=CID_SECOND) as guest:
        ends = Ends(guest, server, implementation, CID_SECOND)
        for _ in range(3):
            guest.load("guest", implementation)
            with load.server(guest):
                assert_works(ends)
            guest.unload("guest")
            assert "No such device" in refused(ends)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ring", RINGS)
def test_every_form_of_ring_carries_data(server, implementation, ring):
    with server.guest(cid=CID_SECOND, vsock={**rig.VSOCK, **RINGS[ring]}) as guest:
        guest.load("guest", implementation)
        with load.server(guest):
            assert_works(Ends(guest, server, implementation, CID_SECOND))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_device_that_is_kept_from_memory_is_served_by_bounce_buffers(server, implementation):
    """All the device sees goes through swiotlb, as in a guest whose memory is encrypted."""
    vsock = {**rig.VSOCK, "iommu_platform": True, "disable-legacy": "on"}
    with server.guest(cid=CID_SECOND, vsock=vsock, kernel=["swiotlb=force"]) as guest:
        guest.load("guest", implementation)
        with load.server(guest):
            assert_works(Ends(guest, server, implementation, CID_SECOND))
        assert "software IO TLB" in guest.run(["dmesg"]).stdout
