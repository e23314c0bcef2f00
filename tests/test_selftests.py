# SPDX-License-Identifier: GPL-2.0
"""The project's own behaviour tests on loopback: Rust has to do what C does, but for the listed differences."""

import typing

import pytest
import rig
import selftest_program

pytestmark = pytest.mark.loopback

IMPLEMENTATIONS = ["c", "rust"]
CASES = selftest_program.cases()

# The module of each implementation, and how to load it where it was loaded before.
TRANSPORTS = {
    "c": ("vsock_loopback", "modprobe vsock_loopback"),
    "rust": ("vsock_loopback_rs", "insmod /run/modules/vsock_loopback_rs.ko"),
}

# What the cases need beside the transport: nothing loads modules by itself in the host VM.
MODULES = ["vsock_diag", "vsockmon"]

# The longest case takes 20 s on a quiet machine; the program ends one that takes CASE_TIMEOUT.
CASE_TIMEOUT = 150
TIMEOUT = CASE_TIMEOUT + 60


class Loopback(typing.NamedTuple):
    host: rig.Host
    implementation: str
    command: list[str]

    def sockets(self) -> list[str]:
        """The vsock sockets there are."""
        return self.host.run(["ss", "--vsock", "--all", "--no-header"]).stdout.splitlines()


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def loopback(request, host):
    """The host with one implementation of loopback, and no other transport."""
    host.unload("host")
    host.load("loopback", request.param)
    for module in MODULES:
        host.run(["modprobe", module])
    module, reload = TRANSPORTS[request.param]
    program = host.program(selftest_program.program())
    command = [program, "--module", module, "--reload", reload, "--timeout", str(CASE_TIMEOUT)]
    yield Loopback(host, request.param, command)
    host.unload("loopback")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(loopback, case):
    result = loopback.host.run([*loopback.command, case.name], timeout=TIMEOUT, check=False)
    outcome = selftest_program.outcome(result.stdout, case.name)
    if outcome.skip_reason:
        pytest.skip(outcome.skip_reason)
    if loopback.implementation == "c" and case.differs_in_c:
        # Or the case would prove nothing.
        assert not outcome.passed, f"C does not differ: {case.differs_in_c}"
    else:
        assert outcome.passed, result.stdout + result.stderr
    assert loopback.sockets() == []


def test_the_module_can_be_unloaded(loopback):
    loopback.host.unload("loopback")
    assert not any("loopback" in name for name in loopback.host.loaded_modules())
