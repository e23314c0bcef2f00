# SPDX-License-Identifier: GPL-2.0
"""What is done in which order. It follows from the seed alone, however long things take.

A run is a sequence of rounds: load everywhere, with some disturbances in the middle of it, then
silence. Disturbances and kinds of load are dealt from decks, so that each comes as often as the others.
"""

import dataclasses
import random
from collections.abc import Iterator, Sequence

# The guest that goes on from the beginning to the end, so that what its driver leaks adds up, and one that dies.
STEADY, MORTAL = "guest3", "guest4"
GUESTS = {STEADY: 3, MORTAL: 4}
CID_LOCAL = 1
CID_HOST = 2

# Where there is load: the machine that connects and the one that listens, and who can disturb it.
LANES = {
    "guest3 to host": (STEADY, "host"),
    "host to guest3": ("host", STEADY),
    "guest4 to host": (MORTAL, "host"),
    "host to guest4": ("host", MORTAL),
    "loopback": ("host", "host"),
}
# Pairs of programs at a time on each.
WORKERS = 2

# Which machines a disturbance can be about, or which lane.
DISTURBANCES: dict[str, Sequence[str]] = {
    "guest killed": [MORTAL],
    "guest reset": [MORTAL],
    "guest paused": [STEADY, MORTAL],
    "device unplugged": [STEADY, MORTAL],
    "driver unbound": [STEADY, MORTAL],
    "guest's module exchanged": [STEADY, MORTAL],
    "host's module exchanged": ["host"],
    "loopback module exchanged": ["host"],
    "client killed": list(LANES),
    "server killed": list(LANES),
    "client stopped": list(LANES),
    "server stopped": list(LANES),
}
# Only some kernels can.
SHORTAGE = {"memory short": ["host", STEADY, MORTAL]}

# Disturbances of a round, and seconds before each.
HAND = 4
PAUSE = (3.0, 9.0)

KIB, MIB = 1 << 10, 1 << 20


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """Something that is done in the middle of the load."""

    kind: str
    target: str
    # Seconds since the one before, or the beginning.
    after: float
    # Seconds, if it takes any.
    length: float
    # From 0 to 1: which of several.
    choice: float

    def __str__(self) -> str:
        return f"{self.kind} ({self.target})"


@dataclasses.dataclass(frozen=True)
class Round:
    """Load, and what disturbs it."""

    number: int
    # The number of the deck that it was dealt from: the first one is the warm-up.
    deck: int
    disturbances: tuple[Disturbance, ...]


@dataclasses.dataclass(frozen=True)
class Pass:
    """A program that connects and one that listens: which, and what becomes of them."""

    kind: str
    # "puppet" or "load".
    program: str
    server: tuple[str, ...]
    # CID and port are put in where it says so.
    client: tuple[str, ...]
    # The last line of the server, if it ends by itself.
    answer: str = ""
    # What is compared by the programs, and how many connections that takes.
    bytes: int = 0
    connections: int = 1
    # Seconds for which connections are held; 0 if the client ends by itself.
    held: float = 0.0


def rounds(seed: int, kinds: dict[str, Sequence[str]]) -> Iterator[Round]:
    """Rounds without an end."""
    draw = random.Random(f"{seed} rounds")
    number = 0
    deck = 0
    while True:
        cards = list(kinds)
        draw.shuffle(cards)
        for start in range(0, len(cards), HAND):
            hand = cards[start : start + HAND]
            yield Round(number, deck, tuple(disturbance(draw, kind, targets(kinds[kind], deck)) for kind in hand))
            number += 1
        deck += 1


def targets(all_of_them: Sequence[str], deck: int) -> Sequence[str]:
    """Those of a deck: in the warm-up everything happens to the guest that stays."""
    return [STEADY] if deck == 0 and STEADY in all_of_them else all_of_them


def disturbance(draw: random.Random, kind: str, targets: Sequence[str]) -> Disturbance:
    return Disturbance(
        kind, draw.choice(targets), round(draw.uniform(*PAUSE), 1), round(draw.uniform(1, 3), 1), draw.random()
    )


def passes(seed: int, number: int, lane: str, worker: int) -> Iterator[Pass]:
    """What one worker does in a round, without an end."""
    draw = random.Random(f"{seed} {number} {lane} {worker}")
    while True:
        deck = list(PASSES)
        draw.shuffle(deck)
        for make in deck:
            yield make(draw)


def size(draw: random.Random, least: int, most: int) -> int:
    """A number of bytes; small and large ones are equally likely."""
    return round(least * (most / least) ** draw.random())


def bulk(draw: random.Random) -> Pass:
    count = size(draw, 64 * KIB, 16 * MIB)
    client = ("send", "--bytes", str(count))
    return Pass("bulk", "puppet", ("receive",), client, f"{count} bytes came as they were sent", count)


def echo(draw: random.Random) -> Pass:
    """Request and response, on connections that are there at the same time."""
    connections, count = draw.randint(1, 40), size(draw, 1, 64 * KIB)
    client = ["echo", "--connections", str(connections), "--bytes", str(count)]
    client += ["--half-close"] if draw.random() < 0.5 else []
    return Pass("echo", "puppet", ("serve",), tuple(client), bytes=2 * connections * count, connections=connections)


def short(draw: random.Random) -> Pass:
    """Connections for a few bytes each, one after the other."""
    connections = draw.randint(10, 150)
    client = ("sequence", "--connections", str(connections))
    return Pass("short connections", "puppet", ("serve",), client, bytes=16 * connections, connections=connections)


def seqpacket(draw: random.Random) -> Pass:
    """Messages of several writers, for a reader that is slow."""
    writers, messages, pause = draw.randint(1, 12), draw.randint(10, 120), draw.randint(5, 50)
    total = writers * messages
    # It sleeps 2 s at most.
    every = max(1, total * pause // 2000)
    server = ("read-slowly", "--writers", str(writers), "--every", str(every), "--pause", str(pause))
    client = ("write", "--writers", str(writers), "--messages", str(messages))
    answer = f"{total} messages of {writers} writers came whole, in order"
    # A message has 2000 bytes on the average.
    return Pass("seqpacket", "puppet", server, client, answer, total * 2000, writers)


def full(draw: random.Random) -> Pass:
    """Connections that are filled, and never read from; they end with what nobody has read."""
    count, length = draw.randint(1, 8), size(draw, 64, 64 * KIB)
    client = ("hold", "CID", "PORT", str(count), str(length))
    return Pass(
        "full", "load", ("serve", "PORT"), client, connections=count, held=round(draw.uniform(0.5, 2), 1)
    )


def ping(draw: random.Random) -> Pass:
    client = ("run", "CID", "PORT", "0", "1000", f"ping:{size(draw, 1, 16 * KIB)}")
    return Pass("request-response", "load", ("serve", "PORT"), client)


def stream(draw: random.Random) -> Pass:
    connections = draw.randint(1, 6)
    test = f"stream:{size(draw, 64, 256 * KIB)}:{connections}"
    client = ("run", "CID", "PORT", "0", "1000", test)
    return Pass("streams", "load", ("serve", "PORT"), client, connections=connections + 1)


PASSES = (bulk, bulk, echo, short, seqpacket, full, ping, stream)
