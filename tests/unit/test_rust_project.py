# SPDX-License-Identifier: GPL-2.0
"""`make rust-analyzer`: what becomes of what Kbuild recorded."""

import json
import pathlib

import pytest
import rust_project

pytestmark = pytest.mark.unit

LIBRARY = (
    "savedcmd_rust/b/lib.o := OBJTREE=/k RUST_MODFILE=./b rustc --edition=2021 --crate-name b -L ./rust "
    "--env-set=GENERATED=/out/rust/b --cfg MODULE --cfg=HAVE_IT --extern kernel --out-dir rust/b "
    "/src/rust/b/lib.rs\n"
)
MAIN = (
    "savedcmd_rust/m/main.o := rustc --edition=2021 --crate-name m --extern b --extern kernel "
    "/src/rust/m/main.rs\n\n"
    "source_rust/m/main.o := /src/rust/m/main.rs\n"
)


@pytest.fixture
def build(tmp_path) -> pathlib.Path:
    """Two modules that share a crate, and one of C; records of crates that none has any more."""
    for directory in ("rust/b", "rust/m", "rust/old"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "modules.order").write_text("m.o\nn.o\nc.o\n")
    (tmp_path / "m.mod").write_text("rust/m/main.o\nrust/b/lib.o\n")
    (tmp_path / "n.mod").write_text("rust/b/lib.o\n")
    (tmp_path / "c.mod").write_text("rust/b/helpers.o\n")
    (tmp_path / "rust/m/.main.o.cmd").write_text(MAIN)
    (tmp_path / "rust/b/.lib.o.cmd").write_text(LIBRARY)
    (tmp_path / "rust/b/.helpers.o.cmd").write_text("savedcmd_rust/b/helpers.o := gcc -c helpers.c\n")
    (tmp_path / "rust/old/.lib.o.cmd").write_text(LIBRARY.replace("--crate-name b", "--crate-name old"))
    return tmp_path


@pytest.fixture
def project() -> dict:
    """As the kernel writes it, with less in it."""
    core = {"display_name": "core", "root_module": "/usr/lib/rustlib/src/core.rs"}
    kernel = {"display_name": "kernel", "cfg": ["CONFIG_NET"], "env": {"OBJTREE": "/k"}}
    return {"crates": [core, kernel], "sysroot": "/usr"}


def test_each_crate_of_the_modules_is_described_once(build, project):
    rust_project.complete(project, rust_project.commands(build))
    assert [crate["display_name"] for crate in project["crates"]] == ["core", "kernel", "m", "b"]
    main, library = project["crates"][2:]
    assert [(dep["crate"], dep["name"]) for dep in main["deps"]] == [(0, "core"), (3, "b"), (1, "kernel")]
    assert library["root_module"] == "/src/rust/b/lib.rs"
    assert library["cfg"] == ["CONFIG_NET", "MODULE", "HAVE_IT"]
    assert library["env"] == {"OBJTREE": "/k", "GENERATED": "/out/rust/b", "RUST_MODFILE": "b"}
    assert library["source"]["include_dirs"] == ["/src/rust/b", "/out/rust/b"]


def test_modules_that_were_not_built_are_an_error(build):
    (build / "n.mod").unlink()
    with pytest.raises(rust_project.NotBuilt, match="n.mod"):
        rust_project.commands(build)


def test_an_editor_outside_finds_the_toolchain_in_the_tree(project):
    seen = json.loads(rust_project.seen_from_outside(json.dumps(project), pathlib.Path("/cache/tree")))
    assert seen["sysroot"] == "/cache/tree/usr"
    assert seen["crates"][0]["root_module"] == "/cache/tree/usr/lib/rustlib/src/core.rs"
    assert seen["crates"][1]["env"] == {"OBJTREE": "/k"}
