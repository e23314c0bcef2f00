# SPDX-License-Identifier: GPL-2.0
"""The host VM: booted by virtme-ng, with the tree as its root."""

import contextlib
import itertools
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from . import acceleration, autopsy, programs, runs
from .channel import Channel
from .console import Console
from .errors import EmulationTrap, MachineError, MachineHung, MachineLost, RigError, UnprovenTrap, describe_status
from .guest import Guest
from .machine import Machine, in_use
from .monitor import HostMonitor

# 9 s on a quiet machine with two CPUs, 47 s with a load of 17.
BOOT_TIMEOUT = 180.0

# How often a machine is started that does not come up.
BOOTS = 3

# What a kernel prints begins with the time.
KERNEL_LINE = re.compile(r"^\[ *\d+\.\d+\] ", re.MULTILINE)

# no5lvl: nothing here needs the fifth level of page tables, and KASAN reports the memory of a kernel that has one as
# wild if an interrupt comes while identify_cpu() has not found out about it.
KERNEL_ARGUMENTS = """
console=ttyS0 loglevel=7 panic=-1 oops=panic printk.devkmsg=on mitigations=off tsc=reliable no_timer_check
nowatchdog unknown_nmi_panic audit=0 random.trust_cpu=on cryptomgr.notests net.ifnames=0 systemd.show_status=0 no5lvl
""".split()


# What QEMU says of resets of CPUs, in the directory of the run, and what it says there.
CPU_LOG = "host-cpu.log"
TRIPLE_FAULT = "Triple fault"
TRIPLE_FAULT_TEXT = (
    "It met a triple fault, without a word of its kernel. By all that is known this is a fault of the emulation of "
    "nested virtualization"
)


class SocketStream:
    """The rig's end of the host's virtio-serial port."""

    def __init__(self, end: socket.socket):
        self._socket = end

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> bytes:
        return self._socket.recv(1 << 16)


