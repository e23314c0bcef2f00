# SPDX-License-Identifier: GPL-2.0
"""`make check`: its parts find what they are there to find, and one that fails fails all."""

import importlib.util
import os
import pathlib
import subprocess

import pytest
from check import sources, tracked, unsafe_code
from check.allowed import Allowed, BadLine, Entry, matches
from check.report import Report

pytestmark = pytest.mark.unit

LICENCE = "SPDX-License-Identifier: GPL-2.0"


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """A git repository; git must not ask anybody who they are."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def write(checkout: pathlib.Path, name: str, text: str) -> None:
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text(text)


# --- files ---


def test_new_files_count_and_ignored_or_deleted_ones_do_not(checkout):
    write(checkout, ".gitignore", "build/\n")
    write(checkout, "new.rs", "")
    write(checkout, "build/made.rs", "")
    write(checkout, "gone.rs", "")
    subprocess.run(["git", "-C", str(checkout), "add", "gone.rs"], check=True)
    (checkout / "gone.rs").unlink()
    assert sources.files(checkout, "*.rs") == [pathlib.Path("new.rs")]


def test_a_checkout_without_git_is_an_error(tmp_path):
    with pytest.raises(sources.NoSources):
        sources.files(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["// {}\n", "#!/bin/sh\n# {}\n", "/* {} */\n", "<!-- {} -->\n", "# {}"])
def test_a_licence_line_comes_first_or_after_the_interpreter(text: str):
    assert tracked.has_licence(text.format(LICENCE))


@pytest.mark.parametrize("text", ["", "\n", f"x\n# {LICENCE}\n", f"// {LICENCE}-or-later\n", "// GPL-2.0\n"])
def test_anything_else_is_no_licence_line(text: str):
    assert not tracked.has_licence(text)


def test_files_are_asked_for_their_licence(checkout):
    write(checkout, "README.md", "# Title\n")
    write(checkout, "Cargo.lock", "version = 4\n")
    write(checkout, "good.c", f"// {LICENCE}\n")
    (checkout / "capture").write_bytes(b"\xff\xfe\x00")
    assert tracked.check(checkout).problems == [f"README.md: does not begin with `{LICENCE}`"]


def test_paths_of_the_machine_are_found(checkout):
    somebody = "/ho" + "me/somebody/x"
    write(checkout, "a.py", f"# {LICENCE}\ncd {checkout}/build\n# {somebody}\nlib{somebody}\n")
    assert tracked.check(checkout).problems == [
        f"a.py:2: a path of this machine: {checkout}",
        f"a.py:3: a path of this machine: {somebody[:-2]}",
    ]


def test_hosts_that_nobody_else_knows_are_found(checkout):
    scheme = "https:" + "//"
    hosts = ["git.kernel.org", "github.com", "mirror", "cargo.example.internal"]
    write(checkout, "a.py", "\n".join([f"# {LICENCE}", *(f"{scheme}{host}/x" for host in hosts)]) + "\n")
    assert tracked.check(checkout).problems == ["a.py:5: not known as a public host: cargo.example.internal"]


# --- unsafe ---

UNSAFE = '''\
// unsafe { in a comment }
const TEXT: &str = "unsafe { in a string }"; const BRACE: char = '{';
fn safe<'a>(x: &'a u8) {
    // SAFETY: Why not.
    unsafe {
        if *x > 0 {}
    }
    let y = unsafe { *x };
}
unsafe impl Send for A {}
unsafe extern "C" fn callback(_: *mut u8) {}
type Callback = unsafe extern "C" fn(*mut u8);
global_lock! { unsafe(uninit) static LOCK: Mutex<()> = (); }
'''


def test_unsafe_is_told_from_its_name_and_measured():
    found = [(one.line, one.kind, one.lines) for one in unsafe_code.occurrences(UNSAFE)]
    assert found == [
        (5, "block", 3),
        (8, "block", 1),
        (10, "implementation", 1),
        (11, "function", 0),
        (13, "attribute", 1),
    ]


def excuse(what: str) -> Allowed:
    return Allowed([Entry("unsafe_allowed:1", what, "because")])


def test_unsafe_above_its_floors_is_a_problem(checkout):
    write(checkout, "rust/transport/lib.rs", "unsafe impl Send for A {}\n")
    write(checkout, "rust/af_vsock/lib.rs", "unsafe impl Send for A {}\n")
    (problem,) = unsafe_code.check(checkout, Allowed([])).problems
    assert problem.startswith("rust/transport/lib.rs:1: ")


def test_unsafe_is_excused_as_often_as_the_list_says(checkout):
    write(checkout, "rust/transport/lib.rs", "unsafe impl Send for A {}\n")
    assert not unsafe_code.check(checkout, excuse("rust/transport/lib.rs 1")).problems
    assert unsafe_code.check(checkout, excuse("rust/transport/lib.rs 2")).problems
    assert "remove the line" in unsafe_code.check(checkout, excuse("rust/proto/lib.rs 1")).problems[-1]


def test_an_excuse_needs_a_reason(tmp_path):
    (tmp_path / "list").write_text("# comment\n\nrust/transport/lib.rs 1\n")
    with pytest.raises(BadLine, match="list:3"):
        Allowed.read(tmp_path / "list")


def test_only_the_star_is_special_in_patterns():
    assert matches("<[u8]>::* -> *", "<[u8]>::f::{closure#0} -> core::panicking::panic")
    assert not matches("a.c", "abc") and not matches("a", "aa")


# --- the command ---


@pytest.fixture(scope="module")
def command():
    path = sources.CHECKOUT / "tools/check/__main__.py"
    spec = importlib.util.spec_from_file_location("check_main", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken() -> Report:
    raise OSError("the tool is missing")


def test_all_parts_run_and_one_that_fails_fails_the_check(command, monkeypatch, capsys):
    made = {"first": lambda: Report(["wrong"]), "second": broken, "third": lambda: Report(notes=["a table"])}
    monkeypatch.setattr(command, "parts", lambda _toolchain: made)
    assert command.main([]) == 1
    output = capsys.readouterr().out
    assert "  wrong\n" in output and "  the tool is missing\n" in output and "  a table\n" in output
    assert "check: failed: first, second" in output
    assert command.main(["third"]) == 0


def test_outside_the_tree_it_says_how_to_get_in(command, monkeypatch, capsys):
    monkeypatch.delenv("KDIR")
    with pytest.raises(SystemExit):
        command.main([])
    assert "make check" in capsys.readouterr().err


def test_every_part_is_described(command):
    names = command.parts(command.Toolchain(sources.CHECKOUT, "release"))
    assert [line.split()[0] for line in command.DOES.splitlines()[1:]] == list(names)


# --- the toolchain ---


@pytest.fixture
def toolchain(command, tmp_path):
    return command.Toolchain(tmp_path, os.environ["RVSOCK_RELEASE"])


def test_unformatted_rust_is_named(checkout, toolchain):
    write(checkout, "good.rs", "fn f() {}\n")
    write(checkout, "bad.rs", "fn f( ) {}\n")
    assert toolchain.formatting().problems == ["bad.rs", "`make rustfmt` formats them"]
    write(checkout, "bad.rs", "fn f() {}\n")
    assert not toolchain.formatting().problems


def test_warnings_of_a_build_that_succeeds_count(toolchain):
    write(toolchain.checkout, "Makefile", "modules:\n\t@echo '  RUSTC [M] a.o'; echo 'warning: unused'\n")
    assert toolchain.modules().problems == ["warning: unused"]
    write(toolchain.checkout, "Makefile", "modules:\n\t@echo '  RUSTC [M] a.o'\n")
    assert not toolchain.modules().problems


def test_modules_that_do_not_build_have_unknown_panic_paths(toolchain):
    write(toolchain.checkout, "Makefile", "modules:\n\t@false\n")
    assert toolchain.modules().problems
    assert toolchain.panics().problems == ["the modules do not build"]
