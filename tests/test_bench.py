# SPDX-License-Identifier: GPL-2.0
"""The benchmark, in short: from two machines to three files. The numbers are not judged."""

import json
import pathlib
import subprocess
import sys
import warnings

import pytest

pytestmark = pytest.mark.bench_smoke

BENCH = pathlib.Path(__file__).resolve().parents[1] / "tools/bench"
# One of each kind.
CELLS = (
    "g2h 64KiB x1",
    "h2g 4KiB x8",
    "g2h request-response",
    "h2g connections",
    "h2g memory of a receiver full of 64KiB",
    "g2h 4KiB counts",
)
# Counts that no transfer can do without, and others.
NEEDED = {"packets", "used-index updates", "tx kicks", "interrupts", "exits", "cpu ms"}
OTHER = {"credit packets", "rx kicks"}
# 180 s were seen on a machine with two cores and a load average of 12.
TIMEOUT = 800

# A guest with the CPU model of the benchmark has ended without a word twice in some thirty loads of
# a module: a triple fault, of which the cause is not known. What is judged here is the benchmark.
LOST = "the virtual machine ended"


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("bench")
    result = run(directory)
    if LOST in result.stderr:
        warnings.warn(f"the benchmark is run again: {result.stderr}", stacklevel=1)
        result = run(directory)
    assert result.returncode == 0, result.stderr
    return directory


def run(directory: pathlib.Path) -> subprocess.CompletedProcess:
    options = ["--quick", "--pairs", "rust-c", "--cells", ",".join(CELLS), "--out", directory]
    return subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def content(output) -> dict:
    return json.loads((output / "bench.json").read_text())


def test_it_comes_to_its_end(content):
    assert content["complete"], content["incomplete_because"]


def test_every_case_has_a_plausible_row(content):
    rows = {row["case"]: row for row in content["rows"]}
    assert len(rows) == 6
    for row in rows.values():
        assert row["pair"] == "rust-guest c-host"
        assert row["median"] > 0 and row["baseline"] > 0, row
        assert row["low"] <= row["ratio"] <= row["high"]
    assert rows["h2g memory of a receiver full of 64KiB writes"]["baseline"] > 200


def test_every_count_was_taken(content):
    counts = {count["unit"].removesuffix("/MiB"): count for count in content["counts"]}
    assert set(counts) == NEEDED | OTHER
    # On the way to the host, messages of 4 KiB are packets of their own.
    assert counts["packets"]["value"] >= 256 and counts["packets"]["baseline"] >= 256
    assert all(counts[name]["value"] > 0 for name in NEEDED), counts


def test_table_and_drawing_are_written(output):
    assert "## rust-guest c-host" in (output / "bench.md").read_text()
    assert (output / "bench.svg").read_text().startswith("<svg")
