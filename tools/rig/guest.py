# SPDX-License-Identifier: GPL-2.0
"""A guest: QEMU with nested KVM inside the host VM.

The guest is one command of the host's agent: its standard input and output carry the guest's own
control channel, its error output is the guest's console. So a guest needs no network, no sockets
and no files in the host, and ends when the command ends.
"""

import contextlib
import json
import queue
import secrets
import sys
import threading
import time
import typing
from collections.abc import Iterable, Mapping

from . import acceleration, autopsy, initramfs, runs
from .channel import Channel, Command, Kind
from .console import Console
from .errors import EmulationTrap, MachineError, MachineLost, RigError, UnprovenTrap
from .machine import Machine
from .monitor import GuestMonitor, Monitor

if typing.TYPE_CHECKING:
    from .host import Host

# 9 s on a quiet machine with two CPUs, 82 s with a load of 17; 60 s where the guest is emulated
# inside an emulated host.
BOOT_TIMEOUT = 150.0
BOOT_TIMEOUT_EMULATED = 900.0

# For no5lvl see host.py.
KERNEL_ARGUMENTS = """
console=hvc0 loglevel=7 panic=-1 oops=panic printk.devkmsg=on mitigations=off tsc=reliable no_timer_check
nowatchdog unknown_nmi_panic audit=0 random.trust_cpu=on cryptomgr.notests nokaslr net.ifnames=0 no5lvl
""".split()

VSOCK = {"driver": "vhost-vsock-pci"}
VHOST_USER = {"driver": "vhost-user-vsock-pci"}

# What a guest is on, and what lets it have an IOMMU, which devices with iommu_platform and ats use.
MACHINE = ("-M", "pc,hpet=off")
MACHINE_WITH_IOMMU = ("-M", "q35,hpet=off,kernel-irqchip=split", "-device", "intel-iommu,intremap=off,device-iotlb=on")

# The host's root, for a guest with a whole system.
SYSTEM_MODULES = ("9p", "9pnet_virtio", "overlay")
SYSTEM_DEVICES = (
    *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
    *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
)
# Where its changes are until it starts.
SYSTEM_ROOT = "/system"

# 2 s on a quiet machine.
MIGRATION_TIMEOUT = 120.0

# From the end of QEMU's output to that of QEMU; it is less than CONSOLE_DELAY of channel.py.
END_DELAY = 3.0
TRIPLE_FAULT_TEXT = (
    "the guest ended for a triple fault: QEMU ended by itself, and the guest's kernel said no word of it. Where "
    "virtualization is emulated this is taken for a fault of the emulation, which now and then gives a guest the "
    "registers of the host's kernel; it also strikes where all modules are the kernel's"
)


class CommandStream:
    """A control channel that is input and output of a command in the host."""

    def __init__(self) -> None:
        self.pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.command: Command | None = None

    def write(self, data: bytes) -> None:
        assert self.command is not None
        self.command.write(data)

    def read(self) -> bytes:
        return self.pieces.get()


