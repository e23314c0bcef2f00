# SPDX-License-Identifier: GPL-2.0
"""Fixtures and reporting for all suites. A suite is a marker: see pytest.ini."""

import collections
import contextlib
import os
import pathlib
import sys
import time

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "tools"), str(TESTS)]

import rig  # noqa: E402
import scheduling  # noqa: E402
from repetition import Repetition  # noqa: E402
from rig import runs  # noqa: E402

# Of what is said about a failure while the tests go on, from its beginning and its end.
FAILURE_LINES = (30, 40)

# A suite that has to be named, and says how far it is.
SLOW_SUITE = "vmtest"

# What a worker needs: a host VM and what is built for it.
MEMORY_OF_WORKER = 4 << 30
# More do not help: one file of tests stays with one worker.
WORKERS_MAX = 4


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


def pytest_xdist_auto_num_workers() -> int:
    """Each worker has a host VM with two CPUs, which are idle half of the time, and 3 GiB of memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, memory // MEMORY_OF_WORKER, WORKERS_MAX))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The kernel's vmtest.sh boots dozens of guests with a whole system: only who names it gets it."""
    if SLOW_SUITE not in config.option.keyword:
        items[:] = [item for item in items if item.get_closest_marker(SLOW_SUITE) is None]


SUITES = pytest.StashKey[dict[str, float]]()
FILES = pytest.StashKey[dict[str, float]]()


def shortened(lines: list[str]) -> list[str]:
    """Without the middle of it, if that is long."""
    first, last = FAILURE_LINES
    if len(lines) <= first + last:
        return lines
    return [*lines[:first], "...", *lines[-last:]]


class Reporter:
    """Says what failed while the tests go on, as the summary comes half an hour later; and adds up times."""

    def __init__(self, config: pytest.Config):
        self._config = config
        self._suites = [line.split(":")[0] for line in config.getini("markers")]

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        suite = next((name for name in self._suites if name in report.keywords), "other")
        self._config.stash[SUITES][suite] += report.duration
        self._config.stash[FILES][report.nodeid.split("::")[0]] += report.duration
        if report.failed:
            lines = shortened(report.longreprtext.splitlines())
            self._show([f"--- {report.nodeid} failed ({report.when})", *lines])
        elif suite == SLOW_SUITE and report.when == "call":
            self._show([f"{report.nodeid} {report.outcome} after {report.duration:.0f} s"])

    def _show(self, lines: list[str]) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        terminal.ensure_newline()
        for line in lines:
            terminal.write_line(line)
        runs.note("\n".join(lines))


def is_worker(config: pytest.Config) -> bool:
    """Whether somebody else reports what happens here."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Repetition())
    if not is_worker(config):
        config.pluginmanager.register(Reporter(config))
    for key in (SUITES, FILES):
        config.stash[key] = collections.defaultdict(float)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    return scheduling.Scheduling(config, log)


def is_everything(config: pytest.Config) -> bool:
    """Whether no tests were left out by who started this."""
    given = [config.invocation_params.dir / argument for argument in config.args]
    return not config.option.keyword and not config.option.markexpr and given == [TESTS]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The time of each suite."""
    for suite, seconds in config.stash[SUITES].items():
        terminalreporter.write_line(f"suite {suite}: {seconds:.1f} s")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends with the line that scripts look for."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or is_worker(config) or config.option.collectonly:
        return
    count = {name: len(reporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    line = f"{count['passed']} passed, {count['failed'] + count['error']} failed"
    if count["skipped"]:
        line += f", {count['skipped']} skipped"
    if is_everything(config):
        scheduling.keep(config.stash[FILES])
    print(line, flush=True)
    runs.note(line)
