# SPDX-License-Identifier: GPL-2.0
"""Other people's suites of file systems on NFS over vsock, and on NFS over TCP in the same machine."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterator

import pytest
import rig
from peers import file_system_suites as suites
from rig import nfs, runs
from rig.nfs import EXPORT, MOUNT

pytestmark = pytest.mark.nfs

# Minutes are allowed.
LONG = bool(os.environ.get("LONG"))

CID_LOCAL = 1


@dataclasses.dataclass(frozen=True)
class Way:
    """How the directory is mounted, and what `ss` calls the sockets of that."""

    source: str
    options: str
    sockets: str


WAYS = {
    "TCP": Way("127.0.0.1:/", "proto=tcp,port=2049,addr=127.0.0.1,clientaddr=127.0.0.1", "--tcp"),
    "vsock": Way("[fdf5:7c6b:3a10::1]:/", "proto=rdma6,port=2049,addr=fdf5:7c6b:3a10::1,clientaddr=::", "--vsock"),
}

# Half a minute over each way, all of them. `test_random_writes_are_read_back` has fio.
QUICK = (
    suites.fsx(operations=200, seeds=[1]),
    suites.pjdfstest(["open::", "truncate::"], least=45),
    suites.stress_ng(suites.STRESS_LOCKS, seconds=1),
)
WHOLE = (
    suites.fsx(operations=2000, seeds=[1, 2]),
    suites.fio(mib=16),
    suites.pjdfstest(),
    suites.stress_ng(suites.STRESS_LOCKS, seconds=10),
)

# Also what makes more and smaller calls, and several connections.
OPTIONS = {
    "plain": "vers=4.2",
    "small": "vers=4.2,rsize=4096,wsize=4096,noac",
    "several": "vers=4.1,nconnect=4",
}


@pytest.fixture(scope="module")
def server(host):
    """A server that listens on both, and its clients on the same kernel."""
    host.unload("host")
    host.load("loopback", "rust")
    nfs.load(host)
    server = nfs.Server(host)
    server.prepare()
    server.start()
    server.allow(CID_LOCAL)
    addresses = (server.run("address", str(CID_LOCAL)).stdout.strip(), "127.0.0.1")
    lines = "".join(f"{EXPORT} {address}(rw,no_root_squash,no_subtree_check,fsid=0)\n" for address in addresses)
    script = f"echo tcp {nfs.PORT} > {nfs.NFSD}/portlist; cat > /etc/exports; exportfs -ra"
    host.shell(script, input=lines.encode())
    yield server
    server.close()
    nfs.unload(host)
    host.unload("loopback")


def connections(host: rig.Host, way: Way) -> list[str]:
    """Those to a server of NFS that are established."""
    lines = host.run(["ss", "--no-header", "--numeric", way.sockets, "state", "established"]).stdout.splitlines()
    return [line for line in lines if line.split()[-1].endswith(f":{nfs.PORT}")]


@contextlib.contextmanager
def mounted(host: rig.Host, name: str, options: str) -> Iterator[str]:
    """An empty directory, mounted one way. Of two mounts at a time one would use the connections of the other."""
    way = WAYS[name]
    host.run(["mount", "-i", "-t", "nfs4", "-o", f"{way.options},{options}", way.source, MOUNT])
    try:
        used = [each for each, other in WAYS.items() if connections(host, other)]
        assert used == [name]
        yield MOUNT
    finally:
        host.run(["umount", MOUNT], timeout=suites.TIMEOUT)
        host.shell(f"rm -rf {EXPORT}/*")


def check(suite: suites.Suite, over: dict[str, suites.Outcomes]) -> None:
    """Asserts that every case came out the same; a suite that is sound has to pass everywhere."""
    statuses = {name: {case: outcome.status for case, outcome in outcomes.items()} for name, outcomes in over.items()}
    for name, found in statuses.items():
        failed = [case for case, status in found.items() if status == suites.FAILED]
        runs.note(f"{suite.name} over {name}: {dict(collections.Counter(found.values()))} {' '.join(failed)}")
    tcp, vsock = statuses["TCP"], statuses["vsock"]
    different = sorted(case for case in tcp.keys() | vsock.keys() if tcp.get(case) != vsock.get(case))
    assert {case: [outcomes.get(case) for outcomes in over.values()] for case in different} == {}
    if suite.sound:
        assert {case: outcome for case, outcome in over["vsock"].items() if outcome.status == suites.FAILED} == {}
    assert list(vsock.values()).count(suites.PASSED) >= suite.least, statuses


def compare(host: rig.Host, suite: suites.Suite, options: str) -> None:
    over = {}
    for name in WAYS:
        with mounted(host, name, options) as directory:
            over[name] = suite.run(host, directory)
    check(suite, over)


@pytest.mark.parametrize("suite", QUICK, ids=lambda suite: suite.name)
def test_a_suite_finds_the_same_as_over_tcp(server, host, suite):
    compare(host, suite, OPTIONS["plain"])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("suite", WHOLE, ids=lambda suite: suite.name)
def test_a_whole_suite_finds_the_same_as_over_tcp(server, host, suite, options):
    if not LONG:
        pytest.skip("takes minutes: LONG=1")
    compare(host, suite, OPTIONS[options])
