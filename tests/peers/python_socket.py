#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Python's socket module over AF_VSOCK: what a program written for TCP would use of it, at both ends."""

import hashlib
import os
import selectors
import socket
import sys
import tempfile

SIZE = 300_000
TIMEOUT = 60
SO_VM_SOCKETS_BUFFER_SIZE = socket.SO_VM_SOCKETS_BUFFER_SIZE


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answer(stream: socket.socket, request: str) -> None:
    """The server's part: a line asks, the rest is up to the request."""
    if request == "sum":
        with stream.makefile("rb") as reader:
            data = reader.read(SIZE)
        stream.sendall(checksum(data).encode() + b"\n")
    elif request == "lines":
        with stream.makefile("rw", newline="\n") as file:
            for line in file:
                file.write(line.upper())
                file.flush()
    elif request == "close":
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)


def read_line(stream: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += stream.recv(1) or sys.exit("the other end is gone")
    return line.decode().strip()


def serve(port: int) -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    messages = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
    messages.bind((socket.VMADDR_CID_ANY, port + 1))
    messages.listen()
    print("listening", flush=True)
    while True:
        stream, peer = listener.accept()
        with stream:
            assert stream.getpeername() == peer
            request = read_line(stream)
            if request == "messages":
                exchange_messages(messages)
            else:
                answer(stream, request)


def exchange_messages(listener: socket.socket) -> None:
    with listener.accept()[0] as end:
        while message := end.recv(100_000):
            end.sendall(message[::-1])


def ask(cid: int, port: int, request: str) -> socket.socket:
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    stream.settimeout(TIMEOUT)
    stream.connect((cid, port))
    assert stream.getpeername() == (cid, port)
    stream.sendall(f"{request}\n".encode())
    return stream


def use_sendall(cid: int, port: int) -> None:
    data = os.urandom(SIZE)
    with ask(cid, port, "sum") as stream:
        stream.sendall(data)
        assert read_line(stream) == checksum(data)


def use_sendfile(cid: int, port: int) -> None:
    data = os.urandom(SIZE)
    with tempfile.TemporaryFile() as file, ask(cid, port, "sum") as stream:
        file.write(data)
        file.seek(0)
        assert stream.sendfile(file) == SIZE
        assert read_line(stream) == checksum(data)


def use_sendmsg(cid: int, port: int) -> None:
    pieces = [os.urandom(SIZE // 3) for _ in range(3)]
    with ask(cid, port, "sum") as stream:
        for piece in pieces:
            half = len(piece) // 2
            sent = stream.sendmsg([piece[:half], piece[half:]])
            stream.sendall(piece[sent:])
        buffer = bytearray(65)
        assert stream.recvmsg_into([memoryview(buffer)[:60], memoryview(buffer)[60:]], 0, socket.MSG_WAITALL)[0] == 65
        assert buffer.decode().strip() == checksum(b"".join(pieces))


def use_lines(cid: int, port: int) -> None:
    with ask(cid, port, "lines") as stream, stream.makefile("rw", newline="\n") as file:
        for number in range(100):
            file.write(f"line {number}\n")
            file.flush()
            assert file.readline() == f"LINE {number}\n"


def use_selectors(cid: int, port: int) -> None:
    with ask(cid, port, "lines") as stream, selectors.DefaultSelector() as selector:
        stream.setblocking(False)
        selector.register(stream, selectors.EVENT_READ | selectors.EVENT_WRITE)
        assert selector.select(TIMEOUT)[0][1] == selectors.EVENT_WRITE
        selector.modify(stream, selectors.EVENT_READ)
        assert selector.select(0) == []
        stream.send(b"ready\n")
        assert selector.select(TIMEOUT)[0][1] == selectors.EVENT_READ
        assert stream.recv(100) == b"READY\n"


def use_timeout(cid: int, port: int) -> None:
    with ask(cid, port, "lines") as stream:
        stream.settimeout(0.2)
        try:
            stream.recv(1)
        except TimeoutError:
            return
        raise AssertionError("no timeout")


def use_options(cid: int, port: int) -> None:
    with ask(cid, port, "lines") as stream:
        stream.setsockopt(socket.AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, 65536)
        assert stream.getsockopt(socket.AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE) == 65536
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def use_end(cid: int, port: int) -> None:
    with ask(cid, port, "close") as stream:
        assert stream.recv(1) == b""
        stream.sendall(b"x")


def use_messages(cid: int, port: int) -> None:
    with ask(cid, port, "messages"), socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET) as end:
        end.settimeout(TIMEOUT)
        end.connect((cid, port + 1))
        for size in (1, 1000, 70_000):
            message = os.urandom(size)
            end.sendall(message)
            assert end.recv(100_000) == message[::-1]


def use_nobody(cid: int, port: int) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as stream:
        stream.settimeout(TIMEOUT)
        try:
            stream.connect((cid, port + 2))
        except ConnectionResetError:
            return
        raise AssertionError("somebody listens")


USES = {name.removeprefix("use_"): use for name, use in globals().copy().items() if name.startswith("use_")}


def main() -> None:
    command, *rest = sys.argv[1:]
    if command == "serve":
        serve(int(rest[0]))
    else:
        cid, port = map(int, rest)
        for name, use in USES.items():
            use(cid, port)
            print(name, flush=True)


if __name__ == "__main__":
    main()
