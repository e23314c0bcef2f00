# SPDX-License-Identifier: GPL-2.0
"""A whole soak: rounds of load and disturbances, with a look at everything after each."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import rig
from bench import load
from bench.progress import Progress
from rig import acceleration, runs, transports

from . import disturb, memory, plan, report, traffic
from .machines import Failure, Machines, Trapped, packages

# After the last disturbance of a round there is load for so long, and a table has so many rows.
CALM = 6.0
ROWS = 40
ROW_LEAST = 60.0

TICK = 0.2

# Our driver in the guest has buffers of 2 MiB or of 512 KiB, as the last packets were large or small. So many
# small ones in a row decide it.
SMALL_PACKETS = 600

STREAM, PING = f"stream:{64 * plan.KIB}:1", "ping:64"
TIMING = load.Timing(100, 400)

# How often something is tried in which the emulation ends guests.
ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    seconds: float
    seed: int
    # "rust", or "c" to see whether something is ours.
    implementation: str
    output: pathlib.Path


class Interrupt:
    """Ctrl-C, once: the soak is over, and what it can say is said. Twice: at once."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def _catch(self, *_: object) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._catch) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Soak:
    """One host, from its boot to its end."""

    def __init__(self, wanted: Wanted, host: rig.Host, found: report.Report, interrupt: Interrupt, progress: Progress):
        self.wanted, self.host, self.report, self.interrupt = wanted, host, found, interrupt
        self.progress = progress
        self.machines = Machines(host, wanted.implementation, progress.say)
        found.traps = self.machines.traps
        self._failures: list[BaseException] = []
        self._before: memory.Before | None = None
        # Of the row that is being filled.
        self._rounds = 0
        self._counts = traffic.Counts()
        self._started = time.monotonic()
        self._log_sizes: dict[int, int] = {}

    # Time.

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def over(self) -> bool:
        return self.interrupt.event.is_set() or self.elapsed >= self.wanted.seconds

    def _say(self, text: str) -> None:
        """What is being done, and when."""
        self.report.minutes = self.elapsed / 60
        self.progress.say(f"[{clock(self.elapsed)} of {clock(self.wanted.seconds)}] {text}")

    # The run.

    def run(self) -> None:
        self.machines.prepare()
        self.machines.boot_all()
        self._started = time.monotonic()
        self._log_lines()
        try:
            self._rounds_to_the_end()
        except BaseException:
            self._note_row()
            self._note_faults()
            raise
        self._whatever_the_emulation_does(self.machines.end_guests)

    def _rounds_to_the_end(self) -> None:
        deck = rounds = 0
        for each in plan.rounds(self.wanted.seed, disturb.kinds()):
            if self.interrupt.event.is_set() or (self.over and rounds):
                break
            if each.deck != deck:
                deck = each.deck
                self._whatever_the_emulation_does(self._remember)
            self._round(each)
            # At least one comes after the warm-up.
            rounds += self._before is not None
        if self._rounds:
            self._whatever_the_emulation_does(self._row)
        if rounds:
            self._whatever_the_emulation_does(self._compare)

    def _round(self, each: plan.Round) -> None:
        self._say(f"round {each.number}")
        stopping = threading.Event()
        workers = [
            traffic.Worker(
                self.machines, lane, index, self.wanted.seed, each.number, self._counts, stopping, self._failures.append
            )
            for lane in plan.LANES
            for index in range(plan.WORKERS)
        ]
        self._open()
        for worker in workers:
            worker.start()
        try:
            for what in each.disturbances:
                self._wait(what.after)
                if self.interrupt.event.is_set():
                    break
                self._disturb(what)
            self._wait(CALM)
        finally:
            stopping.set()
        self._join(workers)
        self._whatever_the_emulation_does(self._settle)
        self._rounds += 1
        self.report.minutes = self.elapsed / 60
        if self.elapsed >= self.report.interval * 60 * (len(self.report.rows) + 1):
            self._whatever_the_emulation_does(self._row)

    def _open(self) -> None:
        for gate in self.machines.gates.values():
            gate.open()

    def _look_around(self) -> None:
        """Whether something has happened meanwhile."""
        if self._failures:
            raise self._failures[0]
        if trap := self.machines.trapped():
            self._revive(trap)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds * runs.patience()
        while time.monotonic() < deadline and not self.interrupt.event.is_set():
            self._look_around()
            time.sleep(TICK)

    def _join(self, workers: list[traffic.Worker]) -> None:
        deadline = time.monotonic() + 2 * traffic.PASS_TIMEOUT * runs.patience()
        while alive := [worker.name for worker in workers if worker.is_alive()]:
            if time.monotonic() > deadline:
                raise Failure(f"these do not come to an end: {', '.join(alive)}")
            self._look_around()
            time.sleep(TICK)
        self._look_around()

    def _disturb(self, what: plan.Disturbance) -> None:
        self._say(str(what))
        try:
            with self.machines.noticing():
                disturb.do(self.machines, what)
            self.report.disturbances[what.kind] += 1
        except Trapped as trap:
            self._revive(trap)
        except Failure as error:
            # What a worker found may be why.
            self._look_around()
            raise Failure(f"{what}: {error}") from error

    def _revive(self, trap: Trapped) -> None:
        for gate in self.machines.gates.values():
            gate.close()
        self.machines.revive(trap)
        self._open()

    def _whatever_the_emulation_does(self, action: Callable[[], None]) -> None:
        """Does it again with other guests if the emulation ends one."""
        for _ in range(ATTEMPTS):
            try:
                with self.machines.noticing():
                    action()
                return
            except Trapped as trap:
                self._revive(trap)
        raise Failure("the emulation ends guests again and again")

    def _settle(self) -> None:
        """Everything is idle: nothing may be left, and nobody have complained."""
        self.machines.wait_until_closed()
        self.machines.check_logs()

    # What is found.

    def _row(self) -> None:
        """An interval is over."""
        speeds = self._speeds()
        self.machines.wait_until_closed()
        machines = {"host": self.host, "guest": self.machines.guest(plan.STEADY)}
        held = {name: memory.figures(machine) for name, machine in machines.items()}
        left = sum(len(memory.sockets(machine)) for machine in machines.values())
        self._note_row(speeds, held, left)

    def _note_row(
        self,
        speeds: Mapping[str, float] | None = None,
        held: Mapping[str, memory.Figures] | None = None,
        left: int | None = None,
    ) -> None:
        """With what is known of the machines, if they can be asked."""
        counts, self._counts = self._counts, traffic.Counts()
        self.report.passes += counts.passes
        self.report.minutes = self.elapsed / 60
        self.report.rows.append(
            report.Row(
                minutes=self.report.minutes,
                rounds=self._rounds,
                passes=counts.passes.total(),
                disturbed=counts.disturbed,
                mib=counts.bytes / plan.MIB,
                connections=counts.connections,
                speeds=speeds or {},
                memory={
                    name: tuple(kib / 1024 for kib in (each.available, each.unreclaimable, each.kernel))
                    for name, each in (held or {}).items()
                },
                sockets=left,
                log_lines=self._log_lines(),
                load=report.load_average(),
            )
        )
        self._rounds = 0
        self.report.write(self.wanted.output)

    def _note_faults(self) -> None:
        # Of a host that is lost there is nothing to know.
        with contextlib.suppress(rig.RigError):
            if faults := self.machines.last_faults():
                self.report.notes.append(f"guests had faults that they could not handle:\n\n```\n{faults}\n```")

    def _paths(self) -> dict[str, load.Path]:
        """Between the host and the guest that stays, and on the host."""
        guest, host = self.machines.guest(plan.STEADY), self.host
        return {
            "g2h": load.Path(guest, host, plan.CID_HOST),
            "h2g": load.Path(host, guest, plan.GUESTS[plan.STEADY]),
            "local": load.Path(host, host, plan.CID_LOCAL),
        }

    def _speeds(self) -> dict[str, float]:
        """Of one connection at a time, with nothing else going on."""
        found: dict[str, float] = {}
        with load.server(self.host), load.server(self.machines.guest(plan.STEADY)):
            for name, path in self._paths().items():
                with self.machines.noticing_late():
                    streamed, pinged = load.run(path, [STREAM, PING], TIMING)
                found[name] = streamed["bytes"] * 8e-9 / streamed["seconds"]
                found.setdefault("ping", pinged["p50"])
        return found

    def _log_lines(self) -> int:
        """New lines on all consoles; of guests that have ended nobody counts the last ones."""
        consoles = [self.host.console, *(boot.guest.console for boot in self.machines.boots.values())]
        lines = sum(console.text(self._log_sizes.get(id(console), 0)).count("\n") for console in consoles)
        self._log_sizes = {id(console): console.size for console in consoles}
        return lines

    def _looked(self) -> dict[str, memory.Held]:
        """What is compared is the host with the guest that stays."""
        self.machines.kill(plan.MORTAL)
        self._receive_small_packets()
        self.machines.wait_until_closed()
        return {"host": memory.look(self.host), plan.STEADY: memory.look(self.machines.guest(plan.STEADY))}

    def _receive_small_packets(self) -> None:
        """Has the guest that stays in the same state both times."""
        path, pinged = self._paths()["g2h"], 0.0
        with load.server(self.host):
            while pinged < SMALL_PACKETS:
                with self.machines.noticing_late():
                    (answer,) = load.run(path, [PING], TIMING)
                pinged += answer["count"]

    def _remember(self) -> None:
        """The warm-up is over, that of the host or that of a guest which had to be booted again."""
        steady = self.machines.boots[plan.STEADY]
        if self._before and steady.before:
            return
        self._say("looks at memory after the warm-up")
        looked = self._looked()
        self._before = self._before or memory.Before(self.elapsed, looked["host"])
        steady.before = steady.before or memory.Before(self.elapsed, looked[plan.STEADY])
        self.machines.boot_all()

    def _compare(self) -> None:
        self._say("looks at memory in the end")
        looked = self._looked()
        known = {"host": self._before, plan.STEADY: self.machines.boots[plan.STEADY].before}
        for name, before in known.items():
            if before is None:
                self.report.notes.append(f"{name} is not compared: the emulation has ended the one of the warm-up")
                continue
            growth = memory.compare(before.held, looked[name])
            self.report.comparisons.append(report.Comparison(name, (self.elapsed - before.seconds) / 60, growth))


