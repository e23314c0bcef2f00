# SPDX-License-Identifier: GPL-2.0
"""A test whose guest the emulation ended runs again, once, with a guest of its own."""

import contextlib
import warnings

import pytest
import rig
from _pytest.runner import runtestprotocol


class Repetition:
    """Repeats a test for an EmulationTrap, which has proven itself on the guest's console; for nothing else."""

    def __init__(self) -> None:
        self._trap: rig.EmulationTrap | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        if call.excinfo and self._trap is None:
            self._trap = trap_in(call.excinfo.value)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        self._trap = None
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if self._trap is not None:
            warnings.warn(f"{item.nodeid} is run again with a new guest: {self._trap}", stacklevel=1)
            end_fixtures(item)
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


def end_fixtures(item: pytest.Item) -> None:
    """Ends all fixtures but those of the session, so that the test finds its machines anew."""
    # They tidy up in a guest that is gone.
    with contextlib.suppress(Exception):
        item.session._setupstate.teardown_exact(item.session)
    item._initrequest()
