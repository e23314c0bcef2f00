# SPDX-License-Identifier: GPL-2.0
"""Reading the results of the kernel's vsock programs."""

import case_log
import pytest

pytestmark = pytest.mark.unit

CASES = 40
RACE = "bind: Address already in use"

OUTPUT = """\
Control socket connected to 10.0.2.2:51000.
0 - SOCK_STREAM connection reset...ok
1 - SOCK_STREAM bind only...skipped
2 - SOCK_STREAM client close...G2H Transport detected. This test will not fail.
ok
3 - SOCK_STREAM transport release use-after-free...Setup unsupported: sole virtio transport
ok
4 - SOCK_STREAM SHUT_WR...recv timed out
"""


@pytest.mark.parametrize(
    "number, passed, reason",
    [
        (0, True, None),
        (1, False, "skipped"),
        (2, True, None),
        (3, True, "Setup unsupported: sole virtio transport"),
        (4, False, None),
    ],
)
def test_each_case_has_its_result(number, passed, reason):
    case = case_log.parse(OUTPUT)[number]
    assert (case.passed, case.skip_reason) == (passed, reason)


def test_the_end_of_the_run_is_not_part_of_the_last_case():
    output = OUTPUT.replace("recv timed out", "ok") + "All tests have been executed. Waiting other peer...failed"
    assert case_log.parse(output)[4].passed


def test_a_case_has_to_pass_on_both_sides():
    good, bad = case_log.parse("0 - a...ok\n"), case_log.parse("0 - a...recv timed out\n")
    case_log.Outcome(good, good, [0, 0]).require(0)
    for server, client in ((good, bad), (bad, good), (good, {}), ({}, good)):
        with pytest.raises(AssertionError):
            case_log.Outcome(server, client, [0, 0]).require(0)


def test_a_missing_case_or_a_bad_status_is_found():
    cases = case_log.parse("0 - a...ok\n1 - b...ok\n")
    case_log.Outcome(cases, cases, [0, 0]).require_all(2)
    for outcome, count in ((case_log.Outcome(cases, cases, [0, 1]), 2), (case_log.Outcome(cases, cases, [0, 0]), 3)):
        with pytest.raises(AssertionError):
            outcome.require_all(count)


class Program:
    """Plays both sides: says what a case prints at each of its runs, `ok` once that is used up."""

    def __init__(self, monkeypatch, endings: dict[int, list[str]]):
        self.endings = endings
        self.skipped: list[list[int]] = []
        self.server_is_ahead = False
        monkeypatch.setattr(case_log, "run_once", self.run_once)
        monkeypatch.setattr(case_log.kernel_tools, "build", lambda patient: dict.fromkeys(("vsock_test", "vsock_uring_test")))

    def run_once(self, path, server, client, skip):
        self.skipped.append(skip)
        lines = []
        for number in range(CASES):
            endings = self.endings.get(number, [])
            ending = "skipped" if number in skip else endings.pop(0) if endings else "ok"
            lines.append(f"{number} - case...{ending}\n")
            if ending not in ("ok", "skipped"):
                # The server waits for the client in the next one.
                ahead = "".join(lines).replace(f"case...{ending}", "case...ok") + f"{number + 1} - case..."
                return [ahead if self.server_is_ahead else "".join(lines), "".join(lines)], [1, 1]
        return ["".join(lines) + case_log.COMPLETE] * 2, [0, 0]


def test_after_a_failure_the_remaining_cases_are_run(monkeypatch):
    program = Program(monkeypatch, {1: ["recv timed out"]})
    outcome = case_log.run("vsock_test", None, None)
    assert program.skipped == [[], [0, 1]]
    assert [number for number in range(CASES) if not outcome.server[number].passed] == [1]
    with pytest.raises(AssertionError):
        outcome.require_all(CASES)


def test_a_race_that_is_lost_once_is_run_again_with_a_warning(monkeypatch):
    program = Program(monkeypatch, {21: [RACE]})
    with pytest.warns(UserWarning, match="case 21"):
        outcome = case_log.run("vsock_test", None, None)
    assert program.skipped == [[], list(range(21))]
    outcome.require(21)
    outcome.require_all(CASES)


def test_a_race_may_be_lost_by_one_side_while_the_other_goes_on(monkeypatch):
    program = Program(monkeypatch, {34: ["connect: Connection reset by peer"]})
    program.server_is_ahead = True
    with pytest.warns(UserWarning, match="case 34"):
        outcome = case_log.run("vsock_test", None, None)
    outcome.require(34)
    outcome.require_all(CASES)


@pytest.mark.filterwarnings("ignore:vsock_test lost")
def test_a_race_that_is_always_lost_is_a_failure(monkeypatch):
    program = Program(monkeypatch, {21: [RACE] * 100})
    outcome = case_log.run("vsock_test", None, None)
    assert program.skipped == [[], *[list(range(21))] * 3, list(range(22))]
    outcome.require(20)
    outcome.require(22)
    with pytest.raises(AssertionError, match="already in use"):
        outcome.require(21)


def test_a_program_that_cannot_skip_runs_again_as_a_whole(monkeypatch):
    program = Program(monkeypatch, {1: ["connect: Connection reset by peer"]})
    with pytest.warns(UserWarning, match="case 1"):
        outcome = case_log.run("vsock_uring_test", None, None)
    assert program.skipped == [[], []]
    outcome.require_all(CASES)


def test_another_failure_of_that_case_is_no_race(monkeypatch):
    program = Program(monkeypatch, {21: ["accept timed out"]})
    outcome = case_log.run("vsock_test", None, None)
    assert len(program.skipped) == 2
    with pytest.raises(AssertionError, match="accept timed out"):
        outcome.require(21)


def test_a_program_that_does_not_start_is_not_run_for_ever(monkeypatch):
    monkeypatch.setattr(case_log, "run_once", lambda *_: (["usage:", ""], [1, 1]))
    monkeypatch.setattr(case_log.kernel_tools, "build", lambda patient: {"vsock_test": None})
    with pytest.raises(AssertionError):
        case_log.run("vsock_test", None, None).require_all(CASES)
