# SPDX-License-Identifier: GPL-2.0
"""Captures of a vsockmon device, as tcpdump writes them (linux/vsockmon.h, pcap-savefile(5))."""

import base64
import contextlib
import signal
import struct
import typing
from collections.abc import Iterator

from rig import runs
from rig.machine import Machine

# tcpdump begins and ends within seconds.
TIMEOUT = 60.0

FILE_HEADER = struct.Struct("<IHHiIII")
RECORD_HEADER = struct.Struct("<IIII")
MAGIC = 0xA1B2C3D4
LINKTYPE_VSOCK = 271
# struct af_vsockmon_hdr
PACKET = struct.Struct("<QQIIHHH2x")
OPERATIONS = {1: "connect", 2: "disconnect", 3: "control", 4: "payload"}


class Packet(typing.NamedTuple):
    source: tuple[int, int]
    destination: tuple[int, int]
    operation: str
    payload: bytes


@contextlib.contextmanager
def capturing(machine: Machine) -> Iterator[str]:
    """tcpdump writes a file meanwhile."""
    script = "modprobe vsockmon; ip link add vsockmon0 type vsockmon; ip link set vsockmon0 up"
    machine.shell(script)
    # Room for all of it: in immediate mode each packet takes as much as the largest.
    command = ["tcpdump", "-B", "16384", "--immediate-mode", "-U", "-i", "vsockmon0", "-w", "/tmp/capture"]
    capture = machine.start(command)
    try:
        capture.wait_for("listening on", TIMEOUT * runs.patience())
        yield "/tmp/capture"
        # What is under way.
        machine.shell("sleep 1")
        capture.signal(signal.SIGINT)
        capture.wait(TIMEOUT * runs.patience())
        assert "0 packets dropped by kernel" in capture.stderr.splitlines()
    finally:
        capture.kill()
        machine.shell("ip link delete vsockmon0; rmmod vsockmon")


def captured(machine: Machine, path: str) -> list[Packet]:
    """What such a file has."""
    return packets(base64.b64decode(machine.run(["base64", "-w", "0", path]).stdout))


def packets(capture: bytes) -> list[Packet]:
    magic, _, _, _, _, _, link_type = FILE_HEADER.unpack_from(capture)
    assert (magic, link_type) == (MAGIC, LINKTYPE_VSOCK)
    found, position = [], FILE_HEADER.size
    while position < len(capture):
        _, _, captured, original = RECORD_HEADER.unpack_from(capture, position)
        assert captured == original, "a packet was cut short"
        position += RECORD_HEADER.size
        found.append(packet(capture[position : position + captured]))
        position += captured
    return found


def packet(data: bytes) -> Packet:
    source, destination, source_port, destination_port, operation, _, header_len = PACKET.unpack_from(data)
    payload = data[PACKET.size + header_len :]
    return Packet((source, source_port), (destination, destination_port), OPERATIONS[operation], payload)
