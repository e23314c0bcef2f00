# SPDX-License-Identifier: GPL-2.0
"""Kerberos on NFS over vsock, with the units that are installed: key distribution, server and client on one machine."""

import contextlib
from collections.abc import Iterator

import nfs_realm
import nfs_system
import pytest
from nfs_realm import NAME, OTHER, OWNER, SERVER_KEYS, WITHOUT
from nfs_system import CID_LOCAL
from peers import vsockmon
from rig.nfs import EXPORT, MOUNT

pytestmark = pytest.mark.nfs

# As rpc.gssd looks for it.
CLIENT = f"root/{NAME}"
CLIENT_KEYS, USER_KEYS = "/etc/client.keytab", "/etc/users.keytab"

RELAY = f"nfs-vsock-krb5-relay@{CID_LOCAL}"
# What leads to the key distribution centre: one end of it in the guest, the other on the host.
KDC_RELAY, KDC_SOCKET = f"nfs-vsock-kdc-relay@{CID_LOCAL}", "nfs-vsock-kdc.socket"
UNITS = ("krb5-kdc", KDC_SOCKET, KDC_RELAY, "rpc-svcgssd", "rpc-gssd", "nfs-server", "nfs-vsock", RELAY)

SET_UP = f"""
echo host > /etc/hostname
printf '127.0.0.1 localhost\\nfdf5:7c6b:3a10::{CID_LOCAL} {NAME} host\\n' > /etc/hosts
printf '[gssd]\\nkeytab-file={CLIENT_KEYS}\\nverbosity=2\\n[svcgssd]\\nverbosity=2\\n' >> /etc/nfs.conf
{nfs_realm.SET_UP}
new_key {CLIENT} {CLIENT_KEYS}
for user in {OWNER} {OTHER}; do new_key $user {USER_KEYS}; done
chmod 1777 {EXPORT}
sed -i 's/fsid=0/fsid=0,sec=krb5:krb5p/' /etc/exports
"""


class Realm:
    """A system all of whose parts of Kerberos run."""

    def __init__(self, system: nfs_system.System):
        self.system = system

    def mount(self, options: str = "sec=krb5p", check: bool = True):
        return self.system.run(f"mount -t nfs_vsock -o {options} local:/ {MOUNT}", check=check)

    @contextlib.contextmanager
    def mounted(self, options: str = "sec=krb5p") -> Iterator[None]:
        self.mount(options)
        try:
            yield
        finally:
            self.system.run(f"umount {MOUNT}")

    def run_as(self, user: str, script: str, check: bool = True):
        return self.system.run(nfs_realm.run_as(user, script), check=check)

    def give_ticket(self, user: str) -> None:
        """Into the file in which rpc.gssd looks for it."""
        cache = f"/tmp/krb5cc_$(id -u {user})"
        self.system.run(f"kinit -k -t {USER_KEYS} -c {cache} {user}; chown {user} {cache}")

    def forget(self) -> None:
        """The machine's own ticket."""
        self.system.run("rm -f /tmp/krb5ccmachine_*")
        self.system.systemctl("restart", "rpc-gssd")

    def refuses(self, options: str = "sec=krb5p") -> str:
        return nfs_realm.refusal(self.mount, options)


@pytest.fixture(scope="module")
def realm(host):
    nfs_realm.require_kerberos(host)
    for module in ("auth_rpcgss", "rpcsec_gss_krb5"):
        host.run(["modprobe", module])
    with nfs_system.installed(host, SET_UP) as system:
        system.systemctl("start", *UNITS)
        system.wait_for_listener()
        system.run(f"nfs-vsock allow {CID_LOCAL}")
        realm = Realm(system)
        realm.give_ticket(OWNER)
        realm.give_ticket(OTHER)
        yield realm
        system.run(f"systemctl stop {RELAY} {KDC_RELAY} {KDC_SOCKET} rpc-gssd rpc-svcgssd krb5-kdc", check=False)


