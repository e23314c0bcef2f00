# SPDX-License-Identifier: GPL-2.0
"""Reading the results of other people's suites of file systems."""

import pytest
import test_nfs_suites
from peers import file_system_suites as suites

pytestmark = pytest.mark.unit

PJDFSTEST = """\
chmod::change_perm::regular                                              ok
chmod::eftype::fifo                                                      skipped
\trequires features: chflags
mkfifo::changed_time_fields::success                                     FAILED
\tassertion failed: atime
\tleft: 1

Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total
"""

STRESS = """\
stress-ng: info:  [12] dispatching hogs: 2 lockf, 2 flock
stress-ng: fail:  [15] lockf: lockf failed, errno=5 (Input/output error)
stress-ng: info:  [12] skipped: 1: acl (2)
stress-ng: info:  [12] passed: 2: flock (2) copy-file (2)
stress-ng: info:  [12] failed: 1: lockf (2)
stress-ng: info:  [12] metrics untrustworthy: 0
"""

FIO = 'fio: a warning\n{"jobs": [%s]}\nand more'


def test_each_case_of_pjdfstest_has_its_result():
    outcomes = suites.pjdfstest_outcomes(PJDFSTEST)
    assert [outcome.status for outcome in outcomes.values()] == [suites.PASSED, suites.SKIPPED, suites.FAILED]
    assert "left: 1" in outcomes["mkfifo::changed_time_fields::success"].said


def test_each_stressor_has_its_result():
    outcomes = suites.stress_outcomes(STRESS)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "acl": suites.SKIPPED,
        "flock": suites.PASSED,
        "copy-file": suites.PASSED,
        "lockf": suites.FAILED,
    }
    assert "Input/output error" in outcomes["lockf"].said


def test_a_job_of_fio_fails_with_any_of_its_processes():
    jobs = [("a", 0), ("b", 84), ("b", 0), ("c", 0), ("c", 84)]
    report = FIO % ", ".join(f'{{"jobname": "{name}", "error": {error}}}' for name, error in jobs)
    statuses = {name: outcome.status for name, outcome in suites.fio_outcomes(report).items()}
    assert statuses == {"a": suites.PASSED, "b": suites.FAILED, "c": suites.FAILED}


def outcomes(**statuses: str) -> suites.Outcomes:
    return {name: suites.Outcome(status) for name, status in statuses.items()}


@pytest.mark.parametrize(
    "vsock, sound, good",
    [
        (outcomes(a="passed", b="failed"), False, True),
        (outcomes(a="passed", b="failed"), True, False),
        (outcomes(a="passed", b="passed"), False, False),
        (outcomes(a="passed"), False, False),
        (outcomes(a="passed", b="failed", c="passed"), False, False),
        (outcomes(a="skipped", b="failed"), False, False),
    ],
)
def test_what_differs_is_found(vsock, sound, good, monkeypatch):
    monkeypatch.setattr(test_nfs_suites.runs, "note", lambda text: None)
    suite = suites.Suite("any", lambda host, directory: {}, least=1, sound=sound)
    over = {"TCP": outcomes(a="passed", b="failed"), "vsock": vsock}
    if good:
        test_nfs_suites.check(suite, over)
    else:
        with pytest.raises(AssertionError):
            test_nfs_suites.check(suite, over)
