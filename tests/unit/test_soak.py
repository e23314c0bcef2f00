# SPDX-License-Identifier: GPL-2.0
"""The soak: what it plans, whom it blames, what it takes for a leak, what it writes."""

import collections
import itertools
import threading
import types

import leftovers
import pytest
import rig
from rig import Command
from soak import __main__ as command
from soak import disturb, machines, memory, plan, report, session, traffic
from soak.gate import Gate, Ticket

pytestmark = pytest.mark.unit

KINDS = {**plan.DISTURBANCES, **plan.SHORTAGE}


def planned(seed: int, count: int = 20) -> list[plan.Round]:
    return list(itertools.islice(plan.rounds(seed, KINDS), count))


# What is done in which order.


def test_a_seed_always_leads_to_the_same_choices():
    assert planned(1) == planned(1)
    assert planned(1) != planned(2)
    first, again, other = (
        list(itertools.islice(plan.passes(seed, 3, "loopback", 0), 30)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_workers_and_rounds_differ():
    found = [
        tuple(itertools.islice(plan.passes(1, number, lane, worker), 8))
        for number in range(3)
        for lane in plan.LANES
        for worker in range(plan.WORKERS)
    ]
    assert len(set(found)) == len(found)


def test_every_disturbance_comes_once_in_each_deck():
    rounds = planned(5, 40)
    for deck in range(5):
        kinds = [each.kind for round_ in rounds if round_.deck == deck for each in round_.disturbances]
        assert sorted(kinds) == sorted(KINDS)


def test_all_that_can_happen_to_the_guest_that_stays_does_so_in_the_warm_up():
    for seed in range(20):
        happened = [each for round_ in planned(seed) if round_.deck == 0 for each in round_.disturbances]
        assert all(each.target == plan.STEADY for each in happened if plan.STEADY in KINDS[each.kind])


def test_the_guest_that_stays_is_neither_killed_nor_reset():
    for seed in range(20):
        for each in itertools.chain.from_iterable(round_.disturbances for round_ in planned(seed)):
            assert each.target in KINDS[each.kind]
            assert not (each.target == plan.STEADY and each.kind in ("guest killed", "guest reset"))


def test_every_disturbance_can_be_done():
    assert set(disturb.ACTIONS) == set(KINDS)


def test_every_kind_of_load_comes_in_every_deck():
    found = list(itertools.islice(plan.passes(1, 0, "loopback", 0), 5 * len(plan.PASSES)))
    for start in range(0, len(found), len(plan.PASSES)):
        kinds = {each.kind for each in found[start : start + len(plan.PASSES)]}
        assert kinds == {
            *("bulk", "echo", "short connections", "seqpacket", "full", "request-response", "streams"),
        }


def test_programs_get_cid_and_port_where_they_want_them():
    assert traffic.arguments(("send", "--bytes", "1"), 2, 7) == ["send", "--bytes", "1", "--cid", "2", "--port", "7"]
    assert traffic.arguments(("receive",), None, 7) == ["receive", "--port", "7"]
    assert traffic.arguments(("hold", "CID", "PORT", "1", "2"), 3, 7) == ["hold", "3", "7", "1", "2"]


def test_a_lane_is_disturbed_with_its_guest():
    assert [traffic.gate_of(lane) for lane in plan.LANES] == ["guest3", "guest3", "guest4", "guest4", "host"]


# Gates.


def test_those_inside_are_disturbed_when_a_gate_closes_and_those_who_come_later_are_not():
    gate = Gate()
    gate.open()
    before = gate.enter(threading.Event())
    gate.close()
    gate.open()
    after = gate.enter(threading.Event())
    assert (before.disturbed, after.disturbed) == (True, False)


def test_nobody_enters_a_closed_gate_when_it_is_time_to_stop():
    stop, found = threading.Event(), []
    stop.set()
    waiting = threading.Thread(target=lambda: found.append(Gate().enter(stop)), daemon=True)
    waiting.start()
    waiting.join(10)
    assert found == [None]


def test_whoever_enters_a_disturbance_that_goes_on_is_disturbed():
    gate = Gate()
    gate.open(disturbing=True)
    ticket = gate.enter(threading.Event())
    assert ticket.disturbed
    assert not gate.wait_empty(0)
    gate.leave(ticket)
    assert gate.wait_empty(0)


class FakeCommand:
    def __init__(self):
        self.killed = 0

    def kill(self):
        self.killed += 1


def test_a_program_that_is_started_while_its_pair_is_killed_goes_too():
    ticket, server, client = Ticket(), FakeCommand(), FakeCommand()
    ticket.take("server", server)
    assert not ticket.disturbed and not server.killed
    ticket.kill()
    ticket.take("client", client)
    assert ticket.disturbed and server.killed == client.killed == 1


# Whom it blames.


class FakeMachine:
    """A machine that runs, or was ended by something."""

    def __init__(self, error=None):
        self.channel = types.SimpleNamespace(error=error)


class FakeMachines:
    """As if the emulation had ended a guest, or none."""

    def __init__(self, trap=None):
        self.trap = trap

    def trapped_soon(self, concerns):
        return self.trap if self.trap and concerns(self.trap) else None


def worker(trap=None) -> traffic.Worker:
    counts, stop = traffic.Counts(), threading.Event()
    return traffic.Worker(FakeMachines(trap), "guest3 to host", 0, 1, 0, counts, stop, lambda error: None)


def ticket(disturbed: bool, said: str = "") -> Ticket:
    found = Ticket()
    found.disturbed = disturbed
    found.client = Command(None, 1, ["send"])
    found.client._output[rig.channel.Kind.STDERR] += said.encode()
    return found


RESET = rig.CommandFailed(["send"], "exited with status 1")
WORK = next(plan.passes(1, 0, "loopback", 0))


def test_who_was_disturbed_may_fail():
    judge = worker()
    judge._judge(ticket(True, "rvsock-puppet: ECONNRESET"), WORK, RESET)
    assert judge.counts.disturbed == 1


def test_who_was_not_may_not():
    with pytest.raises(machines.Failure, match="ECONNRESET"):
        worker()._judge(ticket(False, "rvsock-puppet: ECONNRESET"), WORK, RESET)


@pytest.mark.parametrize(
    "said",
    [
        "other bytes between 4096 and 8192",
        "byte 17 of the stream is 0x00, not 0x11 (byte 1 of 4 that were read)",
        "message 4 of writer 2 is another",
        "connection 3: [1, 0, 0] came back",
        "thread 'main' panicked at src/main.rs",
        "rvsock-load: data on a connection that carries none",
    ],
)
def test_nobody_may_get_a_wrong_byte(said):
    with pytest.raises(machines.Failure, match="wrong data"):
        worker()._judge(ticket(True, said), WORK, RESET)


def test_a_connection_that_ends_early_has_no_wrong_byte():
    for said in ("connection 3: [] came back", "100 of 1000 bytes came", "17 bytes came as they were sent"):
        assert not traffic.WRONG.search(said)


@pytest.mark.parametrize(
    "error", [rig.CommandTimeout(["send"], "took longer than 180 s"), rig.MachineHung("host hangs")]
)
def test_nobody_may_hang(error):
    with pytest.raises(machines.Failure, match="hangs"):
        worker()._judge(ticket(True), WORK, error)


def test_the_emulation_explains_what_happens_to_its_guest_and_nothing_else():
    for name, is_explained in (("guest3", True), ("guest4", False)):
        judge = worker(machines.Trapped(name, rig.EmulationTrap("KVM gave up")))
        if is_explained:
            judge._judge(ticket(False), WORK, RESET)
        else:
            with pytest.raises(machines.Failure):
                judge._judge(ticket(False), WORK, RESET)


def looked_after(error: rig.MachineError | None) -> machines.Machines:
    found = machines.Machines(FakeMachine(), "rust", lambda text: None)
    found.boots["guest4"] = machines.Boot(FakeMachine(error), None)
    return found


def test_only_the_end_of_a_machine_is_the_emulations():
    found = looked_after(rig.EmulationTrap("KVM gave up"))
    with pytest.raises(machines.Trapped, match="guest4"), found.noticing():
        raise rig.MachineLost("guest4 ended")
    with pytest.raises(rig.CommandFailed), found.noticing():
        raise RESET
    with pytest.raises(rig.KernelReport), found.noticing():
        raise rig.KernelReport("the kernel of host complained")


def test_a_guest_that_the_emulation_keeps_from_coming_up_is_none_either():
    found = looked_after(None)
    with pytest.raises(machines.Trapped), found.noticing():
        raise rig.EmulationTrap("KVM gave up on a guest that is not there yet")
    found.host.channel.error = rig.EmulationTrap("the host is gone")
    with pytest.raises(rig.EmulationTrap), found.noticing():
        raise found.host.channel.error


def test_a_guest_that_is_lost_otherwise_is_a_failure():
    found = looked_after(rig.MachinePanic("guest4: panic"))
    with pytest.raises(rig.MachinePanic), found.noticing():
        raise rig.MachinePanic("guest4: panic")


# Memory.

MEMINFO = """\
MemTotal:        1000000 kB
MemFree:          500000 kB
MemAvailable:     700000 kB
Buffers:            1000 kB
Cached:            99000 kB
SwapCached:            0 kB
AnonPages:        200000 kB
Slab:              50000 kB
SReclaimable:      20000 kB
SUnreclaim:        30000 kB
Active(anon):       1000 kB
HugePages_Total:       0
              count:    100
              count:    25
"""


def held(kernel: int = 100_000, users: int = 0, threads: int = 2, **objects: int) -> memory.Held:
    figures = memory.Figures(available=700_000, slab=50_000, unreclaimable=30_000, kernel=kernel)
    left = leftovers.Held(objects, {"vhost_vsock_rs": users}, collections.Counter({"vhost-1": threads}))
    return memory.Held(figures, left)


def leaks(before: memory.Held, after: memory.Held) -> list[str]:
    return [growth.name for growth in memory.compare(before, after) if growth.is_leak]


def test_what_is_the_kernels_is_what_is_not_free_nor_of_files_and_processes():
    """Nor kept free by a processor."""
    assert memory.parse(MEMINFO) == memory.Figures(700_000, 50_000, 30_000, 199_500)


def test_the_same_twice_is_no_leak():
    assert leaks(held(sock_inode_cache=10), held(sock_inode_cache=10)) == []


@pytest.mark.parametrize(
    "after, name",
    [
        (held(kernel=100_000 + memory.KEPT_KERNEL + 1), "KiB of the kernel"),
        (held(users=1), "users of vhost_vsock_rs"),
        (held(threads=3), "threads vhost-N"),
        (held(sock_inode_cache=memory.KEPT_OBJECTS + 1), "objects of sock_inode_cache"),
    ],
)
def test_more_than_is_allowed_is_a_leak(after, name):
    assert leaks(held(), after) == [name]


def test_threads_of_another_process_are_the_same_threads():
    before, after = held(), held()
    after.left.threads.clear()
    after.left.threads["vhost-99"] = 2
    assert leaks(before, after) == []


def test_large_caches_may_vary_by_their_part():
    assert leaks(held(**{"kmalloc-64": 100_000}), held(**{"kmalloc-64": 101_000})) == []
    assert leaks(held(**{"kmalloc-64": 100_000}), held(**{"kmalloc-64": 103_000})) == ["objects of kmalloc-64"]


def test_less_of_one_thing_does_not_make_up_for_more_of_another():
    before, after = held(dentry=9000), held(kernel=90_000, dentry=0, sock_inode_cache=1000)
    assert leaks(before, after) == ["objects of sock_inode_cache"]


def test_what_comes_and_goes_is_not_counted():
    found = memory.least([held(kernel=9, kmalloc=5), held(kernel=7, kmalloc=8), held(kernel=8, kmalloc=6)])
    assert (found.figures.kernel, found.left.objects["kmalloc"]) == (7, 5)


# The report.


def finished(**fields) -> report.Report:
    found = report.Report(seed=9, asked=20, kernel="7.2", cpu="max", modules="ours", interval=1)
    found.finished = True
    found.minutes = 20.0
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def test_a_soak_that_found_nothing_passes():
    growth = memory.compare(held(), held())
    found = finished(comparisons=[report.Comparison("host", 15.0, growth)])
    assert found.verdict.startswith("passed") and not found.failed
    assert "`SEED=9`" in found.markdown()


def test_growth_fails_it_and_is_named():
    growth = memory.compare(held(), held(sock_inode_cache=5000))
    found = finished(comparisons=[report.Comparison("host", 15.0, growth)])
    assert found.failed and "5000 more objects of sock_inode_cache in host" in found.verdict
    assert "| objects of sock_inode_cache | LEAK | 0 | 5000 | +5000 | 256 |" in found.markdown()


def test_a_failure_is_shown_in_full():
    found = finished(failure="the kernel of host complained (warning):\n  host| WARNING: at foo.c:1", finished=False)
    assert found.failed and found.verdict.endswith("the kernel of host complained (warning):")
    assert "WARNING: at foo.c:1" in found.markdown()


def test_an_interruption_is_neither_failed_nor_passed():
    found = finished(interrupted=True, minutes=3.0)
    assert not found.failed and found.verdict.startswith("interrupted after 3.0 of 20 minutes")
    assert "too short for a comparison" in found.verdict


def test_a_file_of_a_soak_that_was_killed_does_not_say_that_it_passed():
    assert finished(finished=False).verdict == "still running, or killed"


def test_what_the_emulation_did_is_told_and_not_held_against_anybody():
    found = finished(traps=["guest4: KVM gave up on it"])
    assert not found.failed
    assert "* guest4: KVM gave up on it" in found.markdown()


def test_every_row_has_a_cell_for_each_column(tmp_path):
    row = report.Row(1.0, 1, 10, 2, 3.5, 100, {"g2h": 1.234}, {"host": (1.0, 2.0, 3.0)}, 0, 7, 2.5)
    assert len(row.cells()) == len(report.HEAD)
    found = finished(rows=[row])
    found.write(tmp_path / "soak" / "soak.md")
    assert "| 1.0 | 1 | 10 | 2 | 4 | 100 | 1.23 |  |" in (tmp_path / "soak" / "soak.md").read_text()


# The command.


def test_the_clock_is_short():
    assert [session.clock(seconds) for seconds in (5, 272.4, 3600, 29_000)] == ["0:05", "4:32", "1h00", "8h03"]



def test_hours_and_minutes_add_up_and_one_hour_is_the_rule():
    assert command.parse(["--hours", "1.5", "--minutes", "3"]).seconds == 93 * 60
    assert command.parse([]).seconds == 3600
    assert command.parse(["--seed", "0"]).seed == 0


def test_the_second_interrupt_ends_it_at_once():
    interrupt = session.Interrupt()
    interrupt._catch()
    assert interrupt.event.is_set()
    with pytest.raises(KeyboardInterrupt):
        interrupt._catch()
