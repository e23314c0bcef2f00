# SPDX-License-Identifier: GPL-2.0
"""Other people's suites of file systems on NFS over vsock, and on NFS over TCP in the same machine."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest
import rig
from peers import file_system_suites as suites
from rig import network, nfs, runs
from rig.nfs import EXPORT, MOUNT

pytestmark = pytest.mark.nfs

# Minutes are allowed.
LONG = bool(os.environ.get("LONG"))

CID_LOCAL, CID_GUEST = 1, 3


@dataclasses.dataclass(frozen=True)
class Way:
    """How the directory is mounted, and what `ss` calls the sockets of that."""

    source: str
    options: str
    sockets: str


def tcp(server: str, client: str) -> Way:
    return Way(f"{server}:/", f"proto=tcp,port={nfs.PORT},addr={server},clientaddr={client}", "--tcp")


def vsock(cid: int) -> Way:
    address = f"fdf5:7c6b:3a10::{cid}"
    return Way(f"[{address}]:/", f"proto=rdma6,port={nfs.PORT},addr={address},clientaddr=::", "--vsock")


@dataclasses.dataclass(frozen=True)
class Place:
    """A machine that mounts, and the ways to the server."""

    name: str
    client: rig.Host | rig.Guest
    host: rig.Host
    ways: dict[str, Way]


# Half a minute over each way, all of them. `test_random_writes_are_read_back` has fio.
QUICK = (
    suites.fsx(operations=200, seeds=[1]),
    suites.pjdfstest(["open::", "truncate::"], least=45),
    suites.stress_ng(suites.STRESS_LOCKS, seconds=1),
)


def whole(machines: Callable, version: str) -> tuple[suites.Suite, ...]:
    # A guest is emulated within what is emulated.
    operations = 500 if machines is in_a_guest else 2000
    return (
        suites.fsx(operations=operations, seeds=[1, 2], version=version),
        suites.fio(mib=16),
        suites.pjdfstest(),
        suites.stress_ng(suites.STRESS_LOCKS, seconds=10),
    )


# Also what makes more and smaller calls, and several connections.
OPTIONS = {
    "plain": {"vers": "4.2"},
    "small": {"vers": "4.2", "rsize": "4096", "wsize": "4096", "noac": None},
    "several": {"vers": "4.1", "nconnect": "4"},
}


# What else is in a guest: programs that are tried, and users that are tried as.
GUEST_PROGRAMS = (*nfs.GUEST_PROGRAMS, "/etc/group", "/etc/passwd", "fio", "ss", "stress-ng")


@contextlib.contextmanager
def serving(host: rig.Host, cid: int, address: str) -> Iterator[None]:
    """A server that listens on both, for one machine."""
    nfs.load(host)
    server = nfs.Server(host)
    server.prepare()
    server.start()
    server.allow(cid)
    addresses = (server.run("address", str(cid)).stdout.strip(), address)
    lines = "".join(f"{EXPORT} {address}(rw,no_root_squash,no_subtree_check,fsid=0)\n" for address in addresses)
    script = f"echo tcp {nfs.PORT} > {nfs.NFSD}/portlist; cat > /etc/exports; exportfs -ra"
    host.shell(script, input=lines.encode())
    try:
        yield
    finally:
        server.close()
        nfs.unload(host)


@contextlib.contextmanager
def in_one_kernel(host: rig.Host, implementation: str) -> Iterator[Place]:
    host.unload("host")
    host.load("loopback", implementation)
    with serving(host, CID_LOCAL, "127.0.0.1"):
        ways = {"TCP": tcp("127.0.0.1", "127.0.0.1"), "vsock": vsock(CID_LOCAL)}
        yield Place(f"one kernel, {implementation}", host, host, ways)
    host.unload("loopback")


@contextlib.contextmanager
def in_a_guest(host: rig.Host, implementation: str) -> Iterator[Place]:
    host.unload("loopback")
    host.load("host", implementation)
    network.prepare(host)
    guest = host.guest(
        cid=CID_GUEST,
        memory=1024,
        programs=GUEST_PROGRAMS,
        modules=(*nfs.GUEST_MODULES, *network.MODULES),
        devices=network.DEVICES,
    )
    try:
        with serving(host, CID_GUEST, network.GUEST_ADDRESS), guest as machine:
            machine.load("guest", implementation)
            nfs.load(machine)
            network.join(machine)
            machine.shell(f"modprobe nfsv4; mkdir -p {MOUNT}")
            ways = {"TCP": tcp(network.HOST_ADDRESS, network.GUEST_ADDRESS), "vsock": vsock(2)}
            yield Place(f"guest, {implementation}", machine, host, ways)
            nfs.unload(machine)
    finally:
        network.remove(host)


@pytest.fixture(scope="module")
def place(request, host):
    machines, implementation = request.param
    host.run(["modprobe", "vsock_diag"])
    with machines(host, implementation) as place:
        yield place


def connections(machine: rig.Host | rig.Guest, way: Way) -> list[str]:
    """Those to a server of NFS that are established."""
    lines = machine.run(["ss", "--no-header", "--numeric", way.sockets, "state", "established"]).stdout.splitlines()
    return [line for line in lines if line.split()[-1].endswith(f":{nfs.PORT}")]


@contextlib.contextmanager
def mounted(place: Place, name: str, options: str) -> Iterator[str]:
    """An empty directory, mounted one way. Of two mounts at a time one would use the connections of the other."""
    way = place.ways[name]
    place.client.run(["mount", "-i", "-t", "nfs4", "-o", f"{way.options},{options}", way.source, MOUNT])
    try:
        used = [each for each, other in place.ways.items() if connections(place.client, other)]
        assert used == [name]
        yield MOUNT
    finally:
        place.client.run(["umount", MOUNT], timeout=suites.TIMEOUT)
        place.host.shell(f"rm -rf {EXPORT}/*")


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


def compare(place: Place, suite: suites.Suite, options: str) -> None:
    over = {}
    for way in place.ways:
        listed = (name if value is None else f"{name}={value}" for name, value in OPTIONS[options].items())
        with mounted(place, way, ",".join(listed)) as directory:
            over[way] = suite.run(place.client, directory)
    check(suite._replace(name=f"{suite.name}, {place.name}, {options}"), over)


ONE_KERNEL, A_GUEST = (in_one_kernel, "rust"), (in_a_guest, "rust")
# All options where it takes least; the real distance with what differs most; and C, which is known to be good.
WHOLE_PLACES = [
    *((ONE_KERNEL, options) for options in OPTIONS),
    *((A_GUEST, options) for options in ("plain", "several")),
    ((in_one_kernel, "c"), "plain"),
    ((in_a_guest, "c"), "plain"),
]


def whole_cases() -> Iterator:
    for place, options in WHOLE_PLACES:
        machines, implementation = place
        for suite in whole(machines, OPTIONS[options]["vers"]):
            name = f"{suite.name}-{machines.__name__}-{implementation}-{options}"
            yield pytest.param(place, options, suite, id=name)


@pytest.mark.parametrize("place", [ONE_KERNEL], ids=["one-kernel-rust"], indirect=True)
@pytest.mark.parametrize("suite", QUICK, ids=lambda suite: suite.name)
def test_a_suite_finds_the_same_as_over_tcp(place, suite):
    compare(place, suite, "plain")


@pytest.mark.skipif(not LONG, reason="takes minutes: LONG=1")
@pytest.mark.parametrize("place, options, suite", whole_cases(), indirect=["place"])
def test_a_whole_suite_finds_the_same_as_over_tcp(place, suite, options):
    compare(place, suite, options)
