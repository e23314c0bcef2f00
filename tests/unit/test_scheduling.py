# SPDX-License-Identifier: GPL-2.0
"""The order in which workers get files of tests."""

import pytest
import scheduling

pytestmark = pytest.mark.unit


def test_what_took_longest_comes_first():
    queue = scheduling.LongestFirst({"slow.py": 100.0, "quick.py": 1.0})
    for scope, tests in (("quick.py", 50), ("unknown.py", 2), ("slow.py", 3)):
        queue[scope] = dict.fromkeys(map(str, range(tests)), False)
    assert [queue.popitem(last=False)[0] for _ in range(3)] == ["slow.py", "unknown.py", "quick.py"]
    assert not queue


def test_what_a_run_took_is_known_to_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(scheduling.runs, "cache", lambda: tmp_path)
    assert scheduling.known() == {}
    scheduling.keep({"test_nfs.py": 12.5})
    assert scheduling.known() == {"test_nfs.py": 12.5}


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_record_is_none(monkeypatch, tmp_path, text):
    monkeypatch.setattr(scheduling.runs, "cache", lambda: tmp_path)
    scheduling.keep({})
    scheduling.record().write_text(text)
    assert not scheduling.known()
