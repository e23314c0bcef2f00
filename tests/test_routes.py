# SPDX-License-Identifier: GPL-2.0
"""All three transports in one kernel, a guest's that has a guest: which of them connect() takes."""

import pytest
from rig import programs, runs

pytestmark = pytest.mark.matrix

ROLES = ("loopback", "guest", "host")
# Which implementation has which role.
LOADED = {
    "c": dict.fromkeys(ROLES, "c"),
    "rust": dict.fromkeys(ROLES, "rust"),
    "rust beside c": {"loopback": "c", "guest": "c", "host": "rust"},
    "c beside rust": {"loopback": "rust", "guest": "rust", "host": "c"},
}

PORT = 7000
CID_LOCAL = 1
CID_HOST = 2
CID_OWN = 7
# Of the guest's guest, and one that nobody has (tests/host_alone/src/guest.rs).
CID_GUEST = 4711
CID_NOBODY = 4712

# Who answers, by what was connected to, without and with VMADDR_FLAG_TO_HOST. The host, which is
# asked for other guests then, does not answer.
ANSWERS = {
    CID_LOCAL: ("this kernel", "this kernel"),
    CID_HOST: ("the host", "the host"),
    CID_OWN: ("this kernel", "this kernel"),
    CID_GUEST: ("its guest", "ETIMEDOUT"),
    CID_NOBODY: ("ETIMEDOUT", "ETIMEDOUT"),
}

TIMEOUT = 120.0


@pytest.fixture(scope="module", params=LOADED)
def answers(request, host):
    """What the program says that connects everywhere, by CID and flags."""
    host.load("host", "rust")
    program = programs.build("rvsock-host-alone")
    listening = host.start(["socat", f"VSOCK-LISTEN:{PORT},fork", "SYSTEM:echo the host"])
    try:
        with host.guest(cid=CID_OWN, programs=[str(program)], modules=["vhost_vsock"]) as guest:
            for role, implementation in LOADED[request.param].items():
                guest.load(role, implementation)
            command = [str(program), "routes", str(PORT), *map(str, ANSWERS)]
            output = guest.run(command, timeout=TIMEOUT * runs.patience()).stdout
            print(output)
            lines = [line.split("\t") for line in output.splitlines()]
            yield {(who, int(flags)): answer for who, flags, answer in lines}
            for role in reversed(ROLES):
                guest.unload(role)
    finally:
        listening.kill()


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("cid", ANSWERS)
def test_each_cid_leads_where_it_should(answers, cid, flags):
    assert answers[str(cid), flags] == ANSWERS[cid][flags]


def test_a_socket_that_failed_over_one_transport_listens_on_all(answers):
    assert answers["listener", 0] == "accepts"
