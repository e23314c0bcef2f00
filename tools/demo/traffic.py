# SPDX-License-Identifier: GPL-2.0
"""Step 5: a connection as ss and tcpdump see it."""

import re
import signal

from rig.channel import Command

from .stage import CID_GUEST, CID_HOST, TIMEOUT, Stage

TITLE = "A connection as ss and tcpdump see it"

PORT = 1234
HOST = f"{CID_HOST}.{PORT}"

# At once: else the last packets are shown a second after the connection has ended.
CAPTURE = "tcpdump -v -n -l --immediate-mode -i vsockmon0"
# The client waits for the server's end, also where that takes longer than usual.
CLIENT = f"socat -t 60 - VSOCK-CONNECT:{CID_HOST}:{PORT}"

PACKET = re.compile(r"op ([A-Z ]+),.*\n\s+(\S+) > (\S+) ")


def show(stage: Stage) -> None:
    for side in ("guest", "host"):
        stage.machine(side).run(["modprobe", "vsock_diag"])
    stage.run("guest", "modprobe vsockmon; ip link add vsockmon0 type vsockmon; ip link set vsockmon0 up")
    with stage.background("guest", CAPTURE, "listening on") as capture:
        port = connect(stage, capture)
        capture.signal(signal.SIGINT)
        capture.wait(TIMEOUT)
    stage.screen.note("what tcpdump saw:")
    stage.screen.output(capture.stdout)
    check(stage, PACKET.findall(capture.stdout), f"{CID_GUEST}.{port}")
    stage.run("guest", "ip link delete vsockmon0; rmmod vsockmon")


def connect(stage: Stage, capture: Command) -> int:
    """Opens a connection, looks at it, closes it; the guest's port."""
    with stage.background("host", f"samples/echo.py listen {PORT}", "listening"):
        with stage.background("guest", CLIENT, "") as client:
            client.write(b"hello\n")
            client.wait_for("hello", TIMEOUT)
            guest = stage.run("guest", "ss --vsock")
            host = stage.run("host", "ss --vsock")
            found = re.search(rf"ESTAB\s.*:(\d+)\s+{CID_HOST}:{PORT}\b", guest)
            port = int(found[1]) if found else 0
            seen = re.search(rf"ESTAB\s.*\s\S+:{PORT}\s+{CID_GUEST}:{port}\b", host)
            stage.require(bool(found and seen), "both sides show the connection, and agree on its addresses")
            client.close_input()
            client.wait(TIMEOUT)
        capture.wait_for("op RST", TIMEOUT)
    return port


def check(stage: Stage, packets: list[tuple[str, str, str]], guest: str) -> None:
    """Looks for what belongs to a connection among operations with source and destination."""

    def seen(operation: str, *pairs: tuple[str, str]) -> bool:
        return all((operation, *pair) in packets for pair in pairs)

    to_host, to_guest = (guest, HOST), (HOST, guest)
    stage.require(seen("REQUEST", to_host) and seen("RESPONSE", to_guest), "the guest asks, the host accepts")
    stage.require(seen("RW", to_host, to_guest), "data in each direction")
    stage.require(seen("SHUTDOWN", to_host, to_guest), "each side ends its own half")
    stage.require(any(each[0] == "RST" for each in packets), "and the connection is done")
