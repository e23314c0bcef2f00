# SPDX-License-Identifier: GPL-2.0
"""Guests whose vsock device is somebody else's: vhost-device-vsock of rust-vmm, with the drivers side by side."""

import contextlib
import pathlib
import typing
from collections.abc import Iterator

import pytest
import rig
from peers import vhost_device_vsock
from rig import programs, runs

pytestmark = pytest.mark.clients

CID = 8
SOCKET = "/run/other.sock"
# Connections of the guest to port P come to UNIX_P.
UNIX = "/run/other"
UNIX_PROGRAM = pathlib.Path(__file__).parent / "peers" / "unix_vsock.py"

# Says why it refuses a packet.
LOG = {"RUST_LOG": "warn,vhost_device_vsock::vhu_vsock_thread=debug"}

MIB = 1024 * 1024
BULK = 64 * MIB

# 64 MiB take 6 s on a quiet machine, 100 connections 5 s.
TIMEOUT = 60.0


class Machines(typing.NamedTuple):
    host: rig.Host
    guest: rig.Guest
    device: rig.Command
    implementation: str

    def unix(self, *arguments: object) -> list[str]:
        """A command in the host, at the Unix end of connections."""
        return ["python3", str(UNIX_PROGRAM), *map(str, arguments)]

    @contextlib.contextmanager
    def serving(self, command: str, port: int) -> Iterator[rig.Command]:
        """A program in the host to which port `port` leads."""
        path = f"{UNIX}_{port}"
        server = self.host.start(self.unix(command, path))
        try:
            server.wait_for("listening", TIMEOUT)
            yield server
        finally:
            server.kill()
            self.host.run(["rm", "-f", path])

    @contextlib.contextmanager
    def guest_echo(self, port: int) -> Iterator[None]:
        """A program in the guest that sends back what comes to `port`."""
        server = self.guest.start([self.puppet, "serve", "--port", str(port)])
        try:
            server.wait_for("listening", TIMEOUT)
            yield
        finally:
            server.kill()

    @property
    def puppet(self) -> str:
        return self.guest.program(programs.build("rvsock-puppet"))

    def echo(self, port: int, *options: str) -> None:
        """Bytes of the guest that come back from the host."""
        command = [self.puppet, "echo", "--port", str(port), *options]
        self.guest.run(command, timeout=TIMEOUT * runs.patience())

    def bulk_to_host(self, port: int, size: int, timeout: float) -> tuple[str, str]:
        """Sends a file of the guest to the host; the sums of both ends."""
        script = f"dd if=/dev/urandom of=/tmp/bulk bs=1M count={size // MIB} 2>/dev/null; sha256sum </tmp/bulk"
        sent = self.guest.shell(script, timeout=TIMEOUT * runs.patience()).stdout.split()[0]
        with self.serving("count", port) as server:
            # Large writes are what packets of 64 KiB come from.
            command = ["socat", "-b262144", "-u", "OPEN:/tmp/bulk", f"VSOCK-CONNECT:2:{port}"]
            self.guest.run(command, timeout=timeout * runs.patience())
            result = server.wait(timeout * runs.patience()).stdout
        return sent, result.split()[-1]


@pytest.fixture(scope="module", params=["c", "rust"])
def machines(request, host):
    """A device and a guest for each driver: a device that fails with one must not be in the way of the other."""
    program = host.program(vhost_device_vsock.build())
    host.shell(f"rm -f {SOCKET} {UNIX} {UNIX}_*")
    device = host.start([program, "--guest-cid", str(CID), "--socket", SOCKET, "--uds-path", UNIX], env=LOG)
    try:
        host.shell(f"while ! test -S {SOCKET}; do sleep 0.1; done", timeout=TIMEOUT)
        with host.guest(cid=CID, vhost_user=SOCKET, programs=("socat",)) as guest:
            guest.load("guest", request.param)
            yield Machines(host, guest, device, request.param)
    finally:
        print(device.stderr[-3000:])
        device.kill()


@pytest.mark.parametrize("connections", [1, 100])
def test_bytes_come_back_from_the_host(machines, connections):
    port = 5000 + connections
    with machines.serving("echo", port):
        machines.echo(port, "--bytes=1000", f"--connections={connections}")


@pytest.mark.parametrize("connections", [1, 100])
def test_bytes_come_back_from_the_guest(machines, connections):
    port = 6000 + connections
    with machines.guest_echo(port):
        command = machines.unix("exchange", UNIX, port, 1000, connections)
        machines.host.run(command, timeout=TIMEOUT * runs.patience())


def test_a_guest_that_sends_no_more_still_receives(machines):
    # The device does not tell its Unix side of that.
    with machines.serving("echo-late", 5002):
        machines.echo(5002, "--bytes=10000", "--half-close")


def test_64_mib_to_the_guest(machines):
    receiver = machines.guest.start(["sh", "-c", "socat -u VSOCK-LISTEN:6002 - | sha256sum"])
    try:
        machines.guest.shell("sleep 1")
        sending = machines.unix("send", UNIX, 6002, BULK)
        sent = machines.host.run(sending, timeout=TIMEOUT * runs.patience()).stdout.split()[-1]
        received = receiver.wait(TIMEOUT * runs.patience()).stdout.split()[0]
    finally:
        receiver.kill()
    assert received == sent


def test_64_mib_to_the_host(machines):
    """Packets of the C driver consist of a header and several pieces, which this device refuses."""
    if machines.implementation == "rust":
        sent, received = machines.bulk_to_host(5003, BULK, TIMEOUT)
        assert sent == received
    else:
        # One packet is enough.
        with pytest.raises(rig.CommandError):
            machines.bulk_to_host(5003, MIB, 10)
        assert "DescriptorLengthTooSmall" in machines.device.stderr
