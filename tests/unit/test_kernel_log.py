# SPDX-License-Identifier: GPL-2.0
"""The check of kernel logs: every kind of report must fail it, and a healthy log must not."""

import re

import pytest
from rig import KernelReport, kernel_log

pytestmark = pytest.mark.unit

# One line as the kernel prints it, for every kind of report.
EXAMPLES = {
    "panic": "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
    "oops": "Oops: general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] SMP",
    "page fault": "BUG: kernel NULL pointer dereference, address: 0000000000000018",
    "BUG": "kernel BUG at drivers/vhost/vhost.c:2785!",
    "warning": "WARNING: CPU: 0 PID: 1 at net/vmw_vsock/virtio_transport_common.c:370 virtio_transport_dec_tx_pkt",
    "lockdep": "WARNING: possible circular locking dependency detected",
    "sleep in atomic": "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
    "hung task": "INFO: task vsock_test:211 blocked for more than 120 seconds.",
    "lockup": "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:1:9]",
    "RCU stall": "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "sanitizer": "BUG: KASAN: slab-use-after-free in virtio_transport_recv_pkt+0x1/0x2 [vmw_vsock]",
    "memory leak": "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "debug objects": "ODEBUG: free active (active state 0) object: 00000000 object type: timer_list",
    "list corruption": "list_del corruption. prev->next should be ffff888, but was ffff889. (prev=ffff888)",
    "reference count": "refcount_t: underflow; use-after-free.",
    "allocation failure": "vsock_test: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP)",
    "Rust panic": "rust_kernel: panicked at rust/transport/lib.rs:12:5:",
}

MORE = [
    "------------[ cut here ]------------",
    "UBSAN: array-index-out-of-bounds in net/core/skbuff.c:1:2",
    "BUG: KCSAN: data-race in a / b",
    "BUG: KFENCE: use-after-free read in a",
    "BUG: scheduling while atomic: kworker/0:1/9/0x00000002",
    "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 32s!",
    "WARNING: suspicious RCU usage",
    "WARNING: inconsistent lock state",
    "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "unregister_netdevice: waiting for lo to become free. Usage count = 2",
    "unreferenced object 0xffff888003d0a000 (size 128):",
    "BUG: unable to handle page fault for address: ffffffffc0000000",
    "invalid opcode: 0000 [#1] SMP",
    "sysctl: ODEBUG: assert_init not available",
    "Object already free",
    "BUG: MAX_LOCKDEP_ENTRIES too low!",
]

HEALTHY = """\
[    0.000000] Linux version 7.2.12+deb13-amd64 (debian-kernel@lists.debian.org)
[    0.000000] ... MAX_LOCKDEP_SUBCLASSES:  8
[    0.001000] kmemleak: Kernel memory leak detector initialized (mem pool available: 15705)
[    0.683646] NMI watchdog: Perf NMI watchdog permanently disabled
[    1.128598] mtrr: your CPUs had inconsistent fixed MTRR settings
[    2.000000] rcu: Hierarchical RCU implementation.
[    2.100000] Memory: 2960164K/3145204K available (18011K kernel code, 3416K rwdata, 14384K rodata)
[    3.000000] vsock_loopback_rs: loading out-of-tree module taints kernel.
[    3.100000] vsock_loopback_rs: module verification failed: signature and/or required key missing - tainting kernel
[    4.000000] NET: Registered PF_VSOCK protocol family
[    5.000000] rig: mark 1 of host
"""


def in_log(line: str) -> str:
    """A log in which a report stands among healthy lines."""
    return f"{HEALTHY}[   12.345678] {line}\n[   12.345679] Call Trace:\n"


def test_a_healthy_log_passes():
    kernel_log.check("host", HEALTHY)


def test_there_is_an_example_of_every_kind():
    assert set(EXAMPLES) == set(kernel_log.REPORTS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_kind_of_report_is_found_by_its_own_pattern(kind):
    assert re.search(kernel_log.REPORTS[kind], EXAMPLES[kind])


@pytest.mark.parametrize("line", [*EXAMPLES.values(), *MORE])
def test_every_report_fails_the_check(line):
    with pytest.raises(KernelReport) as error:
        kernel_log.check("guest3", in_log(line))
    assert line in str(error.value)
    assert "guest3" in str(error.value)
