# SPDX-License-Identifier: GPL-2.0
"""Programs that people use, unchanged, between a guest with our driver and its host; and much of everything."""

import base64
import contextlib
import os
import pathlib
import re
import typing
from collections.abc import Iterator

import pytest
import rig
from bench import load
from peers import ssh, vsockmon
from rig import programs, runs

pytestmark = pytest.mark.clients

CID_HOST = 2
CID_GUEST = 3

PEERS = pathlib.Path(__file__).parent / "peers"
PYTHON = ("python3", "/usr/lib/python3.13")
SSH = ("sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth", "ssh-keygen")
GENERATOR = "/usr/lib/systemd/system-generators/systemd-ssh-generator"
PROGRAMS = ("socat", "ss", "tcpdump", *PYTHON, *SSH, GENERATOR)
MEMORY = 768

MIB = 1 << 20
BULK = 8 * MIB

# Minutes are allowed.
LONG = bool(os.environ.get("LONG"))

# The counters of a connection have 32 bits.
WRAPPING = (4 << 30) + 64 * MIB

# The longest of the short ones takes 5 s on a quiet machine.
TIMEOUT = 120.0
# A gigabyte takes 15 s there, 10,000 connections 30 s.
LONG_TIMEOUT = 900.0

DIRECTIONS = ["g2h", "h2g"]


class Way(typing.NamedTuple):
    """From one machine to the other, whose CID that is."""

    active: load.Machine
    passive: load.Machine
    cid: int

    @property
    def path(self) -> load.Path:
        return load.Path(self.active, self.passive, self.cid)

    @contextlib.contextmanager
    def serving(self, arguments: list[str], sign: str = "listening") -> Iterator[rig.Command]:
        """A program in the passive machine that says when it is ready; what it says when the other one fails."""
        server = self.passive.start(arguments)
        try:
            server.wait_for(sign, TIMEOUT * runs.patience())
            yield server
        except rig.CommandError as error:
            raise AssertionError(f"{error}\nthe server said: {server.stdout}{server.stderr}") from None
        finally:
            server.kill()

    def puppet(self, machine: load.Machine, *words: object) -> list[str]:
        return [machine.program(programs.build("rvsock-puppet")), *map(str, words)]

    def puppets(self, server: list[object], client: list[object], timeout: float = TIMEOUT) -> str:
        """A pair of the puppet's tasks; what the server has to say in the end."""
        with self.serving(self.puppet(self.passive, *server)) as serving:
            arguments = [*client, "--cid", self.cid]
            self.active.run(self.puppet(self.active, *arguments), timeout=timeout * runs.patience())
            return serving.wait(TIMEOUT * runs.patience()).stdout.splitlines()[-1]


class Machines(typing.NamedTuple):
    host: rig.Host
    guest: rig.Guest

    def way(self, direction: str) -> Way:
        if direction == "g2h":
            return Way(self.guest, self.host, CID_HOST)
        return Way(self.host, self.guest, CID_GUEST)


@pytest.fixture(scope="module", params=["rust", "c"] if LONG else ["rust"], ids=lambda name: f"{name}-host")
def machines(request, host):
    """A guest with our driver, and its host with our module or the C one."""
    host.load("host", request.param)
    with host.guest(cid=CID_GUEST, memory=MEMORY, programs=PROGRAMS) as guest:
        guest.load("guest", "rust")
        for machine in (host, guest):
            machine.run(["modprobe", "vsock_diag"])
        yield Machines(host, guest)


@pytest.fixture(scope="module")
def ours(machines):
    """Both sides are ours: for what takes long, and what the host has no part in."""
    if not machines.host.loaded_modules().count("vhost_vsock_rs"):
        pytest.skip("is done with our host: it takes long")
    return machines


@pytest.fixture(params=DIRECTIONS)
def way(request, machines):
    return machines.way(request.param)


def wait_for_listener(machine: load.Machine, port: int) -> None:
    script = f"until ss --vsock --listening --no-header --numeric | grep -q ':{port} '; do sleep 0.1; done"
    machine.shell(script, timeout=TIMEOUT * runs.patience())