def clock(seconds: float) -> str:
    """As hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def run(wanted: Wanted) -> report.Report:
    """Starts the machines and soaks; whatever happens, what was found is in the file."""
    modules = [getattr(role, wanted.implementation) for role in transports.ROLES.values()]
    if wanted.implementation == "rust":
        for name in {name for names in modules for name in names}:
            transports.built(name)
    packages()
    found = report.Report(
        seed=wanted.seed,
        asked=wanted.seconds / 60,
        kernel=os.environ["RVSOCK_RELEASE"],
        cpu=acceleration.cpu(),
        modules=", ".join(names[-1] for names in modules),
        interval=max(ROW_LEAST, wanted.seconds / ROWS) / 60,
    )
    interrupt, progress = Interrupt(), Progress()
    progress.say(f"soak of {found.asked:.0f} minutes, SEED={wanted.seed}; Ctrl-C: ends after the round; twice: at once")
    try:
        with interrupt.caught(), rig.host() as host:
            progress.say(f"logs of the kernels: {host.directory}")
            Soak(wanted, host, found, interrupt, progress).run()
        found.finished = True
    except (rig.RigError, Failure, Trapped) as error:
        found.failure = str(error)
    except KeyboardInterrupt:
        interrupt.event.set()
        found.finished = True
    except Exception as error:
        found.failure = f"the soak itself: {error!r}"
        raise
    finally:
        found.interrupted |= interrupt.event.is_set()
        found.write(wanted.output)
    return found
