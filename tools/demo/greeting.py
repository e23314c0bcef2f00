# SPDX-License-Identifier: GPL-2.0
"""Step 2: a greeting in each direction, between a Rust and a Python program."""

from .stage import CID_GUEST, CID_HOST, Stage

TITLE = "A greeting in each direction (samples/echo.rs and echo.py)"

PORT = 1234
PROGRAMS = {"guest": "vsock-echo", "host": "samples/echo.py"}
CIDS = {"guest": CID_GUEST, "host": CID_HOST}


def show(stage: Stage) -> None:
    greet(stage, "guest", "host")
    greet(stage, "host", "guest")


def greet(stage: Stage, client: str, server: str) -> None:
    greeting = f"greetings from the {client}"
    with stage.background(server, f"{PROGRAMS[server]} listen {PORT}", "listening") as listening:
        answer = stage.run(client, f"{PROGRAMS[client]} send {CIDS[server]} {PORT} '{greeting}'")
    stage.screen.note(f"meanwhile in the {server}:")
    stage.screen.output(listening.stdout)
    stage.require(
        answer.strip() == f"CID {CIDS[server]} port {PORT} sent back: {greeting}"
        and f"connection from CID {CIDS[client]} " in listening.stdout,
        f"{client} to {server}: the greeting went there and came back, the {server} saw CID {CIDS[client]}",
    )
