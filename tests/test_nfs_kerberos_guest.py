# SPDX-License-Identifier: GPL-2.0
"""Kerberos on NFS over vsock in a guest without a network: its host has the files and the key distribution centre."""

import contextlib
import pathlib
import typing
from collections.abc import Iterator

import nfs_realm
import pytest
import rig
from nfs_realm import NAME, OTHER, OWNER, SECONDS, WITHOUT
from rig import nfs
from rig.nfs import EXPORT, MOUNT

pytestmark = pytest.mark.nfs

CID = 3
GUEST = f"guest{CID}.{nfs_realm.DOMAIN}"
# As rpc.gssd looks for it.
CLIENT = f"nfs/{GUEST}"
KEYS = "/etc/krb5.keytab"
PASSWORD = "secret"

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
# With the ciphers of the realm that are not built in.
KERBEROS_MODULES = ("rpcsec_gss_krb5", "cts", "krb5enc")
GUEST_MODULES = (*nfs.GUEST_MODULES, *KERBEROS_MODULES)
GUEST_PROGRAMS = (
    *nfs.GUEST_PROGRAMS,
    *("ip", "kinit", "rpc.gssd", "setpriv", "socat", "ss"),
    # Names of owners, for which the kernel asks them.
    *("/etc/request-key.conf", "/etc/request-key.d", "nfsidmap", "request-key", f"{LIBRARIES}/libnfsidmap/nsswitch.so"),
    # What ends a thread of rpc.gssd.
    f"{LIBRARIES}/libgcc_s.so.1",
)

# What the units run.
RELAY = pathlib.Path(nfs.__file__).parents[1] / "nfs/libexec/nfs-vsock-krb5-relay"
KDC_PORT = 88
PIPES = "/run/rpc_pipefs"
PROXY = "/usr/lib/systemd/systemd-socket-proxyd"
HOST_DAEMONS = (
    ["krb5kdc", "-n"],
    ["systemd-socket-activate", f"--listen=vsock::{KDC_PORT}", PROXY, f"127.0.0.1:{KDC_PORT}"],
    ["rpc.svcgssd", "-f"],
    ["rpc.idmapd", "-f", "-S", "-p", PIPES],
)

HOST_SET_UP = f"""
printf '127.0.0.1 {NAME} host localhost\\n' > /etc/hosts
{nfs_realm.SET_UP}
new_key {CLIENT} /run/nfs/guest.keytab
for user in {OWNER} {OTHER}; do kadmin.local -q "addprinc -pw {PASSWORD} $user"; done
chmod 1777 {EXPORT}
"""

GUEST_SET_UP = f"""
{nfs_realm.CONFIGURATION}
printf '127.0.0.1 {GUEST} guest{CID} localhost\\nfdf5:7c6b:3a10::2 {NAME}\\n' > /etc/hosts
chmod 1777 /tmp
ip -6 route replace local fdf5:7c6b:3a10::/64 dev lo
mkdir -p {PIPES}
mount -t rpc_pipefs rpc_pipefs {PIPES}
modprobe -a nfsv4 {" ".join(KERBEROS_MODULES)}
"""
# It is there for the kernel once it has this open.
GSSD_READY = f"until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q {PIPES}/gssd/; do sleep 0.1; done"


class Guest:
    """A guest of the realm, none of whose parts of Kerberos run yet."""

    def __init__(self, machine: rig.Guest):
        self.machine = machine
        self.client = nfs.Client(machine)
        self._relay = machine.program(RELAY)

    def run_as(self, user: str, script: str, **options) -> rig.Result:
        return self.machine.shell(nfs_realm.run_as(user, script), **options)

    def get_ticket(self, user: str) -> None:
        self.run_as(user, f"echo {PASSWORD} | kinit {user}")

    def forget_tickets(self) -> None:
        self.machine.shell("rm -f /tmp/krb5cc*")

    @contextlib.contextmanager
    def relay(self, port: int) -> Iterator[None]:
        relay = self.machine.start([self._relay, "2", str(port)])
        try:
            self.machine.run([self._relay, "2", str(port), "wait"])
            yield
        finally:
            relay.kill()

    @contextlib.contextmanager
    def gssd(self) -> Iterator[None]:
        daemon = self.machine.start(["rpc.gssd", "-f", "-p", PIPES])
        try:
            self.machine.shell(GSSD_READY)
            yield
        finally:
            daemon.kill()

    @contextlib.contextmanager
    def old_pipe(self) -> Iterator[None]:
        """The kernel goes by the pipe that is opened first. There are pipes while something is mounted."""
        pipe = self.machine.shell(f"ls {PIPES}/nfs/clnt*/krb5").stdout.split()[0]
        holder = self.machine.start(["sh", "-euc", f"exec 3<> {pipe}; echo open; exec sleep 1000"])
        holder.wait_for("open", SECONDS)
        try:
            yield
        finally:
            holder.kill()

    def refuses(self, options: str = "sec=krb5p") -> str:
        return nfs_realm.refusal(self.client.mount, options)


