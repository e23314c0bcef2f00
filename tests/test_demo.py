# SPDX-License-Identifier: GPL-2.0
"""`make demo` as a user runs it, and what becomes of a claim that does not hold."""

import contextlib
import pathlib
import re
import subprocess
import sys

import pytest
from demo import __main__ as demo
from demo import stage

pytestmark = pytest.mark.clients

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
# 40 s on a quiet machine that emulates both levels.
TIMEOUT = 600


@pytest.fixture(scope="module")
def transcript():
    """What the demo prints; it boots machines of its own."""
    result = subprocess.run(
        [sys.executable, "tools/demo"], cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("step", demo.STEPS, ids=lambda step: step.__name__.split(".")[-1])
def test_every_step_was_shown_with_claims(transcript, step):
    sections = re.split(r"^\d+\. ", transcript, flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(step.TITLE))
    assert re.search(r"^   ok ", section, re.MULTILINE)


@pytest.mark.parametrize("side, module", [("guest", "virtio_transport_rs"), ("host", "vhost_vsock_rs")])
def test_our_modules_were_on_both_sides(transcript, side, module):
    assert f"the transport of the {side} is {module}: ours" in transcript


def test_the_headline_counts_the_claims(transcript):
    shown = len(re.findall(r"^   ok ", transcript, re.MULTILINE))
    assert f"Everything as expected: {shown} claims" in transcript


def test_a_pipe_gets_no_colours(transcript):
    assert "\033" not in transcript


@pytest.fixture
def without_machines(monkeypatch):
    """A stage where nothing can run: for what happens around the steps."""

    @contextlib.contextmanager
    def open_stage(screen, sides):
        yield stage.Stage(screen, None, None, sides)

    monkeypatch.setattr(demo, "open_stage", open_stage)


class Disappointment:
    TITLE = "A step that fails"

    @staticmethod
    def show(scene):
        scene.require(False, "pigs fly")


def test_a_claim_that_does_not_hold_ends_the_demo_with_status_1(without_machines, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STEPS", [Disappointment])
    assert demo.main([]) == 1
    output = capsys.readouterr().out
    assert "FAILED expected, and not so: pigs fly" in output
    assert "Everything as expected" not in output
