# SPDX-License-Identifier: GPL-2.0
"""NFS over vsock against peers that break the rules of RPC: clients, and servers."""

import pathlib

import hostile_rpc
import pytest
from rig import nfs

pytestmark = [pytest.mark.nfs, pytest.mark.hostile]

PROGRAM = str(pathlib.Path(hostile_rpc.__file__).resolve())
CID_LOCAL = 1
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


@pytest.mark.parametrize("case", hostile_rpc.CLIENT_CASES, ids=lambda case: case.__name__)
def test_a_hostile_client(server, host, case):
    command = ["python3", PROGRAM, "client", str(CID_LOCAL), str(nfs.PORT), case.__name__]
    result = host.run(command, timeout=300, check=False)
    assert result.status == 0, result.stdout + result.stderr


@pytest.mark.parametrize("case", hostile_rpc.SERVER_CASES, ids=lambda case: case.__name__)
def test_a_hostile_server(server, host, case):
    attacker = host.start(["python3", PROGRAM, "server", str(PORT), case.__name__])
    try:
        attacker.wait_for("listening", 60)
        # As the mount helper says it, without its question to the server before.
        options = f"vers=4.2,proto=rdma6,port={PORT},addr=fdf5:7c6b:3a10::1,clientaddr=::,soft,timeo=10,retrans=1"
        command = ["mount", "-i", "-t", "nfs4", "-o", options, "[fdf5:7c6b:3a10::1]:/", nfs.MOUNT]
        # It never becomes a mount; some of them go on trying.
        result = host.run(["timeout", "-s", "KILL", "4", *command], check=False)
        assert result.status != 0
        assert "called" in attacker.stdout
    finally:
        attacker.kill()
    # What is left of it goes, and the module is still of use.
    host.run(["python3", PROGRAM, "client", str(CID_LOCAL), str(nfs.PORT), "half_a_marker"])


def test_a_good_client_after_all_that(server, host):
    source = "[fdf5:7c6b:3a10::1]:/"
    options = "vers=4.2,proto=rdma6,port=2049,addr=fdf5:7c6b:3a10::1,clientaddr=::"
    host.shell(f"echo hello > {nfs.EXPORT}/file")
    host.run(["mount", "-i", "-t", "nfs4", "-o", options, source, nfs.MOUNT])
    assert host.run(["cat", f"{nfs.MOUNT}/file"]).stdout == "hello\n"
    host.run(["umount", nfs.MOUNT])
