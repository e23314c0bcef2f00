# SPDX-License-Identifier: GPL-2.0
"""The guest's drivers with an independent device: the project's own, in user space, which keeps the protocol."""

import pytest
import vhost_user
from rig import runs

pytestmark = pytest.mark.clients

CID = 5
CASES = vhost_user.cases()

# The longest case takes 3 s on a quiet machine.
TIMEOUT = 120.0


@pytest.fixture(scope="module")
def machines(host):
    with vhost_user.device(host, CID) as device, host.guest(cid=CID, vhost_user=vhost_user.SOCKET) as guest:
        yield device, guest


@pytest.fixture(scope="module", params=["c", "rust"])
def device(request, machines):
    """The device, with one of the drivers in the guest."""
    device, guest = machines
    guest.load("guest", request.param)
    with vhost_user.obeying(guest):
        yield device
    guest.unload("guest")


@pytest.mark.parametrize("name, differs_in_c", CASES, ids=[name for name, _ in CASES])
def test_case(request, device, name, differs_in_c):
    run = lambda: device.run(f"conform {name}", TIMEOUT * runs.patience())  # noqa: E731
    if differs_in_c and request.node.callspec.params["device"] == "c":
        # Or the case would prove nothing.
        with pytest.raises(AssertionError):
            run()
    else:
        run()
