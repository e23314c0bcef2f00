# SPDX-License-Identifier: GPL-2.0
"""Restarts and faults, in the middle of the load."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import rig
from rig import runs, transports

from . import plan
from .gate import Gate, Ticket
from .machines import Failure, Machines
from .plan import Disturbance
from .traffic import PASS_TIMEOUT, gate_of

DRIVERS = "/sys/bus/virtio/drivers"
NAMES = {"c": "vmw_vsock_virtio_transport", "rust": "virtio_transport_rs"}

# A device that was plugged in is found some time later.
AT_ONCE = 30.0

# Connections of a device that goes are reset at once.
NOTICE = 5.0

# Programs that write all the time, and so are in the middle of it when they are killed.
WRITING = ("bulk", "streams", "seqpacket")

FAULTS = "/sys/kernel/debug/failslab"
# Of so many allocations of the modules one fails, on the average.
ONE_IN = 50


def kinds() -> dict[str, tuple[str, ...]]:
    """Those that the kernel under test allows."""
    found = {name: tuple(targets) for name, targets in plan.DISTURBANCES.items()}
    if runs.configured("CONFIG_FAILSLAB") and runs.configured("CONFIG_FAULT_INJECTION_STACKTRACE_FILTER"):
        found |= {name: tuple(targets) for name, targets in plan.SHORTAGE.items()}
    return found


def do(machines: Machines, what: Disturbance) -> None:
    """Disturbs, and has everything work again."""
    ACTIONS[what.kind](machines, what)


@contextlib.contextmanager
def closed(machines: Machines, *names: str) -> Iterator[None]:
    """Nobody enters, and those inside may fail."""
    gates = [machines.gates[name] for name in names]
    for gate in gates:
        gate.close()
    yield
    for gate in gates:
        gate.open()


def linger(gate: Gate) -> None:
    """Leaves time to notice that the peer is gone, while it is. Who was just connecting goes on to do so for
    a minute; that nobody hangs is seen to by traffic.py."""
    gate.wait_empty(NOTICE * runs.patience())


def kill_programs(gate: Gate) -> None:
    for ticket in gate.inside:
        ticket.kill()
    if not gate.wait_empty(PASS_TIMEOUT * runs.patience()):
        raise Failure("programs were killed, and do not end")


# Guests.


def kill_guest(machines: Machines, what: Disturbance) -> None:
    with closed(machines, what.target):
        machines.kill(what.target)
        linger(machines.gates[what.target])
        machines.boot(what.target)


def reset_guest(machines: Machines, what: Disturbance) -> None:
    with closed(machines, what.target):
        machines.check_logs()
        machines.guest(what.target).reset()
        machines.equip(what.target)


def pause_guest(machines: Machines, what: Disturbance) -> None:
    """Connections stay, and nothing is lost."""
    monitor = machines.guest(what.target).monitor
    monitor.execute("stop")
    time.sleep(what.length)
    monitor.execute("cont")


def unplug(machines: Machines, what: Disturbance) -> None:
    guest = machines.guest(what.target)
    with closed(machines, what.target):
        guest.unplug_vsock()
        linger(machines.gates[what.target])
        guest.plug_vsock()
        wait_for_driver(machines, guest)


def rebind(machines: Machines, what: Disturbance) -> None:
    guest = machines.guest(what.target)
    with closed(machines, what.target):
        (name,) = bound(machines, guest)
        driver = f"{DRIVERS}/{NAMES[machines.implementation]}"
        guest.shell(f"echo {name} > {driver}/unbind")
        linger(machines.gates[what.target])
        guest.shell(f"echo {name} > {driver}/bind")
        wait_for_driver(machines, guest)


def bound(machines: Machines, guest: rig.Guest) -> list[str]:
    """The devices that the driver has."""
    names = guest.run(["ls", f"{DRIVERS}/{NAMES[machines.implementation]}"]).stdout.split()
    return [name for name in names if name.startswith("virtio")]


def wait_for_driver(machines: Machines, guest: rig.Guest) -> None:
    deadline = time.monotonic() + AT_ONCE * runs.patience()
    while not bound(machines, guest):
        if time.monotonic() > deadline:
            raise Failure(f"{guest.name} does not find its device")
        time.sleep(0.2)


# Modules.


def exchange_guest(machines: Machines, what: Disturbance) -> None:
    guest = machines.guest(what.target)
    with closed(machines, what.target):
        kill_programs(machines.gates[what.target])
        exchange(machines, guest, "guest")


def exchange_host(machines: Machines, what: Disturbance) -> None:
    """The guests lose their devices under load."""
    with closed(machines, *plan.GUESTS):
        try:
            for name in plan.GUESTS:
                machines.guest(name).unplug_vsock()
            for name in plan.GUESTS:
                linger(machines.gates[name])
                # Who still connects has the module.
                kill_programs(machines.gates[name])
            exchange(machines, machines.host, "host")
            for name in plan.GUESTS:
                machines.guest(name).plug_vsock()
            for name in plan.GUESTS:
                wait_for_driver(machines, machines.guest(name))
        except rig.MachineError:
            # Nobody knows who has a device.
            if trap := machines.trapped():
                for name in plan.GUESTS:
                    machines.kill(name)
                raise trap from None
            raise


def exchange_loopback(machines: Machines, what: Disturbance) -> None:
    with closed(machines, what.target):
        kill_programs(machines.gates[what.target])
        exchange(machines, machines.host, "loopback")


def exchange(machines: Machines, machine: rig.Host | rig.Guest, role: str) -> None:
    """rmmod and insmod."""
    machine.unload(role)
    if left := transports.loaded(machine, role):
        raise Failure(f"{machine.name} still has {', '.join(left)}")
    machine.load(role, machines.implementation)


# Programs.


def chosen(machines: Machines, what: Disturbance) -> Ticket | None:
    """A pair of programs of the lane that is at work."""
    tickets = [ticket for ticket in machines.gates[gate_of(what.target)].inside if ticket.lane == what.target]
    tickets = [ticket for ticket in tickets if ticket.client and ticket.server and ticket.client.running]
    writing = [ticket for ticket in tickets if ticket.kind in WRITING]
    candidates = writing or tickets
    return candidates[int(what.choice * len(candidates))] if candidates else None


def wait_for_programs(machines: Machines, what: Disturbance) -> Ticket:
    deadline = time.monotonic() + AT_ONCE * runs.patience()
    while (ticket := chosen(machines, what)) is None:
        if time.monotonic() > deadline:
            raise Failure(f"{what.target}: no programs are at work")
        time.sleep(0.1)
    return ticket


def program(end: str, action: Callable[[Ticket, rig.Command, float], None]):
    """Something that happens to the client, or to the server, of a pair."""

    def disturb(machines: Machines, what: Disturbance) -> None:
        ticket = wait_for_programs(machines, what)
        action(ticket, getattr(ticket, end), what.length)

    return disturb


def kill(ticket: Ticket, command: rig.Command, seconds: float) -> None:
    """In the middle of a write, so that its peer is reset with bytes that nobody has read."""
    ticket.disturbed = True
    command.kill()


def stop(ticket: Ticket, command: rig.Command, seconds: float) -> None:
    """For some time; then it goes on, and nothing is lost."""
    command.signal(signal.SIGSTOP)
    time.sleep(seconds)
    command.signal(signal.SIGCONT)


# Memory.


def starve(machines: Machines, what: Disturbance) -> None:
    """Some of what the modules ask for is not to be had."""
    machine = machines.machine(what.target)
    names = [name for name in plan.LANES if what.target in plan.LANES[name]]
    with closed(machines, *{gate_of(name) for name in names}):
        # Those who come while memory is short are to be disturbed, too.
        gates = [machines.gates[gate_of(name)] for name in names]
        for gate in gates:
            gate.open(disturbing=True)
        for module in modules(machine):
            set_faults(machine, *code(machine, module))
            time.sleep(what.length)
        machine.shell(f"echo 0 > {FAULTS}/probability")
        for gate in gates:
            gate.close()
        for gate in gates:
            linger(gate)


def modules(machine: rig.Host | rig.Guest) -> list[str]:
    known = {name for role in transports.ROLES.values() for name in role.own}
    return [name for name in machine.loaded_modules() if name in known]


def code(machine: rig.Host | rig.Guest, module: str) -> tuple[int, int]:
    """Where the functions of a module begin, and where the last of them does."""
    lines = machine.shell(f"grep -i ' t .*\\[{module}\\]' /proc/kallsyms").stdout.splitlines()
    addresses = [int(line.split()[0], 16) for line in lines]
    return min(addresses), max(addresses)


def set_faults(machine: rig.Host | rig.Guest, start: int, end: int) -> None:
    """Has some allocations fail that have code from here to there on the stack."""
    settings = {
        "require-start": start,
        "require-end": end,
        "stacktrace-depth": 32,
        "interval": 1,
        "space": 0,
        "times": -1,
        "verbose": 0,
        "task-filter": "N",
        "ignore-gfp-wait": "N",
        "cache-filter": "N",
        "probability": 100 // ONE_IN,
    }
    machine.shell("".join(f"echo {value} > {FAULTS}/{name}\n" for name, value in settings.items()))


ACTIONS: dict[str, Callable[[Machines, Disturbance], None]] = {
    "guest killed": kill_guest,
    "guest reset": reset_guest,
    "guest paused": pause_guest,
    "device unplugged": unplug,
    "driver unbound": rebind,
    "guest's module exchanged": exchange_guest,
    "host's module exchanged": exchange_host,
    "loopback module exchanged": exchange_loopback,
    "client killed": program("client", kill),
    "server killed": program("server", kill),
    "client stopped": program("client", stop),
    "server stopped": program("server", stop),
    "memory short": starve,
}
