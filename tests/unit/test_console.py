# SPDX-License-Identifier: GPL-2.0
"""What is read off the consoles of virtual machines."""

import pytest
from rig import EmulationTrap, MachineLost, MachinePanic, UnprovenTrap, console

pytestmark = pytest.mark.unit

PANIC = b"[    1.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n"
TRAP = b"KVM internal error. Suberror: 3\nextra data[0]: 0x000000008000030e\n"


# As a guest with the kernel's own modules printed it.
DOUBLE_FAULT = b"""\
[  247.320878] traps: PANIC: double fault, error_code: 0x0
[  247.323620] Oops: double fault: 0000 [#1] SMP NOPTI
[  247.325293] RIP: 0010:entry_SYSCALL_64+0x0/0x2b
[  247.326622] RSP: 0018:00007ff68819f208 EFLAGS: 00000002
[  247.327800] Call Trace:
[  247.329633] Kernel panic - not syncing: Fatal exception in interrupt
"""

# Likewise, of an NMI. The first of the two came in the handler of the second.
MASKED_INTERRUPT = b"""\
[  219.705125]  end_repeat_nmi+0xf/0x53
[  219.705276] RIP: 0010:irq_wait_on_inprogress+0x28/0x70
[  219.706063] RSP: 0018:ffa0000000003c28 EFLAGS: 00010006
[  219.707018]  handle_edge_irq+0x27/0x190
[  219.707066]  asm_common_interrupt+0x26/0x40
[  219.707079] RIP: 0010:__queue_work+0x80/0x4f0
[  219.707094] Code: 00 49 81 ff 00 20 00 00
[  219.707102] RSP: 0018:ffa0000000003d58 EFLAGS: 00010046
[  219.707290]  handle_edge_irq+0xbb/0x190
[  219.707327]  asm_common_interrupt+0x26/0x40
[  219.707337] RIP: 0010:handle_softirqs+0x77/0x320
[  219.707360] RSP: 0018:ffa0000000003f88 EFLAGS: 00010246
"""

# As a host with the kernel's own modules alone printed it.
STACK_END = b"""\
[  338.843062] Kernel panic - not syncing: corrupted stack end detected inside scheduler
[  338.843973] CPU: 0 UID: 0 PID: 3131 Comm: qemu-system-x86 Not tainted 7.2.12+deb13-amd64 #1 PREEMPT(lazy)
[  338.844596] Call Trace:
[  338.850371]  kvm_lapic_reset+0x173/0x3c0 [kvm]
[  338.850739]  kvm_vcpu_reset+0x60/0x520 [kvm]
[  338.851021]  shutdown_interception+0x64/0x90 [kvm_amd]
[  338.855723] ---[ end Kernel panic - not syncing: corrupted stack end detected inside scheduler ]---
"""

# As one printed it whose guest went on.
STACK_END_LATER = b"""\
[   15.702503] Kernel panic - not syncing: corrupted stack end detected inside scheduler
[   15.704145] CPU: 0 UID: 0 PID: 267 Comm: qemu-system-x86 Tainted: G           OE       7.2.12+deb13-amd64 #1 PREEMPT(lazy)
[   15.705882] Call Trace:
[   15.707611]  __schedule+0x1056/0x1060
[   15.707841]  __futex_wait+0x91/0x100
[   15.708091]  __x64_sys_futex+0x126/0x1e0
[   15.708341]  ? kvm_arch_vcpu_put+0x15f/0x1a0 [kvm]
[   15.708809]  ? kvm_vcpu_ioctl+0x271/0x9c0 [kvm]
[   15.717026] Kernel Offset: 0x2800000 from 0xffffffff81000000
"""

# As a host printed it that had no module but its own, and no guest.
NO_BREAKPOINT = b"""\
[  279.295867] Oops: int3: 0000 [#1] SMP NOPTI
[  279.297037] CPU: 1 UID: 0 PID: 2083 Comm: dd Not tainted 7.2.12+deb13-amd64 #1 PREEMPT(lazy)
[  279.297771] RIP: 0010:__hrtimer_run_queues+0xf8/0x240
[  279.299200] Code: c9 31 d2 e8 4a f3 ff ff 48 89 ef 2e 2e 2e 41 ff d4 41 89 c4 eb <30> 4c 89 ff e8 bf cc d0 00 41 83 fc 01 0f
[  279.299573] RSP: 0018:ffffd0d8000f0f28 EFLAGS: 00000046
[  279.301303] Call Trace:
[  279.303385]  hrtimer_interrupt+0xfb/0x1e0
[  279.319994] Kernel panic - not syncing: Fatal exception in interrupt
"""