class Guest(Machine):
    """A running guest; use `Host.guest()`."""

    def __init__(
        self,
        host: "Host",
        cid: int,
        *,
        memory: int = 512,
        cpus: int = 1,
        programs: Iterable[str] = (),
        modules: Iterable[str] = (),
        forward: Mapping[int, int] | None = None,
        devices: Iterable[str] = (),
        vsock: Mapping[str, object] | None = VSOCK,
        vhost_user: str | None = None,
        share_memory: bool = False,
        kernel: Iterable[str] = (),
        machine: Iterable[str] = MACHINE,
        system: bool = False,
    ):
        """`programs` of the tree and kernel `modules` are added to the guest's root.

        `forward` gives the guest a network device and maps TCP ports of the host to the guest's;
        the host is 10.0.2.2 then. `devices` are further arguments of QEMU. `vsock` has the properties of
        the vsock device but its CID; None for no device. `vhost_user` is the socket, in the host, of a
        program that is the vsock device, and has to be listening; such a device chooses the CID itself.
        `share_memory` is for such a program behind one of the `devices`.
        `kernel` are further arguments of the guest's kernel; `machine` are the arguments of QEMU that say
        which one it runs on. `system` is for a guest that becomes one with systemd on the host's root, see
        `start_system`; the rig's commands still run outside it.
        """
        super().__init__()
        self.host = host
        self.cid = cid
        self.name = f"guest{cid}"
        self.console = Console(self.name, host.directory / f"{self.name}.log", self._fail)
        self._device = vsock and {**vsock, "guest-cid": cid, "id": "vsock"}
        if vhost_user:
            self._device = {**VHOST_USER, "chardev": "vsock", "id": "vsock"}
        self._monitor: Monitor | None = None
        self._starts = 0
        self._emulated = host.run(["test", "-e", "/dev/kvm"], check=False).status != 0
        self._nested_emulation = not (self._emulated or acceleration.hardware())
        if self._emulated:
            print("rig: warning: no KVM in the host VM, the guest is emulated twice: slow", file=sys.stderr)
        modules = [*initramfs.MODULES, *modules, *(SYSTEM_MODULES if system else ())]
        image = initramfs.build(host.agent, programs, modules)
        self._session = secrets.token_hex(8)
        command_line = [*KERNEL_ARGUMENTS, f"rig_session={self._session}", f"rig_name={self.name}", *kernel]
        command_line += ["rig_network=1"] if forward is not None else []
        command_line += ["rig_system=1"] if system else []
        self._arguments = [
            *("qemu-system-x86_64", *machine, "-cpu", host.cpu, "-m", str(memory), "-smp", str(cpus)),
            *("-accel", "tcg" if self._emulated else "kvm"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
            *("-kernel", str(runs.image()), "-initrd", str(image), "-append", " ".join(command_line)),
            *("-device", "virtio-serial-pci,id=serial"),
            *("-chardev", "file,id=console,path=/proc/self/fd/2", "-device", "virtconsole,bus=serial.0,chardev=console"),
            *("-chardev", "stdio,id=agent,signal=off,mux=off"),
            *("-device", "virtserialport,bus=serial.0,chardev=agent,name=rvsock.agent"),
            *network(forward),
            *devices,
            *(shared_memory(memory) if share_memory or vhost_user else ()),
            *(("-chardev", f"socket,id=vsock,path={vhost_user}") if vhost_user else ()),
            *(SYSTEM_DEVICES if system else ()),
        ]
        self._stream = CommandStream()
        self._start()
        self._connect()

    def _start(self, *arguments: str) -> None:
        """Starts a QEMU, which from then on is the guest's."""
        self._starts += 1
        self._monitor_path = f"/run/{self.name}.{self._starts}.qmp"
        command = [*self._arguments, "-qmp", f"unix:{self._monitor_path},server=on,wait=off"]
        command += ["-device", json.dumps(self._device)] if self._device else []
        start = self._starts

        def pass_on(sink: typing.Callable[[bytes], None], data: bytes) -> None:
            # The end of a QEMU is not that of a guest which has moved into another.
            if data or start == self._starts:
                sink(data)

        sinks = {
            Kind.STDOUT: lambda data: pass_on(self._stream.pieces.put, data),
            Kind.STDERR: lambda data: pass_on(self.console.feed, data),
        }
        self._qemu = self._stream.command = self.host.channel.start([*command, *arguments], sinks=sinks)

    def _connect(self) -> None:
        self.channel = Channel(self.name, self._stream, self._session, self.console.tail, self._autopsy)

    def _fail(self, error: MachineError) -> None:
        if isinstance(error, MachineLost) and self._nested_emulation:
            # How QEMU ended is told to the thread that this runs in.
            threading.Thread(target=self._fail_once_ended, args=(error,), daemon=True).start()
        else:
            self._fail_at_once(error)

    def _fail_at_once(self, error: MachineError) -> None:
        # What ended the host counts more than that the guest went with it.
        self.channel.fail(self.host.channel.error or error)

    def _fail_once_ended(self, error: MachineError) -> None:
        with contextlib.suppress(RigError):
            # A QEMU that ends by itself was asked to by its guest, or met a triple fault.
            if self._qemu.wait(END_DELAY, check=False).status == 0 and not self.console.orderly_end:
                error = UnprovenTrap(f"{TRIPLE_FAULT_TEXT}\n{error}")
        self._fail_at_once(error)

    def wait_ready(self) -> None:
        timeout = BOOT_TIMEOUT_EMULATED if self._emulated else BOOT_TIMEOUT
        self.channel.wait_ready(timeout * runs.patience())

    def _autopsy(self) -> str:
        found = autopsy.of_guest(self.host, self._monitor, self._monitor_path)
        if autopsy.cannot_fetch(found):
            raise EmulationTrap(f"{self.name}: {autopsy.FETCH_FAULT_TEXT}\n{found}{self.console.tail()}")
        if trap := self.console.masked_interrupt():
            raise trap
        return found

    def emulation_trap(self) -> EmulationTrap | None:
        """What ended the guest, if that was the emulation; asks it.

        To a program elsewhere that waits for the guest, one that hangs looks like a peer that does.
        """
        try:
            self.channel.ping()
        except EmulationTrap as trap:
            return trap
        except MachineError:
            pass
        return None

    @property
    def monitor(self) -> Monitor:
        if self._monitor is None:
            self._monitor = GuestMonitor(self.host, self._monitor_path)
        return self._monitor

    def start_system(self) -> None:
        """Has systemd take over. What it is to find was put below SYSTEM_ROOT; its modules are there already."""
        self.run(["touch", "/start"])

    def in_system(self, arguments: Iterable[str], **options):
        """Runs a command in the system, once it has started."""
        return self.run(["chroot", "/proc/1/root", *arguments], **options)

    def unplug_vsock(self) -> None:
        """Takes the vsock device out, so that the host's module can be exchanged."""
        self.monitor.execute("device_del", id="vsock")
        # Without the name it is the event of a part of the device.
        self.monitor.wait_event("DEVICE_DELETED", device="vsock")

    def plug_vsock(self, **properties: object) -> None:
        """Puts the vsock device back in, with these properties instead of those it had at first."""
        self.monitor.execute("device_add", **{**self._device, **properties})

    def reset(self) -> None:
        """Boots the guest anew, by its reset button; QEMU and its devices stay."""
        self.monitor.execute("set-action", reboot="reset")
        self.channel.fail(MachineLost(f"{self.name} was reset"))
        before, self._stream = self._stream, CommandStream()
        self._stream.command = self._qemu
        before.pieces.put(b"")
        self._programs.clear()
        self._connect()
        self.monitor.execute("system_reset")
        self.wait_ready()
        self.monitor.execute("set-action", reboot="shutdown")

    def migrate(self, cid: int) -> None:
        """Moves the running guest into another QEMU on the same host, where its CID is another one."""
        source, source_monitor = self._qemu, self.monitor
        self.cid = cid
        self._device = {**self._device, "guest-cid": cid}
        path = f"/run/{self.name}.{self._starts}.migration"
        self._monitor = None
        self._start("-incoming", f"unix:{path}")
        # It has one as soon as it listens.
        assert self.monitor
        source_monitor.execute("migrate", uri=f"unix:{path}")
        deadline = time.monotonic() + MIGRATION_TIMEOUT * runs.patience()
        while (state := source_monitor.execute("query-migrate"))["status"] != "completed":
            if state["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                raise MachineError(f"{self.name}: the migration does not complete: {state}")
            time.sleep(0.1)
        source_monitor.close()
        source.kill()

    def close(self) -> None:
        """Ends the guest like a power cut."""
        self.closed = True
        if self.host.channel.error is None:
            if self._monitor:
                self._monitor.close()
            self._qemu.kill()


def network(forward: Mapping[int, int] | None) -> list[str]:
    if forward is None:
        return []
    rules = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-:{inside}" for outside, inside in forward.items())
    return ["-netdev", f"user,id=net{rules}", "-device", "virtio-net-pci,netdev=net,romfile="]


def shared_memory(memory: int) -> list[str]:
    """Lets another process reach the guest's memory."""
    return ["-object", f"memory-backend-memfd,id=ram,size={memory}M,share=on", "-machine", "memory-backend=ram"]
