# SPDX-License-Identifier: GPL-2.0
"""How the runs of the kernel's vmtest.sh are followed."""

import pytest
from peers import vmtest
from rig import KernelReport

pytestmark = pytest.mark.unit

PROMPT = "root@virtme-ng:/# "
TRAP = "KVM internal error. Suberror: 3\n"
BOOT = f"[    9.1] {vmtest.GUEST_IS_UP}\n"


class FakeCommand:
    """A run of the script that has printed this, and ended or hangs."""

    def __init__(self, stdout: str, running: bool):
        self.stdout, self.running = stdout, running
        self.signals: list[int] = []

    def close_input(self) -> None: ...

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self, timeout: float, check: bool) -> None:
        self.running = False


class FakeHost:
    """Starts the runs that are listed, and notes the tests that were asked for."""

    def __init__(self, *commands: FakeCommand):
        self._commands = list(commands)
        self.asked: list[list[str]] = []

    def start(self, arguments, env):
        self.asked.append(arguments[arguments.index(str(vmtest.QEMU)) + 1 :])
        return self._commands.pop(0)

    def run(self, arguments): ...

    def load(self, role, implementation): ...

    def unload(self, role): ...


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(vmtest, "prefer", lambda host, implementation: None)
    monkeypatch.setattr(vmtest, "TIMEOUT", 0.0)
    monkeypatch.setattr(vmtest.runs, "patience", lambda: 1)


def results(host: FakeHost, *names: str) -> list[str]:
    script = vmtest.Script(host, "c", names)
    return [script.outcome(name).result for name in names]


def test_results_are_read_behind_what_a_console_left_in_the_line():
    output = f"ok 1 a\n{PROMPT}not ok 2 b # exit=1\r\n{PROMPT}ok 3 c # SKIP\nok 4 abc\n"
    found = [vmtest.find_result(output, name)[0] for name in ("a", "b", "c", "bc")]
    assert found == ["ok", "not ok", "skip", None]


def test_one_run_serves_for_all():
    host = FakeHost(FakeCommand("ok 1 a\nnot ok 2 b # exit=1\nok 3 c # SKIP\nSUMMARY: \n", running=False))
    assert results(host, "a", "b", "c") == ["ok", "not ok", "skip"]
    assert host.asked == [["a", "b", "c"]]


def test_output_belongs_to_the_test_that_is_run():
    host = FakeHost(FakeCommand("first\nok 1 a\nsecond\nok 2 b\nSUMMARY: \n", running=False))
    script = vmtest.Script(host, "c", ["a", "b"])
    assert "first" in script.outcome("a").output
    assert "first" not in script.outcome("b").output


def test_a_run_that_ends_early_is_begun_again_after_it():
    host = FakeHost(FakeCommand("ok 1 a\nTimed out\n", running=False), FakeCommand("ok 1 c\n", running=False))
    assert results(host, "a", "b", "c") == ["ok", "the script ended", "ok"]
    assert host.asked == [["a", "b", "c"], ["c"]]


def test_a_run_that_hangs_is_ended_so_that_it_cleans_up():
    hanging = FakeCommand("ok 1 a\n", running=True)
    host = FakeHost(hanging, FakeCommand("ok 1 c\n", running=False))
    assert results(host, "a", "b", "c") == ["ok", "took too long", "ok"]
    assert hanging.signals == [15]


def test_what_the_emulation_ends_is_run_again_once():
    trapped = f"{TRAP}not ok 1 a # exit=1\nok 2 b\n"
    host = FakeHost(FakeCommand(trapped, running=True), FakeCommand(trapped, running=False))
    assert results(host, "a", "b") == ["not ok", "ok"]
    assert host.asked == [["a", "b"], ["a", "b"]]


def test_a_guest_has_the_module_that_is_asked_for():
    with_c, with_rust = (vmtest.Outcome("ok", BOOT + more) for more in ("", f"[    8.2] {vmtest.OURS_IN_GUEST}.\n"))
    vmtest.check_guests(with_c, "c")
    vmtest.check_guests(with_rust, "rust")
    with pytest.raises(AssertionError):
        vmtest.check_guests(with_c, "rust")
    with pytest.raises(AssertionError):
        vmtest.check_guests(with_rust, "c")


def test_a_guest_whose_kernel_complains_is_found():
    vmtest.check_guests(vmtest.Outcome("ok", "WARNING: of another program\n"), "c")
    with pytest.raises(KernelReport):
        vmtest.check_guests(vmtest.Outcome("ok", "[    9.2] WARNING: CPU: 0 PID: 1 at net/core\n"), "c")
