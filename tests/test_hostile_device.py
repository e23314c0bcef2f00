# SPDX-License-Identifier: GPL-2.0
"""The guest's driver with a device that breaks the protocol: it may cost a connection, or the device, and no more."""

import typing

import pytest
import rig
import vhost_user
from rig import runs

pytestmark = pytest.mark.hostile

CID = 6

# 20,000 steps in all, if they are not asked for in another way.
SEEDS = (1, 2, 3, 4)
STEPS = 5000

# Lives of the event queue, each of which ends when the queue is broken, and steps in each.
EVENT_LIVES = 8
EVENT_STEPS = 100

# QEMU's name for the device's part that is the same on every bus.
QUEUES = "/machine/peripheral/vsock/virtio-backend"
EVENT_QUEUE = 2


class Sizes(typing.NamedTuple):
    """Packets of a peer that wants to cost much memory."""

    sizes: str
    window: int = 262_144
    options: str = ""


# What a connection holds above 4/3 of its window: a run of which one byte was not read, a page that
# has just been begun, and places for runs.
CONSTANT = 48 * 1024

# Sizes at the edges of what is kept and what is copied: 3/4 of 4 KiB and of 32 KiB.
SIZES = {
    "single bytes": Sizes("1", 8192),
    "copied, 129": Sizes("129"),
    "copied, 257": Sizes("257"),
    "copied, 2049": Sizes("2049"),
    "just copied": Sizes("3071"),
    "just kept": Sizes("3072"),
    "pages": Sizes("4096"),
    "a page and a byte": Sizes("4096,1"),
    "a page and all sizes of copies": Sizes("4096,3071,770"),
    "kept, filled up, and a byte": Sizes("3072,1024,1"),
    "just copied, large": Sizes("24575"),
    "just kept, large": Sizes("24576"),
    "large and a byte": Sizes("32768,1"),
    "whole packets": Sizes("65536"),
    "all but one byte read": Sizes("32768", options="--nibble"),
    "messages of 64 bytes": Sizes("64", 65_536, options="--seqpacket"),
    "messages of a page and a byte": Sizes("4096,1", options="--seqpacket"),
}

# 15 ms for a step on a quiet machine, and 9 s for sockets that wait for their peers.
STEP_TIMEOUT = 0.15


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        seed = metafunc.config.getoption("seed")
        metafunc.parametrize("seed", SEEDS if seed is None else (seed,))


@pytest.fixture(scope="module")
def machines(host):
    with vhost_user.device(host, CID) as device, host.guest(cid=CID, vhost_user=vhost_user.SOCKET) as guest:
        guest.load("guest", "rust")
        with vhost_user.obeying(device, guest):
            yield device, guest
        # Whatever it went through, the driver can be unloaded.
        guest.unload("guest")


def run(machines, task: str, seconds: float, again: str = "") -> str:
    """What the device has to say of a task; of one that fails, also what the guest was doing."""
    device, guest = machines
    try:
        return device.run(task, seconds * runs.patience())
    except (AssertionError, rig.CommandTimeout) as error:
        state = vhost_user.puppet_state(guest)
        raise AssertionError(f"{error}\n{again}\n{guest.console.tail()}\n{state}") from None


def test_the_kernel_and_other_connections_survive(request, machines, seed):
    steps = request.config.getoption("steps") or STEPS
    again = f"to repeat it: make test T=the_kernel_and_other_connections SEED={seed} STEPS={steps}"
    print(run(machines, f"attack --seed {seed} --steps {steps}", 60 + steps * STEP_TIMEOUT, again))


def test_lies_about_idle_rings_are_noticed(machines):
    """Nobody has anything to send, so that nothing but the device's interrupt leads to the ring."""
    print(run(machines, "attack --seed 1 --steps 12 --only use_an_id_that_is_none", 120))


def events(machines, seed: int, steps: int) -> str:
    """Steps on the event queue as it is now."""
    _, guest = machines
    queue = guest.monitor.execute("x-query-virtio-queue-status", path=QUEUES, queue=EVENT_QUEUE)
    names = {"size": "vring-num", "descriptors": "vring-desc", "available": "vring-avail", "used": "vring-used"}
    place = " ".join(f"--{option} {queue[name]}" for option, name in names.items())
    return run(machines, f"events --seed {seed} --steps {steps} {place}", 60 + steps * STEP_TIMEOUT)


def test_events_that_are_none_cost_the_device_at_most(request, machines):
    first = request.config.getoption("seed") or 1
    steps = request.config.getoption("steps") or EVENT_STEPS
    for seed in range(first, first + EVENT_LIVES):
        print(events(machines, seed, steps))


@pytest.mark.parametrize("name", SIZES)
def test_a_connection_holds_four_thirds_of_its_window(machines, name):
    if runs.patience() > 1:
        pytest.skip("this kernel's checks hold memory of their own for each allocation")
    load = SIZES[name]
    task = f"memory --window {load.window} --sizes {load.sizes} {load.options}"
    words = run(machines, task, 300).split()
    measured = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    print(measured)
    assert measured["held"] <= load.window * 4 / 3 + CONSTANT
