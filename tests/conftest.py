# SPDX-License-Identifier: GPL-2.0
"""Fixtures and reporting for all suites. A suite is a marker: see pytest.ini."""

import collections
import contextlib
import pathlib
import sys
import time

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "tools"), str(TESTS)]

import rig  # noqa: E402

# Of what is said about a failure while the tests go on.
FAILURE_LINES = 60


class Keeper:
    """Keeps one host VM for all suites; boots another when a suite has brought it down."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._machine: rig.Host | None = None

    @property
    def lost(self) -> bool:
        return self._machine is not None and self._machine.channel.error is not None

    def host(self) -> rig.Host:
        if self._machine is None or self.lost:
            self.close()
            self._machine = self._stack.enter_context(rig.host())
        return self._machine

    def close(self) -> None:
        # What brought a machine down has been reported by the test that noticed it.
        with contextlib.suppress(rig.MachineError) if self.lost else contextlib.nullcontext():
            self._stack.close()


@pytest.fixture(scope="session")
def keeper():
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture(scope="module")
def host(keeper):
    """The host VM."""
    machine = keeper.host()
    yield machine
    if not keeper.lost:
        machine.check_leaks()


@pytest.fixture(autouse=True)
def kernel_logs(request):
    """Looks into the kernel logs of host and guests at the end of every test that could have used them."""
    host = request.getfixturevalue("host") if "host" in request.fixturenames else None
    alive = host is not None and host.channel.error is None
    yield
    if alive:
        host.check_kernel_logs()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("steps that follow from a seed")
    group.addoption("--seed", type=int, help="this seed instead of the usual ones")
    group.addoption("--steps", type=int, help="so many steps")


SUITES = pytest.StashKey[dict[str, float]]()


class FailuresAtOnce:
    """Says what failed while the tests go on: the summary comes half an hour later, or never."""

    def __init__(self, config: pytest.Config):
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or not report.failed:
            return
        reporter.ensure_newline()
        reporter.write_line(f"--- {report.nodeid} failed ({report.when})")
        for line in report.longreprtext.splitlines()[-FAILURE_LINES:]:
            reporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FailuresAtOnce(config))
    config.stash[SUITES] = collections.defaultdict(float)


def suite_of(item: pytest.Item) -> str:
    """The first suite marker of a test."""
    suites = {line.split(":")[0] for line in item.config.getini("markers")}
    return next((mark.name for mark in item.iter_markers() if mark.name in suites), "other")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    started = time.monotonic()
    yield
    item.config.stash[SUITES][suite_of(item)] += time.monotonic() - started


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The time of each suite."""
    for suite, seconds in config.stash[SUITES].items():
        terminalreporter.write_line(f"suite {suite}: {seconds:.1f} s")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends with the line that scripts look for."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    count = {name: len(reporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    line = f"{count['passed']} passed, {count['failed'] + count['error']} failed"
    if count["skipped"]:
        line += f", {count['skipped']} skipped"
    print(line, flush=True)