NESTED_TIMER = b"[   57.409050] WARNING: kernel/time/hrtimer.c:2066 at __hrtimer_run_queues+0x4ce/0x7a0, CPU#0: sh/74\n"


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A console, and the errors it reports."""
    monkeypatch.setattr(console, "PANIC_GRACE", 0.1)
    errors: list[Exception] = []
    return console.Console("guest3", tmp_path / "guest3.log", errors.append), errors


def test_everything_is_kept_in_the_file(watched, tmp_path):
    screen, errors = watched
    screen.feed(b"one\r\n")
    screen.feed(b"two\r\n")
    assert (tmp_path / "guest3.log").read_bytes() == b"one\r\ntwo\r\n"
    assert screen.text() == "one\ntwo\n"
    assert not errors


def test_the_end_of_a_machine_is_reported_with_the_end_of_its_console(watched):
    screen, errors = watched
    screen.feed(b"last words\n")
    screen.feed(b"")
    assert isinstance(errors[0], MachineLost)
    assert "last words" in str(errors[0])


@pytest.mark.parametrize("cut", [0, 20, len(PANIC) - 30])
def test_a_panic_is_reported_with_its_trace_also_if_it_comes_in_pieces(watched, cut):
    screen, errors = watched
    screen.feed(PANIC[:cut] or b"boot\n")
    screen.feed(PANIC[cut:])
    screen.feed(b"[    1.6] Call Trace:\n")
    screen.feed(b"")
    assert isinstance(errors[0], MachinePanic)
    assert "Attempted to kill init" in str(errors[0])
    assert "Call Trace" in str(errors[0])


def test_a_machine_that_stays_after_its_panic_is_not_waited_for(watched):
    screen, errors = watched
    screen.feed(PANIC)
    screen.panic_timer.join(30)
    assert isinstance(errors[0], MachinePanic)


def test_the_trap_of_nested_emulation_has_a_name_of_its_own(watched):
    screen, errors = watched
    screen.feed(TRAP[:25])
    screen.feed(TRAP[25:])
    assert isinstance(errors[0], EmulationTrap)
    assert "fault of the emulation" in str(errors[0])


@pytest.mark.parametrize("checks_locks", [True, False])
def test_a_timer_inside_a_timer_is_the_emulations_fault_where_locks_are_checked(watched, monkeypatch, checks_locks):
    monkeypatch.setattr(console.runs, "configured", lambda option: checks_locks)
    screen, errors = watched
    screen.feed(NESTED_TIMER)
    assert [type(error) for error in errors] == ([EmulationTrap] if checks_locks else [])


def test_text_may_be_waited_for(watched):
    screen, _ = watched
    screen.feed(b"rig: mark 1\n")
    assert screen.wait_for("mark 1", 0)
    assert not screen.wait_for("mark 2", 0.05)


def test_an_interrupt_at_the_entry_of_a_system_call_is_the_emulations_fault(watched):
    screen, errors = watched
    screen.feed(DOUBLE_FAULT)
    screen.feed(b"")
    assert isinstance(errors[0], EmulationTrap)


@pytest.mark.parametrize(
    "here, elsewhere",
    [(b"entry_SYSCALL_64+0x0/", b"virtio_vsock_probe+0x0/"), (b"00007ff68819f208", b"ffffc900000b7d98")],
)
def test_any_other_double_fault_is_a_panic(watched, here, elsewhere):
    screen, errors = watched
    screen.feed(DOUBLE_FAULT.replace(here, elsewhere))
    screen.feed(b"")
    assert isinstance(errors[0], MachinePanic)


@pytest.mark.parametrize(
    "printed, from_, to, kind",
    [
        (STACK_END, b"", b"", EmulationTrap),
        (STACK_END, b"shutdown_interception", b"vhost_worker", MachinePanic),
        (STACK_END_LATER, b"", b"", UnprovenTrap),
        (STACK_END_LATER, b"kvm_vcpu_ioctl", b"vhost_worker", MachinePanic),
    ],
)
def test_a_stack_of_a_guests_cpu_that_is_full_is_the_emulations_fault(watched, printed, from_, to, kind):
    screen, errors = watched
    screen.feed(printed.replace(from_, to))
    screen.feed(b"")
    assert type(errors[0]) is kind


@pytest.mark.parametrize(
    "from_, to, kind",
    [
        (b"", b"", EmulationTrap),
        # A breakpoint that is there, and any other fault.
        (b"eb <30>", b"cc <30>", MachinePanic),
        (b"int3: 0000", b"0000", MachinePanic),
    ],
)
def test_a_breakpoint_that_is_not_there_is_the_emulations_fault(watched, from_, to, kind):
    screen, errors = watched
    screen.feed(NO_BREAKPOINT.replace(from_, to))
    screen.feed(b"")
    assert type(errors[0]) is kind


@pytest.mark.parametrize(
    "last, orderly",
    [(b"reboot: Power down", True), (b"sysrq: Resetting", True), (b"systemd[1]: Mounted tmp.mount", False)],
)
def test_a_kernel_that_ends_its_machine_says_so(watched, last, orderly):
    screen, _ = watched
    screen.feed(b"[   25.1] " + last + b"\r\n")
    assert screen.orderly_end == orderly


def test_an_interrupt_while_they_are_off_is_the_emulations_fault(watched):
    screen, _ = watched
    screen.feed(MASKED_INTERRUPT.replace(b"\n", b"\r\n"))
    assert isinstance(screen.masked_interrupt(), EmulationTrap)


@pytest.mark.parametrize(
    "from_, to",
    [(b"00010046", b"00010246"), (b"asm_common_interrupt", b"asm_exc_page_fault"), (b" asm_", b" ? asm_")],
)
def test_any_other_trace_is_a_hang(watched, from_, to):
    screen, _ = watched
    screen.feed(MASKED_INTERRUPT.replace(from_, to))
    assert screen.masked_interrupt() is None
