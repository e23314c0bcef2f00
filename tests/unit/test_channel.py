# SPDX-License-Identifier: GPL-2.0
"""The rig's end of the control channel, against an agent that this file plays."""

import queue

import pytest
from rig import CommandFailed, CommandTimeout, MachineHung, MachineLost, channel
from rig.channel import HEADER, Channel, Kind

pytestmark = pytest.mark.unit


class Agent:
    """A stream whose other end is in the hands of the test."""

    def __init__(self) -> None:
        self.obedient = True
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.received: list[tuple[Kind, int, bytes]] = []
        self.channel = Channel("machine", self, "session", lambda: "  (end of the console)")

    def write(self, data: bytes) -> None:
        length, kind, identity = HEADER.unpack_from(data)
        assert len(data) == HEADER.size + length
        self.received.append((Kind(kind), identity, data[HEADER.size :]))
        if kind == Kind.SIGNAL and self.obedient:
            self.send(Kind.EXIT, identity, b"killed 9")

    def read(self) -> bytes:
        return self._pieces.get()

    def send(self, kind: Kind, identity: int, payload: bytes) -> None:
        self._pieces.put(HEADER.pack(len(payload), kind, identity) + payload)

    def send_raw(self, data: bytes) -> None:
        self._pieces.put(data)

    def greet(self) -> "Agent":
        self.send(Kind.HELLO, 0, b"session")
        self.channel.wait_ready(10)
        return self

    def end(self) -> None:
        self._pieces.put(b"")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(channel, "PATIENCE", 0.2)
    monkeypatch.setattr(channel, "CONSOLE_DELAY", 0.2)


@pytest.fixture
def agent():
    return Agent().greet()


def test_a_command_ends_with_its_outputs_and_status(agent):
    command = agent.channel.start(["echo", "hi"], {"A": "1"}, "/tmp")
    kind, identity, payload = agent.received[-1]
    assert (kind, payload) == (Kind.START, b"aecho\0ahi\0eA=1\0d/tmp\0")
    agent.send(Kind.STDOUT, identity, b"hi\n")
    agent.send(Kind.STDERR, identity, b"careful\n")
    agent.send(Kind.EXIT, identity, b"exited 3")
    assert command.wait(10, check=False) == channel.Result(3, "hi\n", "careful\n")
    with pytest.raises(CommandFailed, match="(?s)`echo hi` exited with status 3.*careful"):
        command.wait(10)


@pytest.mark.parametrize("end, words", [(b"killed 11", "SIGSEGV"), (b"failed no such file", "no such file")])
def test_other_ends_are_put_into_words(agent, end, words):
    command = agent.channel.start(["crash"])
    agent.send(Kind.EXIT, agent.received[-1][1], end)
    with pytest.raises(CommandFailed, match=words):
        command.wait(10)


def test_frames_may_come_in_any_pieces(agent):
    command = agent.channel.start(["cat"])
    identity = agent.received[-1][1]
    frames = HEADER.pack(5, Kind.STDOUT, identity) + b"hello" + HEADER.pack(8, Kind.EXIT, identity) + b"exited 0"
    for at in range(len(frames)):
        agent.send_raw(frames[at : at + 1])
    assert command.wait(10).stdout == "hello"


def test_what_firmware_prints_before_the_greeting_is_skipped():
    agent = Agent()
    agent.send_raw(b"SeaBIOS \x00\x01\x02")
    agent.greet()


def test_an_agent_of_another_session_is_not_taken_for_ours():
    agent = Agent()
    agent.send(Kind.HELLO, 0, b"earlier")
    with pytest.raises(MachineHung, match="did not come up"):
        agent.channel.wait_ready(0.2)


def test_a_command_that_takes_too_long_is_killed(agent):
    command = agent.channel.start(["sleep", "9"])
    identity = agent.received[-1][1]
    agent.send(Kind.STDOUT, identity, b"so far\n")
    with pytest.raises(CommandTimeout, match="so far"):
        command.wait(0.05)
    assert agent.received[-1] == (Kind.SIGNAL, identity, b"\x09")
    assert command.status == -9


def test_a_command_that_survives_its_killing_is_a_hang(agent):
    agent.obedient = False
    command = agent.channel.start(["sleep", "9"])
    with pytest.raises(MachineHung, match="does not answer"):
        command.wait(0.05)


def test_what_the_autopsy_finds_is_why_the_machine_was_given_up(agent):
    def autopsy() -> str:
        raise MachineLost("what it was")

    agent.obedient = False
    agent.channel._autopsy = autopsy
    command = agent.channel.start(["sleep", "9"])
    with pytest.raises(MachineLost, match="what it was"):
        command.wait(0.05)
    with pytest.raises(MachineLost, match="what it was"):
        agent.channel.start(["true"])


def test_the_end_of_the_stream_ends_all_commands(agent):
    commands = [agent.channel.start(["sleep", "9"]) for _ in range(3)]
    agent.end()
    for command in commands:
        with pytest.raises(MachineLost, match="end of the console"):
            command.wait(10)
    with pytest.raises(MachineLost):
        agent.channel.start(["true"])


def test_nonsense_from_the_machine_ends_the_channel(agent):
    command = agent.channel.start(["sleep", "9"])
    agent.send_raw(HEADER.pack(0, 77, 1))
    with pytest.raises(MachineLost, match="77"):
        command.wait(10)


def test_a_command_cannot_smuggle_fields(agent):
    with pytest.raises(ValueError):
        agent.channel.start(["echo", "a\0e"])
