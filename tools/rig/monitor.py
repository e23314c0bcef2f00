# SPDX-License-Identifier: GPL-2.0
"""The monitor of a guest's QEMU (QMP), for plugging devices in and out."""

import json
import threading
import typing

from .channel import PATIENCE, Kind
from .errors import MachineError

if typing.TYPE_CHECKING:
    from .host import Host


class Monitor:
    """A connection to a QMP socket in the host, carried by a command there."""

    def __init__(self, host: "Host", path: str, patience: float = PATIENCE):
        """`patience` is how long QEMU may take to answer, in seconds."""
        self._patience = patience
        self._answers: list[dict] = []
        self._partial = b""
        self._changed = threading.Condition()
        sinks = {Kind.STDOUT: self._receive}
        # A QEMU that was started just now is not there yet.
        address = f"UNIX-CONNECT:{path},retry={PATIENCE * 5:.0f},interval=0.2"
        self._command = host.channel.start(["socat", "-", address], sinks=sinks)
        self.execute("qmp_capabilities")

    def _receive(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        with self._changed:
            self._answers += [json.loads(line) for line in lines if line.strip()]
            self._changed.notify_all()

    def _wait(self, wanted: typing.Callable[[dict], bool], what: str) -> dict:
        def find() -> dict | None:
            return next((answer for answer in self._answers if wanted(answer)), None)

        with self._changed:
            answer = self._changed.wait_for(find, self._patience)
            if answer is None:
                raise MachineError(f"QEMU's monitor gave no {what} for {self._patience:.0f} s")
            self._answers.remove(answer)
        return answer

    def execute(self, command: str, **arguments) -> object:
        request = {"execute": command, "arguments": arguments}
        self._command.write(json.dumps(request).encode() + b"\n")
        answer = self._wait(lambda answer: "return" in answer or "error" in answer, f"answer to {command}")
        if "error" in answer:
            raise MachineError(f"QEMU refused {command}: {answer['error'].get('desc')}")
        return answer["return"]

    def wait_event(self, name: str, **data: object) -> dict:
        """The next event of a kind and with such data, also if it has happened already."""

        def wanted(answer: dict) -> bool:
            return answer.get("event") == name and data.items() <= answer.get("data", {}).items()

        return self._wait(wanted, f"event {name}")

    def close(self) -> None:
        self._command.kill()
