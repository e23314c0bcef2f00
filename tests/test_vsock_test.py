# SPDX-License-Identifier: GPL-2.0
"""The kernel's own vsock programs between guest and host, with the server on either side."""

import contextlib
import typing

import case_log
import pytest
import rig
from rig import transports

pytestmark = pytest.mark.vsock_test

# Implementations of guest and host that are put together.
PAIRS = [(guest, host) for guest in ("c", "rust") for host in ("c", "rust")]
ROLES = ["guest-server", "host-server"]

# Cases of each program in the kernel's tools/testing/vsock as of 7.2.
CASES = {"vsock_test": 41, "vsock_diag_test": 3, "vsock_uring_test": 2}

CID_HOST = 2
CID_GUEST = 3
CONTROL_PORT = 51000
# Leads to CONTROL_PORT in the guest, through QEMU's user network.
FORWARDED_PORT = 50000
# The host, seen from the guest through the same network.
HOST_ADDRESS = "10.0.2.2"


class Pair(typing.NamedTuple):
    """Guest and host with one implementation each."""

    guest: rig.Guest
    host: rig.Host


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-guest-{pair[1]}-host")
def pair(request, host):
    guest_side, host_side = request.param
    host.load("host", host_side)
    with contextlib.ExitStack() as stack:
        stack.callback(host.unload, "loopback")
        guest = stack.enter_context(host.guest(cid=CID_GUEST, forward={FORWARDED_PORT: CONTROL_PORT}))
        guest.load("guest", guest_side)
        for machine in (guest, host):
            # Case 29 needs a second transport.
            machine.load("loopback", "c")
            machine.run(["modprobe", "vsock_diag"])
        yield Pair(guest, host)


@pytest.fixture(scope="module")
def outcomes(pair):
    """Results by program and role; each program runs once, when its first case is asked for."""
    return case_log.once(lambda program, role: case_log.run(program, *ends(pair, role)))


def ends(pair: Pair, role: str) -> tuple[case_log.End, case_log.End]:
    """Server and client."""
    if role == "guest-server":
        return (
            case_log.End(pair.guest, CID_HOST, CONTROL_PORT),
            case_log.End(pair.host, CID_GUEST, FORWARDED_PORT, "127.0.0.1"),
        )
    return (
        case_log.End(pair.host, CID_GUEST, CONTROL_PORT),
        case_log.End(pair.guest, CID_HOST, CONTROL_PORT, HOST_ADDRESS),
    )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "program, number", [(program, number) for program, count in CASES.items() for number in range(count)]
)
def test_case(outcomes, program, number, role):
    reason = outcomes(program, role).require(number)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("program", CASES)
def test_every_case_was_run(outcomes, program, role):
    outcomes(program, role).require_all(CASES[program])


def test_these_modules_were_used(request, pair):
    """Guards the suite itself: exchanging modules must not leave the others in place."""
    wanted = request.node.callspec.params["pair"]
    for machine, role, implementation in zip((pair.guest, pair.host), ("guest", "host"), wanted, strict=True):
        modules = getattr(transports.ROLES[role], implementation)
        assert transports.loaded(machine, role) == [modules[-1]]
