# SPDX-License-Identifier: GPL-2.0
"""NFS over vsock with server and clients on one kernel: operations, statistics, hostile peers."""

import contextlib
import pathlib
import signal
from collections.abc import Iterator

import commands
import hostile_rpc
import pytest
import rig
from rig import nfs, transports
from rig.nfs import EXPORT, MOUNT

pytestmark = pytest.mark.nfs

PROGRAM = str(pathlib.Path(hostile_rpc.__file__).resolve())
CID_LOCAL = 1
SOURCE = "[fdf5:7c6b:3a10::1]:/"
# What the mount helper says to the kernel.
OPTIONS = "vers=4.2,proto=rdma6,port={port},addr=fdf5:7c6b:3a10::1,clientaddr=::"

# Where the hostile server listens.
PORT = 3049
# Fewer than the connections that do not read: if each took one, none would be left.
THREADS = 2


@pytest.fixture(scope="module", params=["c", "rust"])
def server(request, host):
    """A server and its clients on the same kernel."""
    host.unload("host")
    host.load("loopback", request.param)
    nfs.load(host)
    server = nfs.Server(host)
    server.prepare()
    server.start(THREADS)
    server.export(CID_LOCAL)
    server.allow(CID_LOCAL)
    yield server
    server.close()
    nfs.unload(host)
    host.unload("loopback")


@contextlib.contextmanager
def mounted(host, options: str = OPTIONS.format(port=nfs.PORT), target: str = MOUNT) -> Iterator[None]:
    host.run(["mount", "-i", "-t", "nfs4", "-o", options, SOURCE, target])
    try:
        yield
    finally:
        host.run(["umount", target])


def python(host, program: str, *arguments: str, timeout: float = 60) -> str:
    return host.run(["python3", "-c", program, *arguments], timeout=timeout).stdout


SPARSE = f"""
import os
with open("{MOUNT}/sparse", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, 1 << 20)
    file.truncate(4 << 20)
    file.seek(3 << 20)
    file.write(b"data")
with open("{MOUNT}/sparse", "rb") as file:
    print(os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA), os.lseek(file.fileno(), 3 << 20, os.SEEK_DATA))
"""
COPY = f"""
import os
with open("{MOUNT}/from", "wb") as file:
    file.write(os.urandom(1 << 20))
with open("{MOUNT}/from", "rb") as source, open("{MOUNT}/to", "wb") as target:
    print(os.copy_file_range(source.fileno(), target.fileno(), 1 << 20))
"""


def test_holes_are_told_from_data(server, host):
    with mounted(host):
        assert python(host, SPARSE) == f"{3 << 20} {3 << 20}\n"


def test_the_server_copies_by_itself(server, host):
    with mounted(host):
        before = operations(host, "COPY")
        assert python(host, COPY) == f"{1 << 20}\n"
        assert operations(host, "COPY") > before
        host.run(["cmp", f"{EXPORT}/from", f"{EXPORT}/to"])


def operations(host, name: str) -> int:
    """How often the client has asked for an operation."""
    lines = host.run(["cat", "/proc/self/mountstats"]).stdout.splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[:1] == [f"{name}:"])


def test_another_file_system_below_the_export_is_there(server, host):
    host.shell(f"mkdir -p {EXPORT}/below; mount -t tmpfs nfs-below {EXPORT}/below; echo deep > {EXPORT}/below/file")
    try:
        address = server.run("address", str(CID_LOCAL)).stdout.strip()
        access = "rw,no_root_squash,no_subtree_check"
        lines = f"{EXPORT} {address}({access},fsid=0,crossmnt)\n{EXPORT}/below {address}({access},fsid=1)\n"
        host.shell("cat > /etc/exports; exportfs -ra", input=lines.encode())
        with mounted(host):
            assert host.run(["cat", f"{MOUNT}/below/file"]).stdout == "deep\n"
            host.run(["umount", f"{MOUNT}/below"])
    finally:
        server.export(CID_LOCAL)
        server.forget_exports()
        host.run(["umount", f"{EXPORT}/below"])


# What a server of its own serves, beside the host's, which exports to everybody.
OWN = "/run/nfs/own"
OWN_PORT = 2050
OWN_MOUNT = "/run/mnt-own"
BIND = """
import socket, sys
socket.socket(socket.AF_VSOCK).bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
"""


OWN_PID = "$(pgrep -o -f 'nfs-vsock-server[ ]inside')"
# As the unit that reloads it.
INTO_OWN = f"nsenter --net --mount --uts --root --target {OWN_PID}"


