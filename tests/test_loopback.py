# SPDX-License-Identifier: GPL-2.0
"""Loopback: the kernel's own vsock programs with both sides on the host VM's kernel."""

import case_log
import pytest

pytestmark = pytest.mark.loopback

IMPLEMENTATIONS = ["c", "rust"]
CID_LOCAL = 1
CONTROL_PORT = 51000

# Cases of each program in the kernel's tools/testing/vsock as of 7.2.
CASES = {"vsock_test": 41, "vsock_diag_test": 3, "vsock_uring_test": 2}

# Cases that cannot be run with both sides on one kernel.
IMPOSSIBLE = {("vsock_diag_test", 2): "it expects one socket on the kernel, which here has both ends"}


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def loopback(request, host):
    """The host with one implementation of loopback, and no other transport."""
    host.unload("host")
    host.load("loopback", request.param)
    host.run(["modprobe", "vsock_diag"])
    yield host
    host.unload("loopback")


@pytest.fixture(scope="module")
def outcomes(loopback):
    """Results by program; each program runs once, when its first case is asked for."""

    @case_log.once
    def outcome(program: str) -> case_log.Outcome:
        server = case_log.End(loopback, CID_LOCAL, CONTROL_PORT)
        client = case_log.End(loopback, CID_LOCAL, CONTROL_PORT, "127.0.0.1")
        skip = [number for name, number in IMPOSSIBLE if name == program]
        return case_log.run(program, server, client, skip)

    return outcome


@pytest.mark.parametrize(
    "program, number", [(program, number) for program, count in CASES.items() for number in range(count)]
)
def test_case(outcomes, program, number):
    reason = outcomes(program).require(number)
    if reason:
        pytest.skip(IMPOSSIBLE.get((program, number), reason))


@pytest.mark.parametrize("program", CASES)
def test_every_case_was_run(outcomes, program):
    outcomes(program).require_all(CASES[program])


def test_the_module_can_be_unloaded(loopback):
    loopback.unload("loopback")
    assert not any("loopback" in name for name in loopback.loaded_modules())
