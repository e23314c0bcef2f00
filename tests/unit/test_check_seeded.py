# SPDX-License-Identifier: GPL-2.0
"""Faults put into the real kernel crates: the check of what Kbuild makes of them has to find them."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest
from check import panics, sources
from check.allowed import Allowed

pytestmark = pytest.mark.unit

# A generic function of the engine: the object of its own crate does not contain it.
SOURCE = "rust/transport/send.rs"
FUNCTION = re.compile(r"(pub\(crate\) fn send_data<L: Link>\([^{]*\{\n)")
# No compiler can know that `len` is within bounds.
SEED = r"\1    if [0u8; 4][len] != 0 {\n        return Ok(0);\n    }\n"


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
    """What Kbuild reads of the checkout."""
    for name in sources.files(sources.CHECKOUT):
        if name.parts[0] in ("rust", "Kbuild", "Makefile"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sources.CHECKOUT / name, tmp_path / name)
    return tmp_path


def build(checkout: pathlib.Path) -> pathlib.Path:
    """Builds the modules as `make modules` does, in a directory of the copy."""
    output = checkout / "out"
    # Not the flags of a make that may have started this test.
    variables = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    result = subprocess.run(
        ["make", f"-j{os.cpu_count()}", "modules"],
        cwd=checkout,
        env=variables | {"O": str(output)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def test_a_panic_in_a_generic_function_of_the_engine_is_found(copy):
    text = (copy / SOURCE).read_text()
    seeded, count = FUNCTION.subn(SEED, text)
    assert count == 1, f"{SOURCE} has changed: choose another function for the seed"
    (copy / SOURCE).write_text(seeded)
    report = panics.check(build(copy), Allowed.read(panics.ALLOWED))
    (problem,) = [text for text in report.problems if "panic_bounds_check" in text]
    assert "vsock_transport::send::send_data" in problem
    assert report.problems == [problem], "the seed is the only one"
