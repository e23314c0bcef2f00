# SPDX-License-Identifier: GPL-2.0
"""The kernel's own vmtest.sh: what it finds right with the C modules here, it has to find right with ours."""

import functools

import pytest
from peers import vmtest

pytestmark = pytest.mark.vmtest

NAMES = vmtest.names()


class Comparison:
    """Tests with the C modules, and those that they pass with ours."""

    def __init__(self, host, names: list[str]):
        self._host, self._names = host, names
        self._scripts: list[vmtest.Script] = []

    @functools.cached_property
    def c(self) -> vmtest.Script:
        return self._script("c", self._names)

    @functools.cached_property
    def rust(self) -> vmtest.Script:
        return self._script("rust", [name for name in self._names if self.c.outcome(name).passed])

    def _script(self, implementation: str, names: list[str]) -> vmtest.Script:
        self._scripts.append(vmtest.Script(self._host, implementation, names))
        return self._scripts[-1]

    def close(self) -> None:
        for script in self._scripts:
            script.close()


def chosen(items: list[pytest.Item]) -> list[str]:
    """The names that are asked for."""
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return [name for name in NAMES if any(each.get("name") == name for each in parameters)]


@pytest.fixture(scope="module")
def compared(request, host):
    vmtest.put(host)
    comparison = Comparison(host, chosen(request.session.items))
    yield comparison
    comparison.close()
    vmtest.give_up_preferences(host)
    for role in ("host", "loopback"):
        host.unload(role)


@pytest.mark.parametrize("name", NAMES)
def test_with_c(compared, name):
    outcome = compared.c.outcome(name)
    if not outcome.passed:
        pytest.skip(f"the C modules do not pass it here: {outcome.tail}")
    vmtest.check_guests(outcome, "c")


@pytest.mark.parametrize("name", NAMES)
def test_with_rust(compared, name):
    by_c = compared.c.outcome(name)
    if not by_c.passed:
        pytest.skip(f"the C modules do not pass it here ({by_c.result})")
    outcome = compared.rust.outcome(name)
    assert outcome.passed, outcome.tail
    vmtest.check_guests(outcome, "rust")
