# SPDX-License-Identifier: GPL-2.0
"""The benchmark's method: ratios, the order of measurements, what is repeated, what is written."""

import contextlib
import dataclasses
import json
import random
import xml.etree.ElementTree

import pytest
import rig
from bench import __main__ as command
from bench import blocks, cells, lanes, ratio, results, rings, session
from bench.load import Timing

pytestmark = pytest.mark.unit

SPEED = cells.stream("g2h", 64, 1)
BASELINE = lanes.baseline(("guest", "host"))
VARIANT = lanes.parse(("guest", "host"), "rust-c")
PLAN = blocks.Plan(Timing(1, 1), rounds=3, memory_rounds=1, count_rounds=0, count_share=1)


class FakeLane:
    """Notes which drivers are loaded."""

    roles = ("guest", "host")
    directions = ("g2h", "h2g")

    def __init__(self):
        self.loaded = []

    def exchange(self, pair, host_too):
        self.loaded.append((pair, host_too))


def noisy_pairs(truth: float, noise: float, count: int, seed: int) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    return [(draw.gauss(1, noise), draw.gauss(truth, noise)) for _ in range(count)]


def comparison(monkeypatch, speeds, chosen=(SPEED,), plan=PLAN) -> blocks.Comparison:
    """A comparison in which the load program measures what `speeds` yields, in Gbit/s."""
    monkeypatch.setattr(blocks, "servers", lambda lane: contextlib.nullcontext())
    monkeypatch.setattr(FakeLane, "path", lambda self, direction: None, raising=False)
    answers = iter(speeds)
    monkeypatch.setattr(
        blocks.load,
        "run",
        lambda path, tests, timing: [{"bytes": next(answers) * 1e9, "seconds": 8.0} for _ in tests],
    )
    return blocks.Comparison(FakeLane(), BASELINE, VARIANT, list(chosen), plan)


# Ratios.


def test_a_ratio_above_one_is_better_whichever_way_the_unit_goes():
    assert ratio.of_pairs([(1.0, 2.0)] * 3, higher_is_better=True).median == 2.0
    assert ratio.of_pairs([(1.0, 2.0)] * 3, higher_is_better=False).median == 0.5