def test_what_is_written_is_read_on_the_server(realm):
    with realm.mounted():
        assert "sec=krb5p" in realm.system.run(f"grep {MOUNT} /proc/mounts").stdout
        assert realm.system.run(f"cat {MOUNT}/file").stdout == "hello\n"
        realm.run_as(OWNER, f"dd if=/dev/urandom of={MOUNT}/big bs=1M count=4 conv=fsync")
        realm.system.run("echo 3 > /proc/sys/vm/drop_caches")
        realm.run_as(OWNER, f"cmp {MOUNT}/big {EXPORT}/big")
        assert realm.system.run(f"stat -c %U {EXPORT}/big").stdout.strip() == OWNER


def test_a_file_is_for_the_principal_it_belongs_to(realm):
    realm.system.run(f"install -m 600 -o {OWNER} /dev/null {EXPORT}/private; echo private > {EXPORT}/private")
    with realm.mounted():
        assert realm.run_as(OWNER, f"cat {MOUNT}/private").stdout == "private\n"
        assert "Permission denied" in realm.run_as(OTHER, f"cat {MOUNT}/private", check=False).stderr
        # Whoever is root in a guest may take any user's number, and has no ticket for it.
        assert "Permission denied" in realm.run_as(WITHOUT, f"cat {MOUNT}/file", check=False).stderr
        assert "Permission denied" in realm.system.run(f"cat {MOUNT}/private", check=False).stderr


@pytest.mark.parametrize("security, readable", [("krb5", True), ("krb5p", False)])
def test_contents_are_seen_on_the_way_only_without_encryption(realm, host, security, readable):
    words = f"these words are in a file, {security}"
    with vsockmon.capturing(host) as path, realm.mounted(f"sec={security}"):
        realm.run_as(OWNER, f"echo {words} > {MOUNT}/words; sync {MOUNT}/words")
    assert realm.system.run(f"cat {EXPORT}/words").stdout.strip() == words
    seen = vsockmon.captured(host, path)
    assert len(seen) > 10
    assert any(words.encode() in packet.payload for packet in seen) == readable


def test_a_mount_without_kerberos_is_refused(realm):
    assert "does not export / with this security" in realm.refuses("sec=sys")


def test_a_machine_whose_key_is_not_the_realm_s_is_refused(realm):
    """As one that has made up its key."""
    realm.system.run(f"kadmin.local -q 'cpw -randkey {CLIENT}'")
    realm.forget()
    try:
        realm.refuses()
    finally:
        realm.system.run(f"rm {CLIENT_KEYS}; kadmin.local -q 'ktadd -k {CLIENT_KEYS} {CLIENT}'")
        realm.forget()
    with realm.mounted():
        pass


def test_a_server_that_is_somebody_else_is_refused(realm):
    """Its key is not that of the principal that belongs to the name of its address."""
    realm.system.run(f"mv {SERVER_KEYS} {SERVER_KEYS}.right")
    realm.system.run("kadmin.local -q 'addprinc -randkey nfs/other.rvsock.test'")
    realm.system.run(f"kadmin.local -q 'ktadd -k {SERVER_KEYS} nfs/other.rvsock.test'")
    realm.system.systemctl("restart", "rpc-svcgssd")
    realm.forget()
    try:
        realm.refuses()
    finally:
        realm.system.run(f"mv {SERVER_KEYS}.right {SERVER_KEYS}")
        realm.system.systemctl("restart", "rpc-svcgssd")
        realm.forget()
    with realm.mounted():
        pass


@pytest.mark.parametrize("unit", [RELAY, KDC_RELAY, KDC_SOCKET])
def test_a_relay_is_what_leads_to_the_server_and_to_the_realm(realm, unit):
    realm.system.systemctl("stop", unit)
    realm.forget()
    try:
        assert RELAY in realm.refuses()
    finally:
        realm.system.systemctl("start", unit)
    with realm.mounted():
        pass


@pytest.mark.parametrize("cid, address", [(300, "fdf5:7c6b:3a10::12c"), (1 << 20, "fdf5:7c6b:3a10::10:0")])
def test_a_relay_listens_at_the_address_of_its_cid(realm, cid, address):
    """Which is in hexadecimal; and once it is started it does."""
    unit = f"nfs-vsock-krb5-relay@{cid}"
    realm.system.systemctl("start", unit)
    try:
        assert f"[{address}]:2049" in realm.system.run("ss -H -n -t -l").stdout
    finally:
        realm.system.systemctl("stop", unit)
