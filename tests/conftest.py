# SPDX-License-Identifier: GPL-2.0
"""Fixtures and reporting for all suites. A suite is a marker: see pytest.ini."""

import collections
import pathlib
import sys
import time

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "tools"), str(TESTS)]

import rig  # noqa: E402


@pytest.fixture(scope="session")
def host():
    """The host VM, booted once for all suites."""
    with rig.host() as machine:
        yield machine


@pytest.fixture(autouse=True)
def kernel_logs(request):
    """Looks into the kernel logs of host and guests at the end of every test that could have used them."""
    uses_host = "host" in request.fixturenames
    yield
    if uses_host:
        request.getfixturevalue("host").check_kernel_logs()


SUITES = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
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