def test_socat_moves_a_file(way):
    """In the direction in which the connection is opened, and in the other."""
    port = 7000
    make = f"dd if=/dev/urandom of=/tmp/sent bs=1M count={BULK // MIB} 2>/dev/null; sha256sum </tmp/sent"
    for sender, receiver in [(way.active, way.passive), (way.passive, way.active)]:
        expected = sender.shell(make, timeout=TIMEOUT * runs.patience()).stdout.split()[0]
        connects = f"VSOCK-CONNECT:{way.cid}:{port}"
        if sender is way.active:
            listening, connecting = f"-u VSOCK-LISTEN:{port} -", f"-u OPEN:/tmp/sent {connects}"
        else:
            listening, connecting = f"-u OPEN:/tmp/sent VSOCK-LISTEN:{port}", f"-u {connects} -"
        server = way.passive.start(["sh", "-c", f"socat -b65536 {listening} | sha256sum"])
        try:
            wait_for_listener(way.passive, port)
            client = way.active.shell(f"socat -b65536 {connecting} | sha256sum", timeout=TIMEOUT * runs.patience())
            sums = {way.passive: server.wait(TIMEOUT * runs.patience()).stdout, way.active: client.stdout}
        finally:
            server.kill()
        assert sums[receiver].split()[0] == expected


def test_socat_runs_a_program_for_each_connection(way):
    server = way.passive.start(["socat", "VSOCK-LISTEN:7001,fork,reuseaddr", "EXEC:tr a-z A-Z"])
    try:
        wait_for_listener(way.passive, 7001)
        for word in ("first", "second"):
            client = f"echo {word} | socat -t 30 - VSOCK-CONNECT:{way.cid}:7001"
            assert way.active.shell(client).stdout == f"{word.upper()}\n"
    finally:
        server.kill()


def test_the_socket_module_of_python(way):
    command = ["python3", way.passive.program(PEERS / "python_socket.py"), "serve", "7010"]
    with way.serving(command):
        client = ["python3", way.active.program(PEERS / "python_socket.py"), "use", str(way.cid), "7010"]
        used = way.active.run(client, timeout=TIMEOUT * runs.patience()).stdout.split()
    assert len(used) == 10, used


def connections(machine: load.Machine) -> set[tuple[str, str]]:
    """Local and remote address of the established connections that `ss` shows."""
    lines = machine.run(["ss", "--vsock", "--no-header", "--numeric", "state", "established"]).stdout.splitlines()
    return {tuple(line.split()[3:5]) for line in lines}


def test_ss_shows_both_ends(machines):
    with load.server(machines.host), load.held(machines.way("g2h").path, 3, 0):
        inside, outside = connections(machines.guest), connections(machines.host)
        assert len(inside) >= 3
        # An end may call itself "*", for whatever its CID is.
        ports = {(local.split(":")[1], remote.split(":")[1]) for local, remote in inside}
        mirrored = {(remote.split(":")[1], local.split(":")[1]) for local, remote in outside}
        assert ports == mirrored
        assert {remote.split(":")[0] for _, remote in inside} == {str(CID_HOST)}
        assert {remote.split(":")[0] for _, remote in outside} == {str(CID_GUEST)}
        listening = machines.host.run(["ss", "--vsock", "--listening", "--no-header", "--numeric"]).stdout
        assert f":{load.PORT} " in listening


def test_ssh_through_the_proxy_of_systemd(machines):
    """`ssh vsock/3`, as systemd has configured it on the host."""
    host, guest = machines
    guest.shell("mkdir -p -m 755 /run/sshd /etc/ssh; mkdir -p -m 700 /root/.ssh")
    guest.shell("test -e /etc/ssh/ssh_host_ed25519_key || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key")
    key = ssh.make_key(host)
    guest.shell("cat >/root/.ssh/authorized_keys; : >/etc/ssh/sshd_config", input=key.encode())
    server = guest.start(["socat", "VSOCK-LISTEN:22,reuseaddr,fork", "EXEC:/usr/sbin/sshd -i -e,nofork"])
    try:
        wait_for_listener(guest, 22)
        command = ssh.command(CID_GUEST, "hostname; wc -c")
        answer = host.run(command, input=b"x" * 100_000, timeout=TIMEOUT * runs.patience())
    finally:
        print(server.stderr)
        server.kill()
    assert answer.stdout.split() == [guest.name, "100000"]


