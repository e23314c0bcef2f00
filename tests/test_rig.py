# SPDX-License-Identifier: GPL-2.0
"""The rig itself: whatever happens in a machine is noticed, at once and under its own name."""

import time

import pytest
import rig
from rig import acceleration, channel

pytestmark = pytest.mark.rig

# Far below the timeouts of commands and machines, far above what a busy machine needs.
AT_ONCE = 30.0
CRASH = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"


@pytest.fixture(scope="module")
def guest(host):
    with host.guest(cid=7, vsock=None) as machine:
        yield machine


def test_a_status_comes_back_with_both_outputs(guest):
    result = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert result == rig.Result(3, "out\n", "err\n")


def test_a_command_that_fails_shows_what_it_printed(guest):
    with pytest.raises(rig.CommandFailed, match="no such place"):
        guest.shell("echo no such place >&2; exit 1")


def test_a_program_that_is_missing_is_named(guest):
    with pytest.raises(rig.CommandFailed, match="/no/program"):
        guest.run(["/no/program"])


def test_a_command_that_takes_too_long_is_killed_with_its_children(guest):
    with pytest.raises(rig.CommandTimeout, match="longer than 2 s"):
        guest.run(["sh", "-c", "sleep 4321 & sleep 4321"], timeout=2)
    assert "4321" not in guest.run(["ps"]).stdout


def test_commands_run_side_by_side(host, guest):
    commands = [machine.start(["sh", "-c", "read x; echo $x"]) for machine in (host, guest) for _ in range(8)]
    for number, command in enumerate(commands):
        command.write(f"{number}\n".encode())
    assert [command.wait(60).stdout for command in commands] == [f"{number}\n" for number in range(16)]


def test_megabytes_pass_unharmed(guest, tmp_path):
    data = bytes(range(256)) * (4 << 10)
    (tmp_path / "data").write_bytes(data)
    guest.put(tmp_path / "data", "/tmp/data")
    assert guest.run(["cat", "/tmp/data"]).stdout.encode(errors="surrogateescape")[:128] == data[:128]
    assert guest.run(["stat", "-c", "%s", "/tmp/data"]).stdout.strip() == str(len(data))


@pytest.mark.parametrize("name", ["host", "guest"])
def test_a_complaint_of_the_kernel_is_reported(request, name):
    machine = request.getfixturevalue(name)
    machine.check_kernel_log()
    machine.shell("echo 'WARNING: CPU: 0 PID: 1 at net/vmw_vsock/af_vsock.c:1' >/dev/kmsg")
    with pytest.raises(rig.KernelReport, match="af_vsock.c:1"):
        machine.check_kernel_log()
    machine.check_kernel_log()


def test_a_guest_that_panics_is_noticed_at_once(host):
    started = time.monotonic()
    with pytest.raises(rig.MachinePanic, match="sysrq triggered crash"), host.guest(cid=8, vsock=None) as guest:
        started = time.monotonic()
        guest.shell(CRASH, timeout=300)
    assert time.monotonic() - started < AT_ONCE
    assert host.run(["true"]).status == 0


def test_a_guest_that_is_killed_is_noticed_at_once(host, guest):
    with pytest.raises(rig.MachineLost), host.guest(cid=8, vsock=None) as other:
        started = time.monotonic()
        sleeping = other.start(["sleep", "1000"])
        host.run(["pkill", "-9", "-f", "rig_name=guest8"])
        sleeping.wait(300)
    assert time.monotonic() - started < AT_ONCE
    guest.run(["true"])


def test_a_guest_that_ends_without_a_word_is_the_emulations_fault(host):
    expected = rig.MachineLost if acceleration.hardware() else rig.UnprovenTrap
    with pytest.raises(rig.MachineError) as caught, host.guest(cid=8, vsock=None) as guest:
        sleeping = guest.start(["sleep", "1000"])
        # QEMU ends of it, as of a triple fault.
        guest.monitor.execute("system_reset")
        sleeping.wait(300)
    assert caught.type is expected


def test_a_guest_that_restarts_is_not_the_emulations_fault(host):
    with pytest.raises(rig.MachineLost), host.guest(cid=8, vsock=None) as guest:
        guest.shell("echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger; sleep 1000", timeout=300)


def test_a_guest_that_hangs_is_told_from_a_slow_command(host, monkeypatch):
    monkeypatch.setattr(channel, "PATIENCE", 3.0)
    with pytest.raises(rig.MachineHung, match="guest8"), host.guest(cid=8, vsock=None) as guest:
        host.run(["pkill", "-STOP", "-f", "rig_name=guest8"])
        guest.run(["true"], timeout=2)


def test_a_guest_is_booted_again_that_the_emulation_ended(host, monkeypatch, capsys):
    boots = []

    def wait_ready(guest: rig.Guest) -> None:
        boots.append(guest)
        if len(boots) == 1:
            guest.console.feed(b"KVM internal error. Suberror: 3\n")
        original(guest)

    original = rig.Guest.wait_ready
    monkeypatch.setattr(rig.Guest, "wait_ready", wait_ready)
    with host.guest(cid=8, vsock=None) as guest:
        guest.run(["true"])
    assert len(boots) == 2
    assert "guest8 is booted again" in capsys.readouterr().err
    assert guest not in host.guests


def test_a_host_whose_guests_would_hang_is_refused():
    """QEMU's default CPU model has virtualization, but without nested paging."""
    with pytest.raises(rig.RigError, match="no nested paging"), rig.host(cpu="qemu64", memory=1024):
        pass


def test_a_host_that_panics_takes_its_guests_along_and_no_other_host(host):
    with pytest.raises(rig.MachinePanic, match="host: Kernel panic"):
        with rig.host(memory=1536) as other, other.guest(cid=3, vsock=None, memory=256) as guest:
            sleeping = guest.start(["sleep", "1000"])
            other.start(["sh", "-c", CRASH])
            sleeping.wait(300)
    assert host.run(["true"]).status == 0
