# SPDX-License-Identifier: GPL-2.0
"""Counts for each MiB that is sent. They depend on no clock, so that a busy machine does no harm.

Each transfer is made twice: once untouched, for what the kernels count anyway, and once with
probes, which would slow the first one down.
"""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator

from . import cells, load
from .lanes import Lane

MIB = 1 << 20
# What is sent, by the size of messages: about as long as a timed test takes.
TRANSFERS = {64: MIB // 2, 4 * cells.KIB: 8 * MIB, 64 * cells.KIB: 32 * MIB}
# Before it, for translated code and buffers that adapt themselves.
WARM_UP_SHARE = 4

TRACING = "/sys/kernel/tracing"
OP_RW = 5
OPS_CREDIT = (6, 7)

TITLES = {
    "packets": "packets with payload, as received",
    "credit packets": "credit updates and requests, both ways",
    "used-index updates": "updates of a used index by the host (vhost_add_used_n)",
    "tx kicks": "notifications by the guest of packets to send (vp_notify)",
    "rx kicks": "notifications by the guest of buffers to receive into (vp_notify)",
    "interrupts": "interrupts of the guest's vsock device",
    "exits": "exits of the guest to KVM, whatever the reason",
    "cpu ms": "CPU time of the emulated host, or of User Mode Linux, with all it runs",
}


@dataclasses.dataclass(frozen=True)
class Probe:
    """An event of the kernel, counted by a key; `definition` makes the event if it is not there."""

    event: str
    key: str
    definition: str = ""

    @property
    def directory(self) -> str:
        return f"{TRACING}/events/{self.event}"


RECEIVED = Probe("vsock/virtio_transport_recv_pkt", "op")
USED = Probe("bench/used", "count", "p:bench/used vhost_add_used_n count=count:u32")
KICKED = Probe("bench/kick", "name", "p:bench/kick vp_notify name=vq->name:string")

ENTRY = re.compile(r"^\{ \w+: +(\S+) +\} hitcount: +(\d+)", re.MULTILINE)


@contextlib.contextmanager
def armed(machine: load.Machine, probes: list[Probe]) -> Iterator[None]:
    """Counts from here on."""
    lines = [f"echo '{probe.definition}' >>{TRACING}/kprobe_events" for probe in probes if probe.definition]
    lines += [f"echo 'hist:keys={probe.key}' >{probe.directory}/trigger" for probe in probes]
    machine.shell("\n".join(lines))
    try:
        yield
    finally:
        lines = [f"echo '!hist:keys={probe.key}' >{probe.directory}/trigger" for probe in probes]
        lines += [f"echo >{TRACING}/kprobe_events"]
        machine.shell("\n".join(lines))


def read(machine: load.Machine, probe: Probe) -> Counter[str]:
    """Hits by key."""
    found = ENTRY.findall(machine.run(["cat", f"{probe.directory}/hist"]).stdout)
    return Counter({key: int(hits) for key, hits in found})


def interrupts(lane: Lane) -> int:
    """Interrupts of the guest's vsock device since it was found."""
    script = "cd /sys/bus/virtio/devices; grep -l 0x0013 */device; cat /proc/interrupts"
    device, _, table = lane.guest.shell(script).stdout.partition("/device\n")
    lines = [line.split() for line in table.splitlines() if f"{device}-" in line]
    return sum(int(word) for line in lines for word in line[1:] if word.isdigit())


def exits(lane: Lane) -> int:
    """Exits of all guests, of which there is one."""
    return int(lane.host.shell("cat /sys/kernel/debug/kvm/exits").stdout)


def free_counters(lane: Lane) -> Counter[str]:
    """What is counted at no cost."""
    counters = Counter({"cpu ms": lane.host.cpu_time() * 1000})
    if lane.guest:
        counters.update({"interrupts": interrupts(lane), "exits": exits(lane)})
    return counters


def probed(lane: Lane, path: load.Path, transfer: str) -> Counter[str]:
    """Makes a transfer with probes set."""
    with contextlib.ExitStack() as stack:
        if lane.guest:
            stack.enter_context(armed(lane.guest, [RECEIVED, KICKED]))
            stack.enter_context(armed(lane.host, [RECEIVED, USED]))
        else:
            stack.enter_context(armed(lane.host, [RECEIVED]))
        load.run(path, [transfer], load.Timing(0, 0))
        received = read(path.passive, RECEIVED)
        both = received + read(path.active, RECEIVED) if path.active is not path.passive else received
        counters = Counter(
            {"packets": received[str(OP_RW)], "credit packets": sum(both[str(op)] for op in OPS_CREDIT)}
        )
        if lane.guest:
            kicks = read(lane.guest, KICKED)
            counters.update({f"{queue} kicks": kicks[queue] for queue in ("tx", "rx")})
            counters["used-index updates"] = read(lane.host, USED).total()
    return counters


def case(direction: str, size: int) -> str:
    return f"{direction} {cells.size_name(size)}"


def measure(lane: Lane, direction: str, size: int, share: int = 1) -> dict[str, float]:
    """All counts for each MiB sent; `share` is by how much less than usual is sent."""
    path = lane.path(direction)
    total = TRANSFERS[size] * lane.count_times // share
    transfer = f"bytes:{size}:{total}"
    load.run(path, [f"bytes:{size}:{total // WARM_UP_SHARE}"], load.Timing(0, 0))
    before = free_counters(lane)
    load.run(path, [transfer], load.Timing(0, 0))
    counters = free_counters(lane)
    counters.subtract(before)
    if lane.has_probes:
        counters.update(probed(lane, path, transfer))
    return {name: counters[name] * MIB / total for name in TITLES if name in counters}