def test_the_ssh_generator_of_systemd_finds_the_device(machines):
    """What makes systemd listen for ssh in a guest that has a vsock device."""
    machines.guest.shell(f"mkdir -p /tmp/units; {GENERATOR} /tmp/units /tmp/units /tmp/units")
    unit = machines.guest.run(["cat", "/tmp/units/sshd-vsock.socket"]).stdout
    assert "ListenStream=vsock::22" in unit


@pytest.mark.parametrize("side", ["guest", "host"])
def test_tcpdump_captures_every_byte(machines, side):
    way, machine = machines.way("g2h"), getattr(machines, side)
    server = way.passive.start(["sh", "-c", "socat VSOCK-LISTEN:7020 - </dev/null | base64 -w 0"])
    try:
        wait_for_listener(way.passive, 7020)
        with vsockmon.capturing(machine) as path:
            way.active.shell("head -c 200000 /dev/urandom | socat -u - VSOCK-CONNECT:2:7020")
            sent = base64.b64decode(server.wait(TIMEOUT * runs.patience()).stdout)
        capture = vsockmon.captured(machine, path)
    finally:
        server.kill()
    seen = [packet for packet in capture if packet.destination == (CID_HOST, 7020)]
    assert len(sent) == 200000
    assert b"".join(packet.payload for packet in seen) == sent
    assert seen[0].operation == "connect"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_more_bytes_than_the_counters_hold(ours, direction):
    if not LONG:
        pytest.skip("takes minutes: LONG=1")
    port = 7030
    receive, send = ["receive", "--port", port], ["send", "--port", port, "--bytes", WRAPPING]
    assert ours.way(direction).puppets(receive, send, LONG_TIMEOUT) == f"{WRAPPING} bytes came as they were sent"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_thousand_connections_at_once(machines, direction):
    way, port, count = machines.way(direction), 7040, 1000
    script = f"ulimit -n 4096; exec {' '.join(way.puppet(way.passive, 'serve', '--port', port))}"
    with way.serving(["sh", "-c", script]):
        words = ["echo", "--cid", way.cid, "--port", port, "--connections", count, "--bytes", 1000]
        command = f"ulimit -n 4096; exec {' '.join(way.puppet(way.active, *words))}"
        output = way.active.shell(command, timeout=LONG_TIMEOUT * runs.patience()).stdout
    assert f"{count} connections" in output


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ten_thousand_connections_one_after_the_other(ours, direction):
    if not LONG:
        pytest.skip("takes minutes: LONG=1")
    way, port, count = ours.way(direction), 7041, 10_000
    with way.serving(way.puppet(way.passive, "serve", "--port", port)):
        words = ["sequence", "--cid", way.cid, "--port", port, "--connections", count]
        output = way.active.run(way.puppet(way.active, *words), timeout=LONG_TIMEOUT * runs.patience()).stdout
    assert f"{count} connections" in output


def test_many_writers_with_one_slow_reader(way):
    # 400 KiB of each: more than a window.
    port, writers, messages = 7050, 16, 200
    read = ["read-slowly", "--port", port, "--writers", writers, "--every", 40, "--pause", 20]
    write = ["write", "--port", port, "--writers", writers, "--messages", messages]
    expected = f"{writers * messages} messages of {writers} writers came whole, in order"
    assert way.puppets(read, write) == expected


@pytest.mark.parametrize("driver", ["c", "rust"])
def test_a_stalled_reader_holds_up_nobody_else(ours, driver):
    """It waits for memory in the kernel (userfaultfd). The C driver waits with it."""
    way = ours.way("g2h")
    ours.guest.load("guest", driver)
    try:
        with (
            way.serving(way.puppet(way.passive, "beat", "--port", 7060)),
            way.serving(way.puppet(way.passive, "serve", "--port", 7061)),
        ):
            command = way.puppet(way.active, "stall", "--beat", 7060, "--echo", 7061)
            result = way.active.run(command, timeout=TIMEOUT * runs.patience(), check=False)
    finally:
        ours.guest.load("guest", "rust")
    print(result.stdout, result.stderr)
    if driver == "c":
        # Or the test would prove nothing.
        assert result.status == 1 and "held up: nothing came back" in result.stderr
    else:
        assert result.status == 0
        assert re.search(r"beside a stalled reader: \S+ on a connection, \S+ on a new one", result.stdout)