@contextlib.contextmanager
def server_of_its_own(server, host) -> Iterator[rig.Command]:
    """Beside the host's."""
    address = server.run("address", str(CID_LOCAL)).stdout.strip()
    script = f"""
    mkdir -p {OWN} {OWN_MOUNT} /etc/nfs-vsock /run/commands
    echo own > {OWN}/file
    echo "{OWN} {address}(rw,no_root_squash,no_subtree_check,fsid=0)" > /etc/nfs-vsock/exports
    ln -sf {server.command} /run/commands/nfs-vsock
    """
    host.shell(script)
    server.run("allow", str(CID_LOCAL))
    program = host.program(commands.SOURCES / "libexec/nfs-vsock-server")
    path = "/run/commands:/usr/sbin:/usr/bin"
    environment = {"PATH": path, "PORT": str(OWN_PORT), "STATE": f"{OWN}-state", "THREADS": "2"}
    own = host.start([program], env=environment)
    try:
        own.wait_for("listens", 60)
        yield own
    finally:
        if own.running:
            own.signal(signal.SIGTERM)
            own.wait(60)


def test_a_server_of_its_own_serves_its_exports_only(server, host):
    script = f"""
    echo '{EXPORT} *(rw,no_subtree_check,fsid=0)' > /etc/exports
    exportfs -ra
    echo host > {EXPORT}/file
    """
    host.shell(script)
    try:
        with server_of_its_own(server, host):
            with mounted(host), mounted(host, OPTIONS.format(port=OWN_PORT), OWN_MOUNT):
                assert host.run(["cat", f"{MOUNT}/file"]).stdout == "host\n"
                assert host.run(["cat", f"{OWN_MOUNT}/file"]).stdout == "own\n"
            assert OWN not in host.run(["exportfs", "-v"]).stdout
            assert str(OWN_PORT) not in host.run(["cat", f"{nfs.NFSD}/portlist"]).stdout
    finally:
        server.export(CID_LOCAL)
    # It takes its port with it.
    host.run(["python3", "-c", BIND, str(OWN_PORT)])


def test_a_server_of_its_own_takes_over_exports_that_were_edited(server, host):
    with server_of_its_own(server, host) as own:
        assert ",rw," in host.shell(f"{INTO_OWN} exportfs -v").stdout
        # That leaves another file in the place of the first, as editors do.
        host.shell(f"sed -i s/rw,/ro,/ /etc/nfs-vsock/exports; {INTO_OWN} {own.arguments[0]} reload")
        assert ",ro," in host.shell(f"{INTO_OWN} exportfs -v").stdout


def test_a_server_of_its_own_ends_with_its_daemons(server, host):
    with server_of_its_own(server, host) as own:
        host.shell(f"pkill --parent {OWN_PID} rpc.mountd")
        result = own.wait(60, check=False)
    assert result.status == 1
    assert "a daemon has ended" in result.stderr
    host.run(["python3", "-c", BIND, str(OWN_PORT)])


# A server on a network, of which the one on vsock knows no more than its address.
AWAY_ADDRESS = "10.9.1.2"
AWAY_NETWORK = f"""
modprobe veth
ip netns add away
ip link add away0 type veth peer name away1 netns away
ip address add 10.9.1.1/24 dev away0
ip link set away0 up
ip -n away address add {AWAY_ADDRESS}/24 dev away1
ip -n away link set away1 up
mkdir -p /run/nfs/away
echo away > /run/nfs/away/file
echo '/run/nfs/away *(rw,fsid=0,no_subtree_check)' > /run/nfs/away.exports
"""
AWAY = f"""
hostname away
mount --bind /run/nfs/away.exports /etc/exports
mount -t tmpfs nfs-away /var/lib/nfs
mkdir /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
mount -t nfsd nfsd {nfs.NFSD}
nfsdcld -F & rpc.mountd -F -N 2 -N 3 &
exportfs -ra
echo -2 -3 +4 +4.1 +4.2 > {nfs.NFSD}/versions
echo tcp 2049 > {nfs.NFSD}/portlist
echo 2 > {nfs.NFSD}/threads
echo serves
cat
echo 0 > {nfs.NFSD}/threads
kill %1 %2
"""


@contextlib.contextmanager
def server_on_a_network(host) -> Iterator[None]:
    host.shell(AWAY_NETWORK)
    into = ["nsenter", "--net=/run/netns/away", "unshare", "--mount", "--uts"]
    away = host.start([*into, "bash", "-euc", AWAY])
    try:
        away.wait_for("serves", 60)
        yield
    finally:
        away.close_input()
        away.wait(60)
        host.run(["ip", "netns", "del", "away"])


def test_a_referral_leads_to_a_server_on_the_network(server, host):
    """Clients try the transport they came by first, where nobody on a network can be."""
    address = server.run("address", str(CID_LOCAL)).stdout.strip()
    access = "rw,no_root_squash,no_subtree_check"
    lines = f"{EXPORT} {address}({access},fsid=0,crossmnt)\n"
    lines += f"{EXPORT}/away {address}({access},fsid=1,refer=/@{AWAY_ADDRESS})\n"
    host.shell(f"mkdir -p {EXPORT}/away; mount -t tmpfs nfs-below {EXPORT}/away")
    host.shell("cat > /etc/exports; exportfs -ra", input=lines.encode())
    try:
        with server_on_a_network(host), mounted(host):
            assert host.run(["cat", f"{MOUNT}/away/file"], timeout=120).stdout == "away\n"
            assert "proto=tcp" in host.run(["grep", f" {MOUNT}/away ", "/proc/mounts"]).stdout
            host.run(["umount", f"{MOUNT}/away"])
    finally:
        server.export(CID_LOCAL)
        server.forget_exports()
        host.run(["umount", f"{EXPORT}/away"])


