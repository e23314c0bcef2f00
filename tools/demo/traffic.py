# SPDX-License-Identifier: GPL-2.0
"""Step 5: a connection as ss and tcpdump see it."""

import re
import signal

from .stage import CID_GUEST, CID_HOST, TIMEOUT, Stage

TITLE = "A connection as ss and tcpdump see it"

PORT = 1234
SERVER = f"{CID_HOST}.{PORT}"


def show(stage: Stage) -> None:
    for side in ("guest", "host"):
        stage.machine(side).run(["modprobe", "vsock_diag"])
    stage.run("guest", "modprobe vsockmon; ip link add vsockmon0 type vsockmon; ip link set vsockmon0 up")
    # Immediately: else the last packets are shown a second after the connection has ended.
    with stage.background("guest", "tcpdump -n -l --immediate-mode -i vsockmon0", "listening on") as capture:
        port = connect(stage, capture)
        capture.signal(signal.SIGINT)
        capture.wait(TIMEOUT)
    stage.screen.note("what tcpdump saw:")
    stage.screen.output(capture.stdout)
    check(stage, capture.stdout, f"{CID_GUEST}.{port}")
    stage.run("guest", "ip link delete vsockmon0; rmmod vsockmon")


def connect(stage: Stage, capture) -> int:
    """Opens a connection, looks at it, closes it; the guest's port."""
    with stage.background("host", f"samples/echo.py listen {PORT}", "listening"):
        with stage.background("guest", f"socat - VSOCK-CONNECT:{CID_HOST}:{PORT}", "") as client:
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
        capture.wait_for(f"{SERVER} > {CID_GUEST}.{port} DISCONNECT", TIMEOUT)
    return port


def check(stage: Stage, packets: str, client: str) -> None:
    for kind, claim in {
        "CONNECT": "request and response",
        "PAYLOAD": "data in each direction",
        "DISCONNECT": "shutdown from each side",
    }.items():
        directions = (f"{client} > {SERVER}", f"{SERVER} > {client}")
        stage.require(all(f"VIRTIO {each} {kind}," in packets for each in directions), f"{claim} ({kind})")