@pytest.fixture(scope="module")
def server(host):
    """An export for one guest, with encryption only."""
    nfs_realm.require_kerberos(host)
    host.unload("loopback")
    host.load("host", "rust")
    nfs.load(host)
    server = nfs.Server(host)
    server.prepare()
    host.run(["modprobe", "-a", *KERBEROS_MODULES])
    host.shell(HOST_SET_UP)
    daemons = [host.start(command) for command in HOST_DAEMONS]
    server.start()
    server.export(CID, options="fsid=0,sec=krb5p")
    server.allow(CID)
    yield server
    for daemon in daemons:
        daemon.kill()
    server.close()
    nfs.unload(host)


@pytest.fixture(scope="module")
def guest(server, host):
    """A guest that has the users of the host, and a key."""
    with host.guest(cid=CID, programs=GUEST_PROGRAMS, modules=GUEST_MODULES) as machine:
        machine.load("guest", "rust")
        nfs.load(machine)
        machine.shell(GUEST_SET_UP)
        for path in ("/etc/passwd", "/etc/group"):
            machine.shell(f"cat > {path}", input=host.run(["cat", path]).stdout.encode())
        keys = host.run(["base64", "/run/nfs/guest.keytab"]).stdout
        machine.shell(f"base64 -d > {KEYS}", input=keys.encode())
        assert machine.run(["ls", "/sys/class/net"]).stdout.split() == ["lo"]
        yield Guest(machine)
        nfs.unload(machine)


@pytest.fixture
def ready(guest):
    """All that a guest needs."""
    guest.forget_tickets()
    with guest.relay(nfs.PORT), guest.relay(KDC_PORT), guest.gssd():
        yield guest


def test_a_user_with_a_ticket_writes_for_the_host_and_reads_what_it_wrote(ready, host):
    ready.get_ticket(OWNER)
    host.shell(f"install -m 600 -o {OWNER} /dev/null {EXPORT}/private; echo from the host > {EXPORT}/private")
    with ready.client.mounted("sec=krb5p"):
        assert "sec=krb5p" in ready.machine.run(["grep", MOUNT, "/proc/mounts"]).stdout
        assert ready.run_as(OWNER, f"cat {MOUNT}/private").stdout == "from the host\n"
        ready.run_as(OWNER, f"dd if=/dev/urandom of={MOUNT}/big bs=1M count=4 conv=fsync")
        ready.client.forget()
        read = ready.run_as(OWNER, f"sha256sum {MOUNT}/big").stdout.split()[0]
        assert read == nfs.checksum(host, f"{EXPORT}/big")
        # By name, on both sides.
        assert host.run(["stat", "-c", "%U %s", f"{EXPORT}/big"]).stdout.split() == [OWNER, str(4 << 20)]
        assert ready.machine.run(["stat", "-c", "%U", f"{MOUNT}/big"]).stdout.strip() == OWNER


def test_whoever_has_no_ticket_of_the_owner_is_refused(ready, host):
    """A guest's root may be any user there, and without a ticket is nobody."""
    ready.get_ticket(OWNER)
    ready.get_ticket(OTHER)
    host.shell(f"install -m 600 -o {OWNER} /dev/null {EXPORT}/private; echo private > {EXPORT}/private")
    host.shell(f"echo public > {EXPORT}/public")
    with ready.client.mounted("sec=krb5p"):
        assert ready.run_as(OTHER, f"cat {MOUNT}/public").stdout == "public\n"
        assert ready.run_as(OWNER, f"cat {MOUNT}/private").stdout == "private\n"
        for user, file in ((OTHER, "private"), (WITHOUT, "public"), ("root", "private")):
            assert "Permission denied" in ready.run_as(user, f"cat {MOUNT}/{file}", check=False).stderr


def test_tickets_are_used_whichever_pipe_gssd_has_opened(guest):
    guest.forget_tickets()
    with contextlib.ExitStack() as stack:
        for port in (nfs.PORT, KDC_PORT):
            stack.enter_context(guest.relay(port))
        with guest.gssd():
            stack.enter_context(guest.client.mounted("sec=krb5p"))
        with guest.old_pipe(), guest.gssd():
            guest.get_ticket(OTHER)
            guest.run_as(OTHER, f"ls {MOUNT}")


def test_a_guest_without_a_key_is_refused(ready):
    ready.machine.run(["mv", KEYS, "/etc/aside"])
    try:
        assert "there is no ticket" in ready.refuses()
    finally:
        ready.machine.run(["mv", "/etc/aside", KEYS])
    with ready.client.mounted("sec=krb5p"):
        pass


def test_a_guest_that_does_not_reach_the_realm_is_refused(guest):
    guest.forget_tickets()
    with guest.relay(nfs.PORT), guest.gssd():
        assert "there is no ticket" in guest.refuses()


def test_a_guest_whose_credentials_do_not_reach_the_server_is_refused(guest):
    guest.forget_tickets()
    with guest.relay(KDC_PORT), guest.gssd():
        assert "there is no ticket" in guest.refuses()


def test_a_mount_without_kerberos_is_refused(ready):
    assert "does not export / with this security" in ready.refuses("sec=sys")
