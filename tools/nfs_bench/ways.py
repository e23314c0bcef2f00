# SPDX-License-Identifier: GPL-2.0
"""Ways to share a directory of the host with a guest, each mounted in turn in the same machines."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from rig import network, nfs
from rig.guest import Guest
from rig.host import Host
from rig.machine import Machine

TCP_PORT = 2049
# What the proxy in the guest connects to in the host.
PROXY_PORT = 2050
TAG = "share"
VIRTIOFS_TAG = "virtiofs"
VIRTIOFS_SOCKET = "/run/virtiofs.sock"
# How long its program may take to start.
START = 60.0

# A network card, a 9p device, and one of virtiofs, whose back end is a program.
DEVICES = (
    *network.DEVICES,
    *("-fsdev", f"local,id=share,path={nfs.EXPORT},security_model=none"),
    *("-device", f"virtio-9p-pci,fsdev=share,mount_tag={TAG}"),
    *("-chardev", f"socket,id=virtiofs,path={VIRTIOFS_SOCKET}"),
    *("-device", f"vhost-user-fs-pci,chardev=virtiofs,tag={VIRTIOFS_TAG}"),
)
GUEST_MODULES = (*nfs.GUEST_MODULES, *network.MODULES, "9p", "9pnet_virtio", "virtiofs")
GUEST_PROGRAMS = (*nfs.GUEST_PROGRAMS, "fio", "socat")


@dataclasses.dataclass
class Machines:
    """Where it is measured."""

    host: Host
    guest: Guest
    server: nfs.Server
    # Of each mount of NFS: nconnect.
    connections: int = 1


@dataclasses.dataclass(frozen=True)
class Way:
    """A way, and how it is mounted."""

    name: str
    mounted: Callable[[Machines], contextlib.AbstractContextManager]


def prepare_host(host: Host) -> nfs.Server:
    """A server on vsock and TCP, and the host's end of the network and of virtiofs."""
    server = nfs.Server(host)
    server.prepare()
    network.prepare(host)
    host.run(["modprobe", "vsock_diag"])
    # It ends with QEMU's connection.
    virtiofsd = ["/usr/libexec/virtiofsd", "--socket-path", VIRTIOFS_SOCKET, "--shared-dir", nfs.EXPORT]
    host.start(virtiofsd).wait_for("Waiting for", START)
    return server


def export(machines: Machines) -> None:
    """To the guest, whichever way it comes, and to the proxy."""
    access = "(rw,no_root_squash,no_subtree_check,fsid=0,insecure)"
    vsock = machines.server.run("address", str(machines.guest.cid)).stdout.strip()
    lines = "".join(f"{nfs.EXPORT} {name}{access}\n" for name in (vsock, network.GUEST_ADDRESS, "127.0.0.1"))
    machines.host.shell("cat > /etc/exports; exportfs -ra", input=lines.encode())
    network.join(machines.guest)
    machines.guest.shell(f"modprobe -a 9p 9pnet_virtio; mkdir -p {nfs.MOUNT}")


def mount(machine: Machine, kind: str, source: str, options: str) -> None:
    machine.run(["mount", "-i", "-t", kind, "-o", options, source, nfs.MOUNT], timeout=120)


def unmount(machine: Machine) -> None:
    machine.run(["umount", nfs.MOUNT], timeout=120)


def over_vsock(implementation: str) -> Callable[[Machines], contextlib.AbstractContextManager]:
    @contextlib.contextmanager
    def mounted(machines: Machines) -> Iterator[None]:
        exchange(machines, implementation)
        client = nfs.Client(machines.guest)
        with client.mounted(f"nconnect={machines.connections}"):
            yield
            check_connections(machines, "--vsock")

    return mounted


def exchange(machines: Machines, implementation: str) -> None:
    """Puts other transports under server and client."""
    host, guest = machines.host, machines.guest
    nfs.unload(guest)
    machines.server.stop()
    nfs.unload(host)
    guest.unload("guest")
    guest.unplug_vsock()
    host.load("host", implementation)
    guest.plug_vsock()
    guest.load("guest", implementation)
    for machine in (host, guest):
        nfs.load(machine)
    machines.server.start()
    # These go with the module and with the server's threads.
    machines.server.allow(machines.guest.cid)
    machines.host.shell(f"echo tcp {TCP_PORT} > {nfs.NFSD}/portlist")


def check_connections(machines: Machines, sockets: str) -> None:
    """Asserts that what was measured came over these sockets of the server, and so many."""
    found = machines.host.run(["ss", "--no-header", "--numeric", sockets, "state", "established"]).stdout
    # This end is in the last field but one.
    used = [line for line in found.splitlines() if line.split()[-2].endswith(f":{TCP_PORT}")]
    assert len(used) == machines.connections, found


def tcp_options(machines: Machines, server: str, client: str) -> str:
    return f"vers=4.2,proto=tcp,port={TCP_PORT},addr={server},clientaddr={client},nconnect={machines.connections}"


@contextlib.contextmanager
def over_tcp(machines: Machines) -> Iterator[None]:
    options = tcp_options(machines, network.HOST_ADDRESS, network.GUEST_ADDRESS)
    mount(machines.guest, "nfs4", f"{network.HOST_ADDRESS}:/", options)
    try:
        yield
        check_connections(machines, "--tcp")
    finally:
        unmount(machines.guest)


@contextlib.contextmanager
def over_proxies(machines: Machines) -> Iterator[None]:
    """What works without a module: TCP to a proxy, vsock between two proxies, TCP to the server."""
    inner = ["socat", f"VSOCK-LISTEN:{PROXY_PORT},fork", f"TCP:127.0.0.1:{TCP_PORT}"]
    outer = ["socat", f"TCP-LISTEN:{TCP_PORT},fork,reuseaddr", f"VSOCK-CONNECT:2:{PROXY_PORT}"]
    proxies = [machines.host.start(inner), machines.guest.start(outer)]
    machines.guest.shell(f"until grep -q ':{TCP_PORT:04X} ' /proc/net/tcp; do sleep 0.2; done", timeout=60)
    try:
        mount(machines.guest, "nfs4", "127.0.0.1:/", tcp_options(machines, "127.0.0.1", "127.0.0.1"))
        try:
            yield
            check_connections(machines, "--tcp")
        finally:
            unmount(machines.guest)
    finally:
        for proxy in proxies:
            proxy.kill()


@contextlib.contextmanager
def over_virtiofs(machines: Machines) -> Iterator[None]:
    mount(machines.guest, "virtiofs", VIRTIOFS_TAG, "rw")
    try:
        yield
    finally:
        unmount(machines.guest)


@contextlib.contextmanager
def over_9p(machines: Machines) -> Iterator[None]:
    mount(machines.guest, "9p", TAG, "trans=virtio,version=9p2000.L,msize=512000,cache=none")
    try:
        yield
    finally:
        unmount(machines.guest)


WAYS = (
    Way("NFS, vsock in Rust", over_vsock("rust")),
    Way("NFS, vsock in C", over_vsock("c")),
    Way("NFS, TCP", over_tcp),
    Way("NFS, two socat", over_proxies),
    Way("virtiofs", over_virtiofs),
    Way("9p", over_9p),
)
BASELINE = "NFS, TCP"
