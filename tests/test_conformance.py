# SPDX-License-Identifier: GPL-2.0
"""The guest's drivers with an independent device: the project's own, in user space, which keeps the protocol."""

import contextlib

import pytest
import vhost_user
from rig import runs

pytestmark = pytest.mark.clients

CID = 5
# One case is about packets that belong to loopback.
ROLES = ("guest", "loopback")
CASES = vhost_user.cases()

# The longest case takes 3 s on a quiet machine.
TIMEOUT = 120.0


@pytest.fixture(scope="module")
def machines(host):
    with vhost_user.device(host, CID) as device, host.guest(cid=CID, vhost_user=vhost_user.SOCKET) as guest:
        yield device, guest


@pytest.fixture(scope="module", params=["c", "rust"])
def implementation(request):
    return request.param


@pytest.fixture(scope="module")
def device(implementation, machines):
    """The device, with one of the drivers in the guest."""
    device, guest = machines
    for role in ROLES:
        guest.load(role, implementation)
    with vhost_user.obeying(device, guest):
        yield device
    for role in ROLES:
        guest.unload(role)


@pytest.mark.parametrize("name, differs_in_c", CASES, ids=[name for name, _ in CASES])
def test_case(device, implementation, name, differs_in_c):
    expectation = contextlib.nullcontext()
    if differs_in_c and implementation == "c":
        # Or the case would prove nothing.
        expectation = pytest.raises(AssertionError, match="failed:")
    with expectation:
        device.run(f"conform {name}", TIMEOUT * runs.patience())