def test_the_ratio_is_of_pairs_and_ignores_a_common_drift():
    found = ratio.of_pairs([(1, 1.1), (2, 2.2), (10, 11)], higher_is_better=True)
    assert (found.low, found.median, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_one_outlier_does_not_move_the_ratio():
    pairs = [(1.0, 1.0 + step / 100) for step in range(-4, 5)] + [(1.0, 50.0)]
    assert ratio.of_pairs(pairs, higher_is_better=True).median == pytest.approx(1.0, abs=0.01)


def test_the_interval_of_equals_contains_one_about_as_often_as_it_claims():
    found = [ratio.of_pairs(noisy_pairs(1.0, 0.05, 10, seed), True) for seed in range(100)]
    assert 88 <= sum(each.low <= 1.0 <= each.high for each in found) <= 100


def test_the_interval_of_a_real_difference_does_not_contain_one():
    found = [ratio.of_pairs(noisy_pairs(1.3, 0.05, 10, seed), True) for seed in range(20)]
    assert all(each.low > 1.0 for each in found)


def test_the_same_samples_give_the_same_interval():
    pairs = noisy_pairs(1.1, 0.1, 10, seed=1)
    assert ratio.of_pairs(pairs, True) == ratio.of_pairs(pairs, True)


def test_nothing_beside_nothing_is_equal():
    assert ratio.better(0.0, 0.0, higher_is_better=True) == 1.0
    assert ratio.better(0.0, 0.0, higher_is_better=False) == 1.0


# Blocks.


def test_drivers_are_exchanged_in_the_order_abba_after_a_warm_up(monkeypatch):
    compared = comparison(monkeypatch, [1.0] * 100)
    compared.run(lambda: None)
    names = ["".join("A" if pair == BASELINE else "B" for pair, _ in compared.lane.loaded)]
    assert names == ["AB" + "ABBA" * 3]


def test_the_host_is_exchanged_only_where_it_differs(monkeypatch):
    compared = comparison(monkeypatch, [1.0] * 100)
    compared.run(lambda: None)
    assert not any(host_too for _, host_too in compared.lane.loaded)
    other = blocks.Comparison(FakeLane(), BASELINE, lanes.parse(("guest", "host"), "c-rust"), [SPEED], PLAN)
    other.run(lambda: None)
    assert all(host_too for _, host_too in other.lane.loaded)


def test_each_sample_is_compared_with_the_baseline_beside_it(monkeypatch):
    warm_up = [9.0, 9.0]
    compared = comparison(monkeypatch, warm_up + [1.0, 2.0, 3.0, 1.1] * 3)
    compared.run(lambda: None)
    series = compared.series["g2h 64B x1"]
    assert series.complete
    assert series.pairs[:2] == [pytest.approx((1.0, 2.0)), pytest.approx((1.1, 3.0))]


def test_a_block_whose_baselines_disagree_is_measured_again(monkeypatch):
    compared = comparison(monkeypatch, [9.0] * 2 + [1.0, 2.0, 2.0, 1.2] + [1.0, 3.0, 3.0, 1.1] * 3)
    compared.run(lambda: None)
    series = compared.series["g2h 64B x1"]
    assert [block.valid for block in series.blocks] == [False, True, True, True]
    assert [variant for _, variant in series.pairs] == pytest.approx([3.0] * 6)


def test_a_cell_that_never_gets_steady_is_given_up_and_marked(monkeypatch):
    compared = comparison(monkeypatch, [9.0] * 2 + [1.0, 2.0, 2.0, 2.0] * 6)
    compared.run(lambda: None)
    found = results.row(VARIANT, compared.series["g2h 64B x1"])
    assert not found.valid
    assert found.runs == 12


def test_only_unsteady_cells_are_measured_again(monkeypatch):
    other = cells.stream("g2h", 4096, 1)
    steady, wild = 1.0, [1.0, 2.0, 2.0, 2.0]
    first = [value for pair in zip([steady] * 4, wild, strict=True) for value in pair]
    compared = comparison(monkeypatch, [9.0] * 4 + first + [1.0] * 100, chosen=[SPEED, other])
    compared.run(lambda: None)
    assert [len(series.blocks) for series in compared.series.values()] == [3, 4]


class FakeMachine:
    """Notes what is loaded."""

    def __init__(self):
        self.done = []

    def shell(self, script, timeout):
        pass

    def load(self, role, implementation):
        self.done.append(f"load {implementation}-{role}")

    def unload(self, role):
        self.done.append(f"unload {role}")

    def unplug_vsock(self):
        self.done.append("unplug")

    def plug_vsock(self):
        self.done.append("plug")


def test_a_host_that_has_another_driver_gets_the_one_that_is_asked_for():
    host, guest = FakeMachine(), FakeMachine()
    lane = lanes.GuestLane(host, guest)
    lane.exchange(lanes.parse(lane.roles, "rust-rust"), host_too=True)
    guest.done.clear()
    lane.exchange(BASELINE, host_too=False)
    lane.exchange(BASELINE, host_too=False)
    assert host.done == ["unload host", "load rust-host", "unload host", "load c-host"]
    assert guest.done == ["unload guest", "unplug", "plug", "load c-guest", "unload guest", "load c-guest"]


# Names.


def test_pairs_are_named_by_role():
    assert VARIANT.name == "rust-guest c-host"
    assert BASELINE.name == "c-guest c-host"


@pytest.mark.parametrize("name", ["", "c", "rust-go", "c-c-c"])
def test_an_unknown_pair_is_refused_with_the_known_ones(name):
    with pytest.raises(lanes.UnknownName, match="<guest>-<host>"):
        lanes.parse(("guest", "host"), name)


def test_an_unknown_lane_is_refused_with_the_known_ones():
    with pytest.raises(lanes.UnknownName, match="guest, loopback, native"):
        lanes.find("moon", [])


def test_all_cells_of_the_design_are_there_with_names_of_their_own():
    names = [
        quantity.case
        for cell in cells.timed(("g2h", "h2g")) + cells.held(("g2h", "h2g"))
        for quantity in cell.quantities
    ]
    assert len(names) == len(set(names)) == 16 + 4 + 2 + 6
    assert "h2g 64KiB x1" in names


def test_cells_are_chosen_by_parts_of_their_names():
    everything = cells.timed(("g2h", "h2g"))
    chosen = cells.choose(everything, ["h2g 64KiB x1", "connections"])
    assert [quantity.case for cell in chosen for quantity in cell.quantities] == [
        "h2g 64KiB x1",
        "g2h connections",
        "h2g connections",
    ]


# Results.


@pytest.fixture
def finished(monkeypatch) -> results.Results:
    compared = comparison(monkeypatch, [9.0] * 2 + [1.0, 2.0, 2.0, 1.0] * 3)
    compared.run(lambda: None)
    found = results.Results("guest", BASELINE.name, "7.2", "max", 3)
    found.rows[VARIANT.name] = [results.row(VARIANT, series) for series in compared.series.values()]
    found.counts[VARIANT.name] = [results.count("g2h 64KiB", VARIANT, "kicks", [10.0, 12.0, 11.0], [22.0])]
    found.incomplete = None
    return found


def test_rows_have_what_readers_of_the_file_expect(finished, tmp_path):
    finished.write(tmp_path)
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["complete"] is True
    (row,) = content["rows"]
    expected = {
        "case": "g2h 64B x1",
        "pair": "rust-guest c-host",
        "unit": "Gbit/s",
        "median": 2.0,
        "baseline": 1.0,
        "ratio": 2.0,
        "low": 2.0,
        "high": 2.0,
        "runs": 6,
    }
    assert {key: row[key] for key in expected} == expected
    (count,) = content["counts"]
    assert (count["unit"], count["value"], count["baseline"], count["ratio"]) == (
        "kicks/MiB",
        22.0,
        11.0,
        0.5,
    )


def test_a_count_of_nothing_is_valid_json(finished):
    finished.counts[VARIANT.name] = [results.count("g2h 64KiB", VARIANT, "kicks", [3.0], [0.0])]
    assert json.loads(finished.as_json())["counts"][0]["ratio"] is None


def test_table_and_drawing_say_the_same(finished, tmp_path):
    finished.write(tmp_path)
    assert (
        "| g2h 64B x1 | Gbit/s | 1.00 | 2.00 | 2.00 | 2.00 to 2.00 | 6 |"
        in (tmp_path / "bench.md").read_text()
    )
    drawing = xml.etree.ElementTree.parse(tmp_path / "bench.svg")
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"g2h 64B x1", "2.00", "rust-guest c-host"} <= set(texts)


