#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A program on a host whose vsock device speaks to Unix sockets (vhost-device-vsock, Firecracker, Cloud Hypervisor).

What a guest connects to port P of the host comes to the socket PATH_P; who connects to PATH and writes
`CONNECT P` is led to port P of the guest.
"""

import argparse
import hashlib
import os
import socket
import sys
import threading
import time

PIECE = 256 * 1024

# Bytes that are sent back late.
LATE = 10_000


def listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(256)
    print("listening", flush=True)
    return listener


def connect(path: str, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(f"CONNECT {port}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            sys.exit(f"port {port} of the guest refuses")
        answer += byte
    if not answer.startswith(b"OK "):
        sys.exit(f"the device says {answer!r}")
    return connection


def receive(connection: socket.socket) -> bytes:
    """All bytes to the end."""
    pieces = []
    while piece := connection.recv(PIECE):
        pieces.append(piece)
    return b"".join(pieces)


def send_back(connection: socket.socket) -> None:
    with connection:
        while piece := connection.recv(PIECE):
            connection.sendall(piece)


def send_back_late(connection: socket.socket) -> None:
    """Says nothing before everything has come, and the other side has had time to shut down."""
    with connection:
        data = connection.recv(LATE, socket.MSG_WAITALL)
        time.sleep(1)
        connection.sendall(data)


def serve(path: str, answer) -> None:
    listener = listen(path)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def count(path: str) -> None:
    """Says how much came on a connection, and its sum."""
    connection, _ = listen(path).accept()
    data = receive(connection)
    print(len(data), hashlib.sha256(data).hexdigest(), flush=True)


def send(path: str, port: int, size: int) -> None:
    """Sends random bytes, and says their sum."""
    data = os.urandom(size)
    with connect(path, port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        receive(connection)
    print(len(data), hashlib.sha256(data).hexdigest(), flush=True)


def exchange(path: str, port: int, connections: int, size: int) -> None:
    """Opens all connections, then sends bytes on each and compares what comes back."""
    sockets = [connect(path, port) for _ in range(connections)]
    for number, connection in enumerate(sockets):
        data = os.urandom(size)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        received = b""
        while len(received) < size:
            piece = connection.recv(PIECE)
            if not piece:
                sys.exit(f"connection {number}: {len(received)} of {size} bytes came back")
            received += piece
        sender.join()
        if received != data:
            sys.exit(f"connection {number}: other bytes came back")
        connection.close()
    print(f"{connections} connections, {size} bytes each, came back as they were", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("echo", "echo-late", "count"):
        commands.add_parser(name).add_argument("path")
    sender = commands.add_parser("send")
    exchanger = commands.add_parser("exchange")
    for command in (sender, exchanger):
        command.add_argument("path")
        command.add_argument("port", type=int)
        command.add_argument("size", type=int)
    exchanger.add_argument("connections", type=int)
    given = parser.parse_args()
    match given.command:
        case "echo":
            serve(given.path, send_back)
        case "echo-late":
            serve(given.path, send_back_late)
        case "count":
            count(given.path)
        case "send":
            send(given.path, given.port, given.size)
        case "exchange":
            exchange(given.path, given.port, given.connections, given.size)


if __name__ == "__main__":
    main()