PROBE = """
cd /sys/kernel/tracing
echo 'p:nfs_splice skb_splice_from_iter' > kprobe_events
echo 1 > events/kprobes/nfs_splice/enable
"""
PROBED = """
cd /sys/kernel/tracing
cat kprobe_profile
echo 0 > events/kprobes/nfs_splice/enable
echo > kprobe_events
"""


def test_what_is_read_is_not_copied_into_packets(server, host):
    """The transport refers to the pages of the file; that of C copies them."""
    host.shell(f"dd if=/dev/urandom of={EXPORT}/big bs=1M count=16")
    with mounted(host):
        host.shell(PROBE)
        try:
            host.run(["dd", f"if={MOUNT}/big", "of=/dev/null", "bs=1M", "iflag=direct"])
        finally:
            hits = int(host.shell(PROBED).stdout.split()[1])
    host.run(["rm", f"{EXPORT}/big"])
    # Packets hold 64 KiB.
    assert hits >= 16 * 16 if "vsock_loopback_rs" in host.loaded_modules() else hits == 0


def test_a_client_that_was_forgotten_comes_back(server, host):
    with mounted(host):
        host.run(["ls", MOUNT])
        host.shell(f"for client in {nfs.NFSD}/clients/*/ctl; do echo expire > $client; done")
        host.shell(f"echo again > {MOUNT}/again; cat {MOUNT}/again", timeout=120)


def test_random_writes_are_read_back(server, host):
    job = ["--rw=randrw", "--bs=4k-256k", "--size=16M", "--verify=crc32c", "--ioengine=psync", "--direct=1"]
    with mounted(host, OPTIONS.format(port=nfs.PORT) + ",nconnect=2"):
        host.run(["fio", "--name=verify", "--directory", MOUNT, "--numjobs=2", *job], timeout=600)
    host.shell(f"rm -rf {EXPORT}/*")


@pytest.mark.parametrize("tool", ["mountstats", "nfsiostat"])
def test_statistics_are_as_tools_expect_them(server, host, tool):
    with mounted(host):
        host.shell(f"echo x > {MOUNT}/x; cat {MOUNT}/x")
        output = host.run([tool, MOUNT]).stdout
    assert MOUNT in output


def test_with_rdma_loaded_it_serves_all_the_same(server, host):
    """Mounts have one place for both; who comes second has none."""
    if host.run(["modprobe", "-n", "rpcrdma"], check=False).status:
        pytest.skip("this kernel has no rpcrdma")
    server.stop()
    nfs.unload(host)
    host.run(["modprobe", "rpcrdma"])
    try:
        transports.insert(host, transports.built(nfs.MODULE))
        assert "no mounts from here: rpcrdma is loaded" in host.kernel_log()
        server.start()
        server.allow(CID_LOCAL)
        host.run(["python3", PROGRAM, "client", str(CID_LOCAL), str(nfs.PORT), "half_a_marker"])
        helper = host.program(nfs.program("mount-nfs-vsock"))
        result = host.run([helper, "local:/", MOUNT], check=False)
        assert result.status == 32
        assert "the module rpcrdma" in result.stderr
        server.stop()
        nfs.unload(host)
    finally:
        host.run(["modprobe", "-r", "rpcrdma"])
    nfs.load(host)
    server.start()
    server.allow(CID_LOCAL)


@pytest.mark.hostile
def test_a_stranger_is_refused_and_takes_no_memory(server, host):
    server.allow()
    try:
        host.run(["python3", PROGRAM, "stranger", str(CID_LOCAL), str(nfs.PORT)])
    finally:
        server.allow(CID_LOCAL)


@pytest.mark.hostile
@pytest.mark.parametrize("case", hostile_rpc.CLIENT_CASES, ids=lambda case: case.__name__)
def test_a_hostile_client(server, host, case):
    command = ["python3", PROGRAM, "client", str(CID_LOCAL), str(nfs.PORT), case.__name__]
    result = host.run(command, timeout=300, check=False)
    assert result.status == 0, result.stdout + result.stderr


@pytest.mark.hostile
@pytest.mark.parametrize("case", hostile_rpc.SERVER_CASES, ids=lambda case: case.__name__)
def test_a_hostile_server(server, host, case):
    attacker = host.start(["python3", PROGRAM, "server", str(PORT), case.__name__])
    try:
        attacker.wait_for("listening", 60)
        options = OPTIONS.format(port=PORT) + ",soft,timeo=10,retrans=1"
        command = ["mount", "-i", "-t", "nfs4", "-o", options, SOURCE, MOUNT]
        # It never becomes a mount; some of them go on trying.
        result = host.run(["timeout", "-s", "KILL", "4", *command], check=False)
        assert result.status != 0
        assert "called" in attacker.stdout
    finally:
        attacker.kill()
    # The module is still of use.
    with mounted(host):
        host.run(["ls", MOUNT])
