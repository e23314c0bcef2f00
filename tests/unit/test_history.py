# SPDX-License-Identifier: GPL-2.0
"""Documentation/history.md and SECURITY.md name tests that exist, at least one each, or none on purpose."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.unit

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
HISTORY = CHECKOUT / "Documentation" / "history.md"
SECURITY = CHECKOUT / "SECURITY.md"
HEADINGS = ("tests", "shown by")
PROGRAMS = {"selftests", "host_alone"}


def rows(text: str) -> list[list[str]]:
    """The cells of all rows but headings."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[-1].strip("| ") not in HEADINGS]


def references(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[-1])


def has_function(paths: list[pathlib.Path], name: str) -> bool:
    word = re.compile(rf"^\s*(?:pub )?(?:fn|def) {re.escape(name)}\b", re.MULTILINE)
    return any(path.is_file() and word.search(path.read_text()) for path in paths)


def exists(reference: str, checkout: pathlib.Path = CHECKOUT) -> bool:
    """Whether the test is there that a reference names."""
    tests = checkout / "tests"
    if found := re.fullmatch(r"vsock_test (\d+)", reference):
        known = re.search(r'"vsock_test": (\d+)', (tests / "test_vsock_test.py").read_text())
        return known is not None and int(found[1]) < int(known[1])
    if found := re.fullmatch(r"tests/((?:unit/)?test_\w+\.py)(?:::(\w+))?", reference):
        path = tests / found[1]
        return has_function([path], found[2]) if found[2] else path.is_file()
    if found := re.fullmatch(r"(\w+) (\w+)\.(\w+)", reference):
        path = tests / found[1] / "src" / "cases" / f"{found[2]}.rs"
        return found[1] in PROGRAMS and has_function([path], found[3]) and is_listed(path, found[3])
    if found := re.fullmatch(r"device (\w+)", reference):
        return has_function(list((tests / "device" / "src").rglob("*.rs")), found[1])
    if found := re.fullmatch(r"proto ([\w/]+)::(\w+)", reference):
        proto = checkout / "rust" / "proto"
        return has_function([proto / top / f"{found[1]}.rs" for top in ("src", "tests")], found[2])
    return False


def is_listed(path: pathlib.Path, case: str) -> bool:
    """Whether the case is among those that the program runs."""
    found = re.search(r"^cases!\((.*?)^\);", path.read_text(), re.MULTILINE | re.DOTALL)
    return found is not None and re.search(rf"\b{case}\b", found[1]) is not None


def test_every_bug_has_four_cells_and_says_which_test_there_is():
    found = rows(HISTORY.read_text())
    assert len(found) >= 30
    for row in found:
        assert len(row) == 4, row
        assert references(row) or "no test yet" in row[-1], row


def test_every_claim_has_three_cells_and_says_which_test_shows_it():
    found = rows(SECURITY.read_text())
    assert len(found) >= 15
    for row in found:
        assert len(row) == 3 and references(row), row


NAMED = {each for path in (HISTORY, SECURITY) for row in rows(path.read_text()) for each in references(row)}


@pytest.mark.parametrize("reference", sorted(NAMED))
def test_a_test_that_is_named_exists(reference):
    assert exists(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "vsock_test 41",
        "tests/test_lifecycle.py::test_nothing",
        "tests/test_nothing.py",
        "selftests race.nothing",
        "selftests nothing.connecting_while_signals_arrive_leaves_no_half_open_socket",
        "selftests race.read_to_end",
        "device nothing",
        "proto credit::nothing",
        "something else",
    ],
)
def test_one_that_is_gone_is_noticed(reference):
    assert not exists(reference)
