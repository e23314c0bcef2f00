# SPDX-License-Identifier: GPL-2.0
"""Reading the results of the kernel's vsock programs."""

import case_log
import pytest

pytestmark = pytest.mark.unit

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


def test_after_a_failure_the_remaining_cases_are_run(monkeypatch):
    """A program that fails in case 1 of 3, as often as it is asked to run it."""
    calls = []

    def run_once(path, server, client, skip):
        calls.append(skip)
        lines = []
        for number in range(3):
            result = "skipped" if number in skip else "failed" if number == 1 else "ok"
            lines.append(f"{number} - case...{result}\n")
            if result == "failed":
                return ["".join(lines)] * 2, [1, 1]
        return ["".join(lines) + case_log.COMPLETE] * 2, [0, 0]

    monkeypatch.setattr(case_log, "run_once", run_once)
    monkeypatch.setattr(case_log.kernel_tools, "build", lambda patient: {"vsock_test": None})
    outcome = case_log.run("vsock_test", None, None)
    assert calls == [[], [0, 1]]
    assert [outcome.server[number].passed for number in range(3)] == [True, False, True]
    with pytest.raises(AssertionError):
        outcome.require_all(3)