def virtme_command(
    memory: int, cpus: int, cpu: str, port: int, monitor: int, log: pathlib.Path, arguments: list[str]
) -> list[str]:
    """virtme-run is the part of virtme-ng that boots; vng adds what interactive use needs.

    `port` and `monitor` are descriptors of sockets; QEMU says in `log` what resets a CPU.
    """
    kernel = [f"--kopt={argument}" for argument in arguments]
    accelerator = acceleration.HARDWARE if acceleration.hardware() else acceleration.EMULATION
    return [
        *("virtme-run", "--kimg", str(runs.image()), "--mods", "auto", "--force-9p", "--disable-microvm"),
        *("--disable-kvm", "--disable-monitor", "--memory", f"{memory}M", "--cpus", str(cpus)),
        *(*kernel, "--qemu-opts", *accelerator, "-cpu", cpu, "-no-reboot"),
        *("-fsdev", "local,id=rig,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=rig,mount_tag=rig"),
        *("-device", "virtio-serial-pci,id=serial", "-chardev", f"socket,id=agent,fd={port}"),
        *("-device", "virtserialport,bus=serial.0,chardev=agent,name=rvsock.agent"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-d", "cpu_reset", "-D", str(log)),
    ]


def cpu_time(session: int) -> float:
    """Seconds of CPUs that the processes of a session have used, with those of theirs that have ended."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # Fields after the name, see proc_pid_stat(5): the session is the 6th, utime, stime, cutime and cstime
            # the 14th to 17th.
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def is_fault_of_emulation(guest: Guest, error: BaseException) -> bool:
    """Whether it is the emulation for which a guest did not come up: one that hangs when its kernel
    has begun to speak may do so for a fault of ours."""
    if isinstance(error, MachineHung):
        return not KERNEL_LINE.search(guest.console.text())
    return isinstance(error, EmulationTrap)


class Host(Machine):
    """The host VM; use `host()`."""

    def __init__(self, run: runs.Run, memory: int, cpus: int, cpu: str):
        super().__init__()
        self.name = "host"
        self.cpu = cpu
        self.directory = run.path
        self.agent = programs.agent()
        self._guests: list[Guest] = []
        self.console = Console(self.name, run.path / "host.log", self._fail)
        self._boot(memory, cpus)

    def _boot(self, memory: int, cpus: int) -> None:
        session = secrets.token_hex(8)
        arguments = [
            *KERNEL_ARGUMENTS,
            # The first init= counts, virtme-run's own comes last.
            f"init={runs.RIG / 'host-init'}",
            f"rig_agent={self.agent}",
            f"rig_session={session}",
        ]
        ours, theirs = socket.socketpair()
        # virtme-run adds a second, slower kernel console if it can open its error output, which
        # it cannot if that is a socket.
        errors, their_errors = socket.socketpair()
        self._monitor, their_monitor = socket.socketpair()
        given = [theirs.fileno(), their_monitor.fileno()]
        command = virtme_command(memory, cpus, self.cpu, *given, self.directory / CPU_LOG, arguments)
        self._process = subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=their_errors,
            pass_fds=given,
            start_new_session=True,
        )
        for end in (theirs, their_errors, their_monitor):
            end.close()
        self._follow(self._process.stdout, self.directory / "host-qemu.log", errors)
        self.channel = Channel(self.name, SocketStream(ours), session, self.console.tail, self._autopsy)

    def _follow(self, output, log: pathlib.Path, errors: socket.socket) -> None:
        def read_console() -> None:
            while data := os.read(output.fileno(), 1 << 16):
                self.console.feed(data)
            self._process.wait()
            self.console.feed(b"")

        def read_errors() -> None:
            with open(log, "wb", buffering=0) as file:
                while data := errors.recv(1 << 16):
                    file.write(data)

        for target in (read_console, read_errors):
            threading.Thread(target=target, name=f"host {target.__name__}", daemon=True).start()

    def _fail(self, error: MachineError) -> None:
        log = self.directory / "host-qemu.log"
        words = [f"QEMU said: {log.read_text(errors='replace').strip()}"] if log.exists() else []
        if (status := self._process.poll()) is not None:
            words.append(f"QEMU {describe_status(status)}")
        kind = type(error)
        if kind is MachineLost and not self.console.orderly_end and self._met_triple_fault():
            kind = UnprovenTrap
            words.append(TRIPLE_FAULT_TEXT)
        self.channel.fail(kind("\n  ".join([str(error), *words])))

    def _met_triple_fault(self) -> bool:
        """Whether the emulation saw a fault of a CPU that had no handler any more, of which nothing was printed."""
        log = self.directory / CPU_LOG
        return not acceleration.hardware() and log.exists() and TRIPLE_FAULT in log.read_text(errors="replace")

    def _autopsy(self) -> str:
        return autopsy.of_processors(lambda: HostMonitor(self._monitor, autopsy.PATIENCE))

    def wait_up(self) -> None:
        """Until the agent answers."""
        self.channel.wait_ready(BOOT_TIMEOUT * runs.patience())

    def wait_ready(self) -> None:
        self.wait_up()
        if not self.run(["test", "-e", "/dev/kvm"], check=False).status == 0:
            return
        if "svm" in self.run(["sh", "-c", "cat /proc/cpuinfo"]).stdout.split():
            self._require_nested_paging()

    def _require_nested_paging(self) -> None:
        if "Nested Paging enabled" not in self.run(["dmesg"]).stdout:
            raise RigError(
                f"the host VM has no nested paging (CPU model {self.cpu!r}): guests would hang; "
                "use a model with NPT, such as max"
            )

    def cpu_time(self) -> float:
        """Seconds of the machine's CPUs that the VM has used."""
        return cpu_time(self._process.pid)

    @property
    def guests(self) -> list[Guest]:
        """The guests that run now."""
        return list(self._guests)

    def check_kernel_logs(self) -> None:
        """Raises KernelReport if the kernel of the host or of a guest complained since the last check."""
        for machine in [self, *self._guests]:
            if not machine.closed:
                machine.check_kernel_log()

    @contextlib.contextmanager
    def guest(self, cid: int = 3, **options) -> Iterator[Guest]:
        """A guest with this CID; see `Guest` for the options."""
        guest = self._boot_guest(cid, **options)
        try:
            yield guest
            if not guest.closed:
                guest.check_leaks()
                guest.check_kernel_log()
        except Exception:
            if trap := guest.emulation_trap():
                raise trap
            raise
        finally:
            self._end_guest(guest)

    def _boot_guest(self, cid: int, **options) -> Guest:
        """Starts a guest, anew if it did not come up: so far it has done nothing for us.

        In some hundred boots one ends for a fault of the emulation, or hangs before it says a word.
        """
        for boot in itertools.count(1):
            guest = Guest(self, cid, **options)
            self._guests.append(guest)
            try:
                guest.wait_ready()
                return guest
            except BaseException as error:
                self._end_guest(guest)
                if boot == BOOTS or not is_fault_of_emulation(guest, error):
                    raise
                print(f"rig: warning: {guest.name} is booted again: {error}", file=sys.stderr)

    def _end_guest(self, guest: Guest) -> None:
        self._guests.remove(guest)
        guest.close()

    def close(self) -> None:
        """Ends the VM; it has nothing on disk that would need a shutdown."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def boot(memory: int, cpus: int, cpu: str) -> tuple[Host, runs.Run]:
    """Starts a host VM, anew if it hung: until its agent answers it has no module but its own.

    One of some hundreds was seen to hang, as the timer of a CPU did not fire any more.
    """
    for attempt in itertools.count(1):
        with contextlib.ExitStack() as stack:
            run = stack.enter_context(contextlib.closing(runs.Run()))
            machine = stack.enter_context(contextlib.closing(Host(run, memory, cpus, cpu)))
            try:
                machine.wait_up()
                stack.pop_all()
                return machine, run
            except MachineHung as error:
                if attempt == BOOTS:
                    raise
                print(f"rig: warning: the host is booted again: {error}", file=sys.stderr)


@contextlib.contextmanager
def host(*, memory: int = 3072, cpus: int = 2, cpu: str | None = None) -> Iterator[Host]:
    """A running host VM; `memory` in MiB, `cpu` a QEMU model with its flags."""
    machine, run = boot(memory, cpus, cpu or acceleration.cpu())
    with in_use(machine, run):
        yield machine