def test_an_interruption_keeps_what_was_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("RVSOCK_RELEASE", "7.2")

    def speeds():
        yield from [1.0] * 6
        raise KeyboardInterrupt

    compared = comparison(monkeypatch, speeds())
    wanted = session.Wanted(lanes.KINDS[0], [VARIANT], ["g2h 64B x1"], PLAN, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        session.Session(wanted, compared.lane).run()
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["complete"] is False
    assert content["incomplete_because"] == "interrupted"
    assert [row["runs"] for row in content["rows"]] == [2]
    assert "INCOMPLETE: interrupted" in (tmp_path / "bench.md").read_text()


class Machines:
    """Lanes of which so many are ended by the emulation in the middle of their first block."""

    def __init__(self, traps: int):
        self.started = 0
        self._traps = traps

    @contextlib.contextmanager
    def start(self):
        self.started += 1
        self._speeds = self._of_life(self.started)
        yield FakeLane()

    def _of_life(self, number: int):
        yield from [9.0] * 2
        if number <= self._traps:
            yield from [1.0, 5.0]
            raise rig.EmulationTrap("it hangs")
        while True:
            yield from [1.0, 2.0, 2.0, 1.0]

    def answer(self, _path, tests, _timing):
        return [{"bytes": next(self._speeds) * 1e9, "seconds": 8.0} for _ in tests]


@pytest.fixture
def machines(monkeypatch, request):
    found = Machines(request.param)
    monkeypatch.setenv("RVSOCK_RELEASE", "7.2")
    comparison(monkeypatch, [])
    monkeypatch.setattr(blocks.load, "run", found.answer)
    monkeypatch.setattr(session.load, "program", lambda: None)
    monkeypatch.setattr(lanes, "require_built", lambda pairs: None)
    return found


def measure(machines: Machines, output) -> results.Results:
    kind = dataclasses.replace(lanes.KINDS[0], start=machines.start)
    return session.run(session.Wanted(kind, [VARIANT], ["g2h 64B x1"], PLAN, output))


@pytest.mark.parametrize("machines", [2], indirect=True)
def test_a_block_in_which_the_emulation_failed_is_measured_again(machines, tmp_path):
    (row,) = measure(machines, tmp_path).rows[VARIANT.name]
    assert machines.started == 3
    assert (row.ratio, row.high, row.runs) == (2.0, 2.0, 2 * PLAN.rounds)
    assert json.loads((tmp_path / "bench.json").read_text())["complete"] is True


@pytest.mark.parametrize("machines", [session.TRAPS_MAX + 1], indirect=True)
def test_machines_that_the_emulation_always_ends_are_given_up(machines, tmp_path):
    with pytest.raises(rig.EmulationTrap):
        measure(machines, tmp_path)
    assert machines.started == session.TRAPS_MAX + 1


def judged(monkeypatch, speeds, pair=VARIANT) -> results.Row:
    """The row of a case in which twice the baseline's speed is asked for."""
    compared = comparison(monkeypatch, [9.0] * 2 + speeds * 6, [cells.stream("g2h", 64, 1, least=2.0)])
    compared.run(lambda: None)
    (series,) = compared.series.values()
    return results.row(pair, series)


@pytest.mark.parametrize(
    "speeds, verdict",
    [
        ([1.0, 2.5, 2.5, 1.0], ""),
        ([1.0, 1.9, 2.1, 1.0], ""),
        ([1.0, 1.9, 1.9, 1.0], "short"),
        ([1.0, 1.9, 1.9, 2.0], "unsteady"),
    ],
)
def test_what_falls_short_or_cannot_be_judged_is_found(monkeypatch, finished, speeds, verdict):
    row = judged(monkeypatch, speeds)
    assert row.verdict == verdict
    finished.rows[VARIANT.name] = [row]
    assert finished.unmet() == ([row] if verdict else [])


def test_the_baseline_beside_itself_has_nothing_to_reach(monkeypatch, finished):
    row = judged(monkeypatch, [1.0] * 4, BASELINE)
    finished.rows[BASELINE.name] = [row]
    assert (row.verdict, finished.unmet()) == ("", [])


def test_bulk_at_native_speed_has_a_bar_and_nothing_else_has():
    quantities = [quantity for cell in cells.native("local") for quantity in cell.quantities]
    barred = {quantity.case: quantity.least for quantity in quantities if quantity.least is not None}
    assert barred == {f"local {size}KiB x{count}": 1.2 for size in (64, 256) for count in (1, 8)}


def test_the_program_that_is_a_guest_is_understood():
    table = "direction\tbytes\tMB/s\tpackets/s\tsignals/s\nhost to guest\t64\t125.0\t9\t9\n"
    assert rings.parse(table, 64) == {"host to guest": 1.0}
    with pytest.raises(rig.RigError, match="nothing of 4096 bytes"):
        rings.parse(table, 4096)


@pytest.mark.parametrize(
    "text, number", [(0.00312, "0.0031"), (0.5, "0.500"), (4.56789, "4.57"), (12345.6, "12346")]
)
def test_numbers_have_three_digits(text, number):
    from bench import table

    assert table.number(text) == number


def test_the_command_refuses_zero_rounds(capsys):
    with pytest.raises(SystemExit):
        command.parse(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err
