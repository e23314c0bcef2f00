#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Echo over AF_VSOCK: a server that sends back what it receives, and its client.

`echo.rs` is the same in Rust; client and server of the two understand each other.
"""

import argparse
import socket
import sys
import threading


def listen(port: int) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        print(f"listening on port {port}", flush=True)
        while True:
            stream, (peer_cid, peer_port) = listener.accept()
            print(f"connection from CID {peer_cid} port {peer_port}", flush=True)
            threading.Thread(target=echo, args=[stream], daemon=True).start()


def echo(stream: socket.socket) -> None:
    """Sends everything back until the peer sends no more."""
    try:
        with stream:
            while data := stream.recv(4096):
                stream.sendall(data)
    except OSError as error:
        print(f"connection lost: {error}", file=sys.stderr)


def send(cid: int, port: int, text: str) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as stream:
        stream.connect((cid, port))
        stream.sendall(text.encode())
        stream.shutdown(socket.SHUT_WR)
        answer = b""
        while data := stream.recv(4096):
            answer += data
    if answer != text.encode():
        raise SystemExit("what came back is not what was sent")
    print(f"CID {cid} port {port} sent back: {answer.decode()}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("listen")
    server.add_argument("port", type=int)
    client = commands.add_parser("send")
    client.add_argument("cid", type=int, help="2 is the host; a guest has the CID that it was started with")
    client.add_argument("port", type=int)
    client.add_argument("text")
    return parser.parse_args()


def main() -> None:
    options = parse()
    try:
        if options.command == "listen":
            listen(options.port)
        else:
            send(options.cid, options.port, options.text)
    except OSError as error:
        raise SystemExit(f"port {options.port}: {error}") from None
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
