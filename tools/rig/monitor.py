# SPDX-License-Identifier: GPL-2.0
"""The monitor of a QEMU (QMP): for plugging devices in and out, and to see what a machine does that hangs."""

import contextlib
import json
import socket
import threading
import typing

from .channel import PATIENCE, Kind
from .errors import MachineError

if typing.TYPE_CHECKING:
    from .host import Host


class Monitor:
    """A connection to a QEMU. Subclasses carry bytes: have `_write()` and `close()`, and call `_receive()`."""

    def __init__(self, patience: float):
        """`patience` is how long QEMU may take to answer, in seconds."""
        self._patience = patience
        self._answers: list[dict] = []
        self._partial = b""
        self._changed = threading.Condition()

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

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
        self._write(json.dumps(request).encode() + b"\n")
        answer = self._wait(lambda answer: "return" in answer or "error" in answer, f"answer to {command}")
        if "error" in answer:
            raise MachineError(f"QEMU refused {command}: {answer['error'].get('desc')}")
        return answer["return"]

    def wait_event(self, name: str, **data: object) -> dict:
        """The next event of a kind and with such data, also if it has happened already."""

        def wanted(answer: dict) -> bool:
            return answer.get("event") == name and data.items() <= answer.get("data", {}).items()

        return self._wait(wanted, f"event {name}")


class GuestMonitor(Monitor):
    """That of a guest's QEMU, whose socket is in the host: a command there carries the bytes."""

    def __init__(self, host: "Host", path: str, patience: float = PATIENCE):
        super().__init__(patience)
        sinks = {Kind.STDOUT: self._receive}
        # A QEMU that was started just now is not there yet.
        address = f"UNIX-CONNECT:{path},retry={PATIENCE * 5:.0f},interval=0.2"
        self._command = host.channel.start(["socat", "-", address], sinks=sinks)
        self.execute("qmp_capabilities")

    def _write(self, data: bytes) -> None:
        self._command.write(data)

    def close(self) -> None:
        self._command.kill()


class HostMonitor(Monitor):
    """That of the host's QEMU, which has the other end of a socket."""

    def __init__(self, end: socket.socket, patience: float = PATIENCE):
        super().__init__(patience)
        self._socket = end
        threading.Thread(target=self._read, name="host monitor", daemon=True).start()
        self.execute("qmp_capabilities")

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 16):
                self._receive(data)

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise MachineError(f"QEMU's monitor: {error}") from None

    def close(self) -> None:
        self._socket.close()
