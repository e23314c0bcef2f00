# SPDX-License-Identifier: GPL-2.0
"""The project's own behaviour tests on loopback: Rust has to do what C does, but for the listed differences."""

import os
import typing

import allocation_sites
import pytest
import rig
import selftest_program
from rig import runs, transports

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

LONG = bool(os.environ.get("LONG"))

# The longest case takes 20 s on a quiet machine, and 140 s where each allocation is made to fail; the
# program ends one that takes CASE_TIMEOUT.
CASE_TIMEOUT = 900 if LONG or runs.configured("CONFIG_FAILSLAB") else 150
TIMEOUT = CASE_TIMEOUT + 60

# The case in which each allocation of the module fails, and the file that lists them.
SHORTAGE = "shortage.no_failure_in_the_module_does_harm_to_others"
SITES = "/run/sites"


class Loopback(typing.NamedTuple):
    host: rig.Host
    implementation: str
    command: list[str]
    # Where the module allocates, if that can be made to fail.
    sites: list[str]

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
    command += ["--long"] if LONG else []
    sites = []
    if request.param == "rust" and runs.configured("CONFIG_FAILSLAB"):
        sites = allocation_sites.of_module(transports.built(module))
        host.shell(f"cat > {SITES}", input="\n".join(sites).encode())
        command += ["--sites", SITES]
    yield Loopback(host, request.param, command, sites)
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
        if case.name == SHORTAGE:
            allocation_sites.check(TRANSPORTS["rust"][0], loopback.sites, result.stdout)
    assert loopback.sockets() == []


def test_the_module_can_be_unloaded(loopback):
    loopback.host.unload("loopback")
    assert not any("loopback" in name for name in loopback.host.loaded_modules())
