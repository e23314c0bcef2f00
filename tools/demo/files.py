# SPDX-License-Identifier: GPL-2.0
"""Step 4: a file to the guest and back."""

import re

from .stage import CID_GUEST, CID_HOST, Stage

TITLE = "A 64 MiB file in each direction (samples/transfer.rs)"

MEBIBYTES = 64
PORT = 5000
SENT, RETURNED = "/tmp/sent", "/tmp/returned"

# 1 MB/s: a tenth of what an emulated guest reaches on a busy machine.
TIMEOUT = 60.0 + MEBIBYTES


def show(stage: Stage) -> None:
    stage.run("host", f"head -c {MEBIBYTES}M /dev/urandom >{SENT}")
    transfer(stage, "host", "guest", f"send {SENT} {CID_GUEST} {PORT}", SENT)
    transfer(stage, "guest", "host", f"send {SENT} {CID_HOST} {PORT}", RETURNED)
    lines = stage.run("host", f"sha256sum {SENT} {RETURNED}") + stage.run("guest", f"sha256sum {SENT}")
    sums = [line.split()[0] for line in lines.splitlines()]
    stage.require(
        len(sums) == 3 and len(set(sums)) == 1, "what was sent, what arrived and what came back are equal"
    )
    stage.host.shell(f"rm {SENT} {RETURNED}")
    stage.guest.shell(f"rm {SENT}")


def transfer(stage: Stage, sender: str, receiver: str, arguments: str, target: str) -> None:
    command = f"vsock-transfer receive {PORT} {target}"
    with stage.background(receiver, command, "listening") as receiving:
        report = stage.run(sender, f"vsock-transfer {arguments}", TIMEOUT)
        receiving.wait(TIMEOUT)
    found = re.fullmatch(rf"sent {MEBIBYTES << 20} bytes in \S+ s, (\d+ MB/s)\n", report)
    rate = found[1] if found else "an unknown rate"
    stage.require(bool(found), f"{sender} to {receiver}: {MEBIBYTES} MiB at {rate}")
