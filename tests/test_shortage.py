# SPDX-License-Identifier: GPL-2.0
"""A guest and its host, both with modules of ours, where memory is not to be had, at each place that asks for it."""

import os
import time
import typing

import allocation_sites
import pytest
import rig
import selftest_program
from rig import runs, transports

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(not runs.configured("CONFIG_FAILSLAB"), reason="this kernel makes no failures on demand"),
]

CID_HOST = 2
CID_GUEST = 3

# Of the relay, which leads connections of the cases back to where they come from.
PORT = 7002

# What the cases need beside the transport, and who is shown by `ss`.
MODULES = ["vsock_diag", "vsockmon"]

MODULE_OF = {"guest": "virtio_transport_rs", "host": "vhost_vsock_rs"}

GROUP = "shortage"
# The case in which each call of an allocator in the module fails, and the file that lists them.
SITES_CASE = "shortage.no_failure_in_the_module_does_harm_to_others"
SITES = "/run/sites"
# The host's module is held by the monitor of the guest.
UNLOADS = "shortage.a_module_that_fails_to_load_leaves_nothing"

LONG = bool(os.environ.get("LONG"))
# Without it, what the other cases show is shown on loopback, and by tests/host_alone.
QUICK = [SITES_CASE]

CASE_TIMEOUT = 3000
TIMEOUT = CASE_TIMEOUT + 60


class Machines(typing.NamedTuple):
    host: rig.Host
    guest: rig.Guest

    def users(self) -> dict[str, int]:
        """How many sockets and files hold the module, on each side."""
        machines = {"guest": self.guest, "host": self.host}
        path = "/sys/module/{}/refcnt"
        return {role: int(machines[role].run(["cat", path.format(MODULE_OF[role])]).stdout) for role in machines}


class Side(typing.NamedTuple):
    """Where a module runs out of memory, and the program that is run there."""

    machine: rig.Host | rig.Guest
    module: str
    command: list[str]
    # Where the module allocates.
    sites: list[str]


@pytest.fixture(scope="module")
def machines(host):
    host.unload("loopback")
    host.load("host", "rust")
    with host.guest(cid=CID_GUEST, memory=1024) as guest:
        guest.load("guest", "rust")
        for machine in (host, guest):
            for module in MODULES:
                machine.run(["modprobe", module])
        yield Machines(host, guest)


@pytest.fixture(scope="module", params=["guest", "host"])
def side(request, machines):
    role = request.param
    here, there, cid = (
        (machines.guest, machines.host, CID_HOST)
        if role == "guest"
        else (machines.host, machines.guest, CID_GUEST)
    )
    module = MODULE_OF[role]
    sites = allocation_sites.of_module(transports.built(module))
    here.shell(f"cat > {SITES}", input="\n".join(sites).encode())
    before = machines.users()
    relay = there.start([there.program(selftest_program.program()), "--be-relay", str(PORT)])
    relay.wait_for("relaying", TIMEOUT)
    command = [here.program(selftest_program.program()), "--cid", str(cid), "--relay", str(PORT), "--module", module]
    command += ["--reload", f"insmod /run/modules/{module}.ko", "--sites", SITES, "--timeout", str(CASE_TIMEOUT)]
    yield Side(here, module, command, sites)
    relay.kill()
    wait_until_closed(machines, before)


def wait_until_closed(machines: Machines, before: dict[str, int]) -> None:
    """Sockets whose peer does not answer wait for 8 s."""
    deadline = time.monotonic() + 30 * runs.patience()
    while (users := machines.users()) != before:
        assert time.monotonic() < deadline, f"{users} use the modules, {before} before"
        time.sleep(0.5)


def cases() -> list[str]:
    names = [case.name for case in selftest_program.cases() if case.name.startswith(f"{GROUP}.")]
    return [name for name in names if LONG or name in QUICK]


@pytest.mark.parametrize("case", cases())
def test_case(side, case):
    if case == UNLOADS and side.module == MODULE_OF["host"]:
        pytest.skip("the module is in use")
    result = side.machine.run([*side.command, case], timeout=TIMEOUT, check=False)
    outcome = selftest_program.outcome(result.stdout, case)
    assert outcome.passed and not outcome.skip_reason, result.stdout + result.stderr
    if case == SITES_CASE:
        allocation_sites.check(side.module, side.sites, result.stdout)
