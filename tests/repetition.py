# SPDX-License-Identifier: GPL-2.0
"""A test whose guest the emulation ended runs again, with a guest of its own."""

import contextlib
import warnings

import pytest
import rig
from _pytest.runner import runtestprotocol

# Some tests meet a fault of the emulation in every third run: those that plug devices in.
RUNS = 4
# Of one that ends without a word each time the guest may be to blame.
RUNS_UNPROVEN = 2


class Repetition:
    """Repeats a test for an EmulationTrap, and for nothing else."""

    def __init__(self) -> None:
        self._trap: rig.EmulationTrap | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        if call.excinfo and self._trap is None and not call.excinfo.errisinstance(pytest.skip.Exception):
            self._trap = trap_in(call.excinfo.value) or trap_of_guests(item.funcargs.get("host"))
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        self._trap = None
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for run in range(2, RUNS + 1):
            if self._trap is None or (isinstance(self._trap, rig.UnprovenTrap) and run > RUNS_UNPROVEN):
                break
            warnings.warn(f"{item.nodeid} is run again with a new guest: {self._trap}", stacklevel=1)
            end_fixtures(item)
            self._trap = None
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def trap_in(error: BaseException | None) -> rig.EmulationTrap | None:
    """Whether an error is one, or several of which one is, or came of one."""
    if error is None or isinstance(error, rig.EmulationTrap):
        return error
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    found = (trap_in(part) for part in (*parts, error.__cause__, error.__context__))
    return next((trap for trap in found if trap), None)


def trap_of_guests(host: rig.Host | None) -> rig.EmulationTrap | None:
    """Whether a guest that outlives the test is hit: who fails for it may be a program that knows of no guest."""
    guests = host.guests if host else []
    return next((trap for guest in guests if (trap := guest.emulation_trap())), None)


def end_fixtures(item: pytest.Item) -> None:
    """Ends all fixtures but those of the session, so that the test finds its machines anew."""
    # They tidy up in a guest that is gone.
    with contextlib.suppress(Exception):
        item.session._setupstate.teardown_exact(item.session)
    item._initrequest()
