# SPDX-License-Identifier: GPL-2.0
"""The host's side without a guest: a program lays out rings and drives /dev/vhost-vsock."""

import os
import time
import typing

import pytest
import rig
import selftest_program
from rig import programs, runs

pytestmark = pytest.mark.host_alone

IMPLEMENTATIONS = ["c", "rust"]
PACKAGE = "rvsock-host-alone"
CASES = selftest_program.cases([programs.build(PACKAGE), "cases"])

# The module of each implementation.
MODULES = {"c": "vhost_vsock", "rust": "vhost_vsock_rs"}

LONG = bool(os.environ.get("LONG"))

# The longest case takes 20 s on a quiet machine; the program ends one that takes CASE_TIMEOUT.
CASE_TIMEOUT = 900 if LONG else 150
TIMEOUT = CASE_TIMEOUT + 60

# Steps of the guest that breaks the rules: 100,000 take half a minute on a quiet machine.
SEEDS = (1, 2) if LONG else (1,)
STEPS = 2_000_000 if LONG else 100_000
SECONDS_PER_STEP = 0.006


class Program(typing.NamedTuple):
    host: rig.Host
    implementation: str
    path: str

    def run(self, *arguments: str, timeout: float):
        return self.host.run([self.path, *arguments], timeout=timeout * runs.patience(), check=False)

    def sockets(self) -> list[str]:
        """The vsock sockets there are."""
        return self.host.run(["ss", "--vsock", "--all", "--no-header"]).stdout.splitlines()

    def wait_until_closed(self) -> None:
        """Sockets whose guest does not answer wait for 8 s; then none may be left."""
        deadline = time.monotonic() + 30 * runs.patience()
        while left := self.sockets():
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def program(request, host):
    """The program, in the host with one implementation of the host's side, and no other transport."""
    host.unload("loopback")
    host.load("host", request.param)
    host.run(["modprobe", "vsock_diag"])
    yield Program(host, request.param, host.program(programs.build(PACKAGE)))
    host.unload("host")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(program, case):
    arguments = ["cases", "--module", MODULES[program.implementation], "--timeout", str(CASE_TIMEOUT)]
    result = program.run(*arguments, *(["--long"] if LONG else []), case.name, timeout=TIMEOUT)
    outcome = selftest_program.outcome(result.stdout, case.name)
    if outcome.skip_reason:
        pytest.skip(outcome.skip_reason)
    if program.implementation == "c" and case.differs_in_c:
        # Or the case would prove nothing.
        assert not outcome.passed, f"C does not differ: {case.differs_in_c}"
        program.wait_until_closed()
    else:
        assert outcome.passed, result.stdout + result.stderr
        assert program.sockets() == []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        seed = metafunc.config.getoption("seed")
        metafunc.parametrize("seed", SEEDS if seed is None else (seed,))


@pytest.mark.hostile
def test_hostile_guest(request, program, seed):
    """A guest that breaks all rules harms neither the host nor its neighbour."""
    steps = request.config.getoption("steps") or STEPS
    command = ["hostile", "--seed", str(seed), "--steps", str(steps)]
    result = program.run(*command, timeout=60 + steps * SECONDS_PER_STEP)
    if program.implementation == "c":
        # Or the steps would prove nothing: C lets it into the neighbour's connection.
        assert result.status != 0, result.stdout
        assert "the guest that behaves well" in result.stderr
    else:
        assert result.status == 0, result.stdout + result.stderr
    print(result.stdout)
    program.wait_until_closed()


def test_speed_can_be_measured(program):
    program.wait_until_closed()
    result = program.run("speed", "--seconds", "0.2", timeout=60)
    assert result.status == 0, result.stdout + result.stderr
    print(result.stdout)


def test_the_module_can_be_unloaded(program):
    program.host.unload("host")
    assert not any("vhost_vsock" in name for name in program.host.loaded_modules())
