# SPDX-License-Identifier: GPL-2.0
"""The load: pairs of programs, one after the other, in several places at once.

Who is not disturbed has to succeed. Who is may fail, but not hang, and never get a wrong byte.
"""

import collections
import re
import threading
import time
from collections.abc import Callable

import rig
from rig import runs

from . import plan
from .gate import Gate, Ticket
from .machines import PROVISIONAL, Failure, Machines

# Ports of all workers; each has some to itself, of which a pair takes three.
PORTS = 6000
PORTS_OF_WORKER = 300

START_TIMEOUT = 60.0
# The programs give up a peer that does not answer after 60 s, and a pair takes 1-10 s.
PASS_TIMEOUT = 180.0
# A server has nothing more to do when its client is at its end.
SERVER_TIMEOUT = 60.0

# What the programs say of bytes, messages and connections that are not what was sent.
WRONG = re.compile(
    r"other bytes between|byte \d+ of the stream is|is another|an answer|a part was sent|panicked|"
    r"connection \d+: \[\d|data on a connection that carries none|request of unknown kind"
)


class Counts:
    """What was done, by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.passes: collections.Counter[str] = collections.Counter()
        self.disturbed = 0
        self.bytes = 0
        self.connections = 0

    def add(self, work: plan.Pass) -> None:
        with self._lock:
            self.passes[work.kind] += 1
            self.bytes += work.bytes
            self.connections += work.connections

    def add_disturbed(self) -> None:
        with self._lock:
            self.disturbed += 1


class Worker(threading.Thread):
    """Runs pairs of programs between two machines until it is told to stop."""

    def __init__(
        self,
        machines: Machines,
        lane: str,
        index: int,
        seed: int,
        number: int,
        counts: Counts,
        stopping: threading.Event,
        fail: Callable[[BaseException], None],
    ):
        super().__init__(name=f"{lane} {index}", daemon=True)
        self.machines, self.lane, self.counts, self.stopping, self.fail = machines, lane, counts, stopping, fail
        self.active, self.passive = plan.LANES[lane]
        self._passes = plan.passes(seed, number, lane, index)
        self._ports = PORTS + PORTS_OF_WORKER * (list(plan.LANES).index(lane) * plan.WORKERS + index)

    @property
    def gate(self) -> Gate:
        """The one of the guest, if there is one."""
        return self.machines.gates[gate_of(self.lane)]

    @property
    def cid(self) -> int:
        if self.active == self.passive:
            return plan.CID_LOCAL
        return plan.GUESTS.get(self.passive, plan.CID_HOST)

    def run(self) -> None:
        try:
            for number, work in enumerate(self._passes):
                ticket = None if self.stopping.is_set() else self.gate.enter(self.stopping)
                if ticket is None:
                    return
                try:
                    self._pass(ticket, work, self._ports + 3 * (number % (PORTS_OF_WORKER // 3)))
                finally:
                    self.gate.leave(ticket)
        except BaseException as error:
            self.fail(error)

    def _pass(self, ticket: Ticket, work: plan.Pass, port: int) -> None:
        ticket.lane, ticket.kind = self.lane, work.kind
        try:
            self._programs(ticket, work, port)
            self.counts.add(work)
        except (rig.CommandFailed, rig.MachineError, rig.CommandTimeout, Unexpected) as error:
            self._judge(ticket, work, error)
        finally:
            for command in (ticket.client, ticket.server):
                self._end(command)

    def _programs(self, ticket: Ticket, work: plan.Pass, port: int) -> None:
        active, passive = self.machines.machine(self.active), self.machines.machine(self.passive)
        server = passive.start([self.machines.program(passive, work.program), *arguments(work.server, None, port)])
        ticket.take("server", server)
        await_line(server, "listening", START_TIMEOUT * runs.patience())
        client = active.start([self.machines.program(active, work.program), *arguments(work.client, self.cid, port)])
        ticket.take("client", client)
        if work.held:
            await_line(client, '"held"', PASS_TIMEOUT * runs.patience())
            time.sleep(work.held)
            client.close_input()
        client.wait(PASS_TIMEOUT * runs.patience())
        if work.answer:
            output = server.wait(SERVER_TIMEOUT * runs.patience()).stdout
            if output.splitlines()[-1] != work.answer:
                raise Unexpected(f"the server said {output.splitlines()[-1]!r}, not {work.answer!r}")

    def _judge(self, ticket: Ticket, work: plan.Pass, error: Exception) -> None:
        """What did not succeed: a disturbance explains much of it."""
        said = "".join(command.stdout + command.stderr for command in (ticket.client, ticket.server) if command)
        whole = f"{self.lane}: {work.kind}: {' '.join(work.client)}: {error}\nthe programs said:\n{said}"
        if wrong := WRONG.search(said):
            raise Failure(f"wrong data ({wrong[0]}): {whole}")
        if isinstance(error, rig.CommandTimeout) or hangs(error):
            raise Failure(f"a program hangs: {whole}") from error
        if not self._is_explained(ticket):
            raise Failure(whole) from error
        self.counts.add_disturbed()

    def _is_explained(self, ticket: Ticket) -> bool:
        """Whether somebody disturbed it, if only the emulation, which shows a little later."""
        if ticket.disturbed:
            return True
        trapped = self.machines.trapped_soon(lambda trapped: trapped.name in (self.active, self.passive))
        # Or somebody else has found it, and booted it again.
        return trapped is not None or ticket.disturbed

    def _end(self, command: rig.Command | None) -> None:
        try:
            if command:
                command.kill()
        except rig.MachineError as error:
            # Of all else whoever looks after the machine knows.
            if hangs(error):
                raise


class Unexpected(Exception):
    """Programs ended well, and said something else than they should."""


def await_line(command: rig.Command, text: str, timeout: float) -> None:
    """Waits for what a program says; one that has ended without it does not hang."""
    try:
        command.wait_for(text, timeout)
    except rig.CommandTimeout:
        if command.running:
            raise
        raise rig.CommandFailed(command.arguments, f"ended before it said {text!r}", command.stderr) from None


def hangs(error: Exception) -> bool:
    """Whether somebody has just found out that a machine hangs, or a program that cannot be killed."""
    return isinstance(error, rig.MachineHung) and PROVISIONAL not in str(error)


def gate_of(lane: str) -> str:
    """Of the places of a lane the one that is disturbed: its guest, if it has one."""
    return next((name for name in plan.LANES[lane] if name in plan.GUESTS), "host")


def arguments(words: tuple[str, ...], cid: int | None, port: int) -> list[str]:
    """The words of a plan, with CID and port where the program wants them."""
    known = {"CID": str(cid), "PORT": str(port)}
    if "PORT" in words:
        return [known.get(word, word) for word in words]
    return [*words, *(["--cid", str(cid)] if cid is not None else []), "--port", str(port)]
