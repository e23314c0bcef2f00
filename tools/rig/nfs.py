# SPDX-License-Identifier: GPL-2.0
"""NFS over vsock in the rig: a server in the host VM, and mounts in guests."""

import contextlib
import pathlib
import shlex
from collections.abc import Iterator

from . import programs, transports
from .channel import Result
from .guest import Guest
from .host import Host

MODULE = "sunrpc_vsock"
PARAMETER = f"/sys/module/{MODULE}/parameters/allowed_cids"
EXPORT = "/run/nfs/export"
MOUNT = "/run/mnt"
NFSD = "/proc/fs/nfsd"
PORT = 2049

# Kernel modules and programs of a guest that mounts.
GUEST_MODULES = ("nfsv4", "overlay")
GUEST_PROGRAMS = ("/etc/netconfig", "cmp", "flock", "mount", "mount.nfs4", "umount", "umount.nfs4")

# Seconds that a server waits for clients of the one before it to reclaim what they had, and that a
# client may be silent.
LEASE = 10

# What writing or reading 256 MiB takes on a busy machine that emulates both levels.
BULK_TIMEOUT = 600.0

# State that nfs-utils keep, below what is read-only in the machine.
SET_UP = f"""
mkdir -p /run/nfs/etc /run/nfs/work {EXPORT} {MOUNT}
modprobe overlay
mount -t overlay -o lowerdir=/etc,upperdir=/run/nfs/etc,workdir=/run/nfs/work nfs-etc /etc
mount -t tmpfs nfs-state /var/lib/nfs
mkdir -p /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery /run/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t tmpfs -o size=1200m nfs-export {EXPORT}
modprobe nfsd
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
mount -t nfsd nfsd {NFSD}
"""

# Exports are in caches of the kernel, which refer to their file systems. A second flush within a
# second counts for the next one, a third for the one after that, and until then nothing is taken
# out, however often it is asked for (write_flush() and cache_clean() in net/sunrpc/cache.c).
FLUSH = """
for cache in nfsd.fh nfsd.export; do
    while [ $(cat /proc/net/rpc/$cache/flush) -ge $(date +%s) ]; do sleep 0.2; done
done
exportfs -f
"""

TEAR_DOWN = f"""
exportfs -ua
umount {EXPORT} {NFSD} /run/rpc_pipefs /var/lib/nfs /etc
rm -rf /run/nfs
"""


def program(name: str) -> pathlib.Path:
    """A program of tools/nfs."""
    return programs.build("rvsock-nfs").with_name(name)


class Server:
    """The NFS server of a machine, without a network."""

    def __init__(self, machine: Host):
        self.machine = machine
        self.command = machine.program(program("nfs-vsock"))
        self._daemons: list = []

    def prepare(self) -> None:
        self.machine.shell(SET_UP)
        self._daemons = [
            self.machine.start(["nfsdcld", "-F"]),
            self.machine.start(["rpc.mountd", "-F", "-N", "2", "-N", "3"]),
        ]

    def start(self, threads: int = 8) -> None:
        """Starts it, listening on vsock only."""
        script = f"""
        echo 0 > {NFSD}/threads
        echo -2 -3 +4 +4.1 +4.2 > {NFSD}/versions
        echo {LEASE} > {NFSD}/nfsv4leasetime
        echo {LEASE} > {NFSD}/nfsv4gracetime
        echo vsock {PORT} > {NFSD}/portlist
        echo {threads} > {NFSD}/threads
        """
        self.machine.shell(script)

    def stop(self) -> None:
        """Stops it; its clients wait."""
        self.machine.shell(f"echo 0 > {NFSD}/threads")

    def run(self, *arguments: str, **options) -> Result:
        """Runs `nfs-vsock`."""
        return self.machine.run([self.command, *arguments], **options)

    def export(self, *cids: int, path: str = EXPORT, options: str = "fsid=0") -> None:
        """Exports a directory to these guests and nobody else."""
        address = self.run("address", *map(str, cids)).stdout.split() if cids else []
        access = f"(rw,no_root_squash,no_subtree_check,{options})"
        lines = "".join(f"{path} {name}{access}\n" for name in address)
        self.machine.shell("cat > /etc/exports; exportfs -ra", input=lines.encode())

    def forget_exports(self) -> None:
        """Lets go of file systems that are not exported any more."""
        self.machine.shell(FLUSH)

    def allow(self, *cids: int | str) -> None:
        """Makes these CIDs the list."""
        self.machine.shell(f"echo {','.join(map(str, cids))} > {PARAMETER}")

    def clients(self) -> str:
        """What the server says of its clients."""
        return self.machine.shell(f"cat {NFSD}/clients/*/info", check=False).stdout

    def close(self) -> None:
        self.stop()
        for daemon in self._daemons:
            daemon.kill()
        self.machine.shell(TEAR_DOWN)


class Client:
    """A guest that mounts."""

    def __init__(self, machine: Guest):
        self.machine = machine
        helper = machine.program(program("mount-nfs-vsock"))
        machine.shell(f"ln -sf {helper} /usr/bin/mount.nfs_vsock; mkdir -p {MOUNT}")

    def mount(self, options: str = "", source: str = "2:/", target: str = MOUNT, **how) -> Result:
        command = ["mount", "-t", "nfs_vsock", *(["-o", options] if options else []), source, target]
        return self.machine.run(command, **how)

    def unmount(self, target: str = MOUNT, **how) -> Result:
        return self.machine.run(["umount", target], **how)

    @contextlib.contextmanager
    def mounted(self, options: str = "", **how) -> Iterator[str]:
        """A mount; where it is."""
        self.mount(options, **how)
        try:
            yield MOUNT
        finally:
            self.unmount()

    def forget(self) -> None:
        """Lets what was read be read again."""
        self.machine.shell("sync; echo 3 > /proc/sys/vm/drop_caches")


def load(machine: Host | Guest) -> None:
    """Loads our module, anew."""
    unload(machine)
    transports.insert(machine, transports.built(MODULE))


def unload(machine: Host | Guest) -> None:
    """Unloads it; waits for sockets that were closed."""
    if MODULE in machine.loaded_modules():
        transports.wait_until_unused(machine, MODULE)
        machine.run(["rmmod", MODULE])


def checksum(machine: Host | Guest, path: str) -> str:
    command = f"sha256sum < {shlex.quote(path)}"
    return machine.shell(command, timeout=BULK_TIMEOUT).stdout.split()[0]


# A lock of NFS is one of POSIX on the server's file, which flock(1) does not see.
LOCK = """
import fcntl, sys, time
deadline = time.monotonic() + float(sys.argv[2])
with open(sys.argv[1], "r+") as file:
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit("somebody holds it")
            time.sleep(0.2)
"""


def can_lock(host: Host, path: str, seconds: float = 0) -> bool:
    """Whether a file of the server is free, now or within some time."""
    command = ["python3", "-c", LOCK, path, str(seconds)]
    return host.run(command, timeout=60 + seconds, check=False).status == 0
