#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Breaks the rules of RPC on a vsock stream, as a client and as a server. Runs in the machines.

`client CID PORT CASE` does something to a server, and checks that the server still answers others.
`stranger CID PORT` checks that the server does not let itself be called.
`server PORT CASE` listens and does something to who connects.
"""

import random
import socket
import struct
import sys
import time

LAST = 1 << 31
CALL, REPLY = 0, 1
NFS, NFS_VERSION = 100003, 4
# A server that has not answered for so long will not.
PATIENCE = 20.0


def words(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def fragment(body: bytes, last: bool = True) -> bytes:
    return words(len(body) | (LAST if last else 0)) + body


def null_call(xid: int) -> bytes:
    """The procedure that does nothing, without credentials."""
    return words(xid, CALL, 2, NFS, NFS_VERSION, 0, 0, 0, 0, 0)


def connect(cid: int, port: int) -> socket.socket:
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.connect((cid, port))
    return stream


def receive(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def answer(stream: socket.socket) -> tuple[int, ...]:
    (marker,) = struct.unpack(">I", receive(stream, 4))
    body = receive(stream, marker & ~LAST)
    return struct.unpack(f">{len(body) // 4}I", body)


def is_answered(stream: socket.socket, xid: int) -> bool:
    stream.sendall(fragment(null_call(xid)))
    return answer(stream)[:3] == (xid, REPLY, 0)


def is_closed(stream: socket.socket) -> bool:
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True


# What a client does; each returns whether the server did what it should.


def longest_fragment(stream):
    stream.sendall(words(0xFFFFFFFF))
    return is_closed(stream)


def many_fragments_that_are_too_long_together(stream):
    piece = fragment(bytes(1 << 16), last=False)
    try:
        for _ in range(200):
            stream.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return is_closed(stream)


def empty_fragments(stream):
    stream.sendall(words(0) * 1000)
    return is_closed(stream)


def record_without_a_number(stream):
    stream.sendall(fragment(b"abcd"))
    return is_closed(stream)


def empty_record(stream):
    stream.sendall(fragment(b""))
    return is_closed(stream)


def neither_call_nor_reply(stream):
    stream.sendall(fragment(words(1, 2, 3, 4)))
    return is_closed(stream)


def replies_that_nobody_waits_for(stream):
    for xid in range(100):
        stream.sendall(fragment(words(xid, REPLY, 0, 0, 0, 0)))
    return is_answered(stream, 7)


def a_reply_longer_than_a_page(stream):
    stream.sendall(fragment(words(1, REPLY) + bytes(100_000)))
    return is_closed(stream)


def a_call_in_single_bytes(stream):
    call = null_call(9)
    for at in range(len(call)):
        stream.sendall(fragment(call[at : at + 1], last=at + 1 == len(call)))
        if at % 7 == 0:
            time.sleep(0.01)
    return answer(stream)[:3] == (9, REPLY, 0)


def half_a_marker(stream):
    stream.sendall(b"\x80\0")
    return True


def half_a_record(stream):
    stream.sendall(words(LAST | 100_000) + bytes(70_000))
    time.sleep(0.2)
    return True


def calls_without_reading(stream):
    """Other connections are answered while the replies to these stand in the way of nobody."""
    calls = b"".join(fragment(null_call(xid)) for xid in range(5000))
    stream.settimeout(3.0)
    try:
        for _ in range(40):
            stream.sendall(calls)
    except TimeoutError:
        return True
    return False


def random_bytes(stream, seed=1):
    generator = random.Random(seed)
    for _ in range(50):
        body = generator.randbytes(generator.randrange(0, 300))
        record = generator.choice(
            [body, fragment(body), fragment(body, False), fragment(null_call(3) + body), fragment(words(5, 1) + body)]
        )
        try:
            stream.sendall(record)
        except (BrokenPipeError, ConnectionResetError):
            break
    return True


CLIENT_CASES = [
    longest_fragment,
    many_fragments_that_are_too_long_together,
    empty_fragments,
    record_without_a_number,
    empty_record,
    neither_call_nor_reply,
    replies_that_nobody_waits_for,
    a_reply_longer_than_a_page,
    a_call_in_single_bytes,
    half_a_marker,
    half_a_record,
    calls_without_reading,
    random_bytes,
]


def attack(cid: int, port: int, name: str) -> bool:
    case = next(case for case in CLIENT_CASES if case.__name__ == name)
    if case is random_bytes:
        for seed in range(100):
            random_bytes(connect(cid, port), seed)
    streams = [connect(cid, port) for _ in range(8 if case is calls_without_reading else 1)]
    for stream in streams:
        if not case(stream):
            print(f"{name}: the server did not do what it should")
            return False
    if not is_answered(connect(cid, port), 1):
        print(f"{name}: the server does not answer others any more")
        return False
    return True


def visit(cid: int, port: int) -> bool:
    """Whether a server refuses one that it does not know, and keeps nothing of what that sends."""
    stream = connect(cid, port)
    for xid in range(100):
        stream.sendall(fragment(null_call(xid)))
        if answer(stream) != (xid, REPLY, 1, 1, 1):
            return False
    stream.sendall(words(LAST | 500_000) + bytes(70_000))
    return is_closed(stream)


# What a server does with a call of its client.


def accepted(xid: int) -> bytes:
    """The answer to the procedure that does nothing."""
    return fragment(words(xid, REPLY, 0, 0, 0, 0))


def say_nothing(stream, xid):
    pass


def close(stream, xid):
    stream.close()


def longest_answer(stream, xid):
    stream.sendall(words(0xFFFFFFFF) + words(xid, REPLY) + bytes(1 << 20))


def empty_answers(stream, xid):
    stream.sendall(words(0) * 100 + accepted(xid))


def empty_records(stream, xid):
    stream.sendall(fragment(b"") * 100 + accepted(xid))


def answers_to_others(stream, xid):
    for other in range(200):
        stream.sendall(accepted(xid ^ (other + 1)))
    stream.sendall(accepted(xid))


def the_same_answer_often(stream, xid):
    stream.sendall(accepted(xid) * 50)


def answer_in_single_bytes(stream, xid):
    body = accepted(xid)[4:]
    for at in range(len(body)):
        stream.sendall(fragment(body[at : at + 1], last=at + 1 == len(body)))


def answer_of_eight_bytes(stream, xid):
    stream.sendall(fragment(words(xid, REPLY)))


def answer_that_is_too_long(stream, xid):
    stream.sendall(fragment(words(xid, REPLY, 0, 0, 0, 0) + bytes(300_000)))


def call_the_client(stream, xid):
    """Nobody takes calls before a session has been made."""
    for number in range(100):
        stream.sendall(fragment(words(number, CALL, 2, 0x40000000, 1, 0, 0, 0, 0, 0)))


def call_the_client_with_too_much(stream, xid):
    stream.sendall(fragment(words(1, CALL, 2, 0x40000000, 1, 1) + bytes(100_000)))


def random_answers(stream, xid):
    generator = random.Random(xid)
    for _ in range(50):
        body = words(generator.choice([xid, 1]), generator.choice([0, 1, 1, 2]))
        body += generator.randbytes(generator.randrange(0, 300))
        stream.sendall(fragment(body, generator.random() < 0.8))


SERVER_CASES = [
    say_nothing,
    close,
    longest_answer,
    empty_answers,
    empty_records,
    answers_to_others,
    the_same_answer_often,
    answer_in_single_bytes,
    answer_of_eight_bytes,
    answer_that_is_too_long,
    call_the_client,
    call_the_client_with_too_much,
    random_answers,
]


def serve(port: int, name: str) -> None:
    case = next(case for case in SERVER_CASES if case.__name__ == name)
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(16)
    print("listening", flush=True)
    while True:
        stream, _ = listener.accept()
        try:
            while True:
                (marker,) = struct.unpack(">I", receive(stream, 4))
                body = receive(stream, marker & ~LAST)
                print("called", flush=True)
                case(stream, struct.unpack(">I", body[:4])[0])
        except (EOFError, OSError):
            stream.close()


def main(arguments: list[str]) -> int:
    if arguments[0] == "client":
        cid, port, name = int(arguments[1]), int(arguments[2]), arguments[3]
        return 0 if attack(cid, port, name) else 1
    if arguments[0] == "stranger":
        return 0 if visit(int(arguments[1]), int(arguments[2])) else 1
    serve(int(arguments[1]), arguments[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
