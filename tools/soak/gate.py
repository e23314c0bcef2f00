# SPDX-License-Identifier: GPL-2.0
"""Who passes while a place is disturbed, and whose failure is the disturbance's."""

import threading
import time

from rig import Command

# How often somebody who waits looks whether it is time to stop.
GLANCE = 0.2


class Ticket:
    """A pair of programs on its way."""

    def __init__(self) -> None:
        # Where it is, and what the programs do.
        self.lane = self.kind = ""
        # Whether somebody may have broken its connections.
        self.disturbed = False
        # Whether both programs have to go, also one that is only being started.
        self.killed = False
        # The one that connects, and the one that listens.
        self.client: Command | None = None
        self.server: Command | None = None

    def take(self, end: str, command: Command) -> None:
        """Takes note of a program; `end` is the name of one of the two."""
        setattr(self, end, command)
        if self.killed:
            command.kill()

    def kill(self) -> None:
        """Ends both programs, which is a disturbance."""
        self.disturbed = self.killed = True
        for command in (self.client, self.server):
            if command:
                command.kill()


class Gate:
    """Pairs of programs enter while it is open, and are disturbed when it closes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = self._disturbing = False
        self._inside: list[Ticket] = []

    def enter(self, stop: threading.Event) -> Ticket | None:
        """Waits until it is open; None when it is time to stop."""
        with self._changed:
            while not self._open:
                if stop.is_set():
                    return None
                self._changed.wait(GLANCE)
            ticket = Ticket()
            ticket.disturbed = self._disturbing
            self._inside.append(ticket)
            return ticket

    def leave(self, ticket: Ticket) -> None:
        with self._changed:
            self._inside.remove(ticket)
            self._changed.notify_all()

    def close(self) -> None:
        """From now on whatever those inside say of their connections is explained."""
        with self._changed:
            self._open = False
            for ticket in self._inside:
                ticket.disturbed = True

    def open(self, disturbing: bool = False) -> None:
        """`disturbing` is for a disturbance that goes on, for whoever enters."""
        with self._changed:
            self._open, self._disturbing = True, disturbing
            self._changed.notify_all()

    @property
    def inside(self) -> list[Ticket]:
        with self._changed:
            return list(self._inside)

    def wait_empty(self, timeout: float) -> bool:
        """Whether all that were inside have left in time."""
        deadline = time.monotonic() + timeout
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, max(0.0, deadline - time.monotonic()))
