# SPDX-License-Identifier: GPL-2.0
"""Reads captures of a vsockmon device, as tcpdump writes them (linux/vsockmon.h, pcap-savefile(5))."""

import struct
import typing

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
