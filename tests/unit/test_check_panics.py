# SPDX-License-Identifier: GPL-2.0
"""The panic check: whose code a function is, what is found in an object, and what is excused."""

import pathlib
import subprocess

import pytest
from check import elf, panics, rust_names
from check.allowed import Allowed, Entry

pytestmark = pytest.mark.unit

OVERFLOW = "_RNvNtNtCs2lKf6AS60Zg_4core9panicking11panic_const24panic_const_add_overflow"
OURS = "_RNvNtCs7aCgrZ4sqH0_11vsock_proto7address6number"
KERNEL = "_RNvMs2_NtNtCsb5MLIFMWygY_6kernel5alloc4kvecINtB5_3VechE17extend_from_slice"
NEW_IN_CORE = "_RNvNtCs2lKf6AS60Zg_4core5slice10split_fast"

WHOSE = [
    ("vsock_transport::send::can_refer", {"vsock_transport"}),
    ("<vsock_proto::Flags as core::fmt::Debug>::fmt", {"vsock_proto", "core"}),
    ("<kernel::sync::Arc as kernel::workqueue::WorkItemPointer>::run", {"kernel"}),
    ("<&str as core::fmt::Display>::fmt", {"core"}),
    ("<&mut dyn af_vsock::Transport as core::ops::Drop>::drop", {"af_vsock", "core"}),
    ("<<af_vsock::A as core::iter::IntoIterator>::Iter as core::iter::Iterator>::next", {"af_vsock", "core"}),
    ("<[u8]>::copy_from_slice::len_mismatch_fail", set()),
    ("<(kernel::A, B) as core::clone::Clone>::clone", {"kernel", "core"}),
]

SHORTER = [
    ("<kernel::alloc::kvec::Vec<u8, K>>::push", "kernel::alloc::kvec::Vec::push"),
    ("a::f::<b::C<d::E>, fn(u8) -> g::H>::{closure#0}", "a::f::{closure#0}"),
    ("<a::B<c::D> as e::F<g::H>>::i::<j::K>", "<a::B as e::F>::i"),
    ("<str>::parse::<u32>", "<str>::parse"),
    ("init_module", "init_module"),
]


@pytest.mark.parametrize(("function", "crates"), WHOSE)
def test_a_function_belongs_to_the_crates_of_its_type_and_its_trait(function: str, crates: set[str]):
    assert rust_names.owners(function) == crates


@pytest.mark.parametrize(("full", "short"), SHORTER)
def test_names_are_shown_without_arguments(full: str, short: str):
    assert rust_names.without_arguments(full) == short


@pytest.mark.parametrize(
    "name",
    [
        "core::panicking::panic_bounds_check",
        "core::slice::index::slice_end_index_len_fail",
        "core::option::expect_failed",
        "core::result::unwrap_failed",
        "core::cell::panic_already_borrowed",
        "<[u8]>::copy_from_slice::len_mismatch_fail",
        "rust_helper_BUG",
    ],
)
def test_functions_that_panic_are_recognized(name: str):
    assert panics.is_panic(name)


@pytest.mark.parametrize(
    "name",
    ["core::fmt::write", "af_vsock::sock::connect_failed", "__stack_chk_fail", "kernel::error::to_result"],
)
def test_other_functions_are_not(name: str):
    assert not panics.is_panic(name) and not panics.is_unknown(name)


def module(directory: pathlib.Path, functions: dict[str, list[str]], section: str = ".text") -> pathlib.Path:
    """A build directory with one module, whose functions call others."""
    lines = [f'.section {section},"ax"']
    for name, called in functions.items():
        lines += [f".type {name},@function", f"{name}:", *(f"call {other}" for other in called), "ret"]
        lines += [f".size {name},.-{name}"]
    (directory / "m.s").write_text("\n".join(lines) + "\n")
    subprocess.run(["as", "-o", "m.ko", "m.s"], cwd=directory, check=True)
    (directory / "modules.order").write_text("m.o\n")
    return directory


def excuse(what: str) -> Allowed:
    return Allowed([Entry("panic_allowed:1", what, "because")])


def test_a_panic_path_is_attributed_to_the_function_that_holds_it(tmp_path):
    harmless = {"_RNvCs7aCgrZ4sqH0_11vsock_proto4calm": []}
    report = panics.check(module(tmp_path, harmless | {OURS: [OVERFLOW]}), Allowed([]))
    assert len(report.problems) == 1
    assert report.problems[0].startswith(
        "vsock_proto::address::number can reach core::panicking::panic_const::panic_const_add_overflow"
    )


def test_code_of_ours_is_never_excused(tmp_path):
    report = panics.check(module(tmp_path, {OURS: [OVERFLOW]}), excuse("* -> *"))
    assert "vsock_proto::address::number" in report.problems[0]


def test_foreign_code_may_be_excused(tmp_path):
    build = module(tmp_path, {KERNEL: [OVERFLOW]})
    (problem,) = panics.check(build, Allowed([])).problems
    assert problem.startswith("kernel::alloc::kvec::Vec::extend_from_slice can reach")
    assert not panics.check(build, excuse("kernel::alloc::kvec::Vec::* -> core::panicking::*")).problems


def test_an_excuse_for_nothing_is_a_problem(tmp_path):
    report = panics.check(module(tmp_path, {OURS: []}), excuse("kernel::alloc::* -> *"))
    assert len(report.problems) == 1 and "panic_allowed:1" in report.problems[0]


def test_a_copy_of_a_panicking_function_counts_whoever_calls_it(tmp_path):
    local = "_RINvNtCs2lKf6AS60Zg_4core9panicking13assert_failedbbECs9k8XjnPD05Y_8af_vsock"
    inner = "_RNvNtCs2lKf6AS60Zg_4core9panicking19assert_failed_inner"
    report = panics.check(module(tmp_path, {local: [inner]}), Allowed([]))
    assert report.problems[0].startswith("core::panicking::assert_failed can reach")


def test_code_of_the_init_section_counts(tmp_path):
    report = panics.check(module(tmp_path, {"init_module": [OVERFLOW]}, ".init.text"), Allowed([]))
    assert any(problem.startswith("init_module can reach") for problem in report.problems)


def test_a_function_of_core_that_nobody_sorted_is_a_problem(tmp_path):
    report = panics.check(module(tmp_path, {OURS: [NEW_IN_CORE]}), Allowed([]))
    assert "core::slice::split_fast" in report.problems[0]


def test_nothing_to_check_is_a_problem(tmp_path):
    assert panics.check(tmp_path, Allowed([])).problems
    assert panics.check(module(tmp_path, {"c_function": []}), Allowed([])).problems


def test_a_local_function_is_found_behind_section_and_offset(tmp_path):
    source = f"""
        .section .rodata
        .type table,@object
        .quad 0
        table: .quad {OURS}
        .size table,8
        .text
        nop
        .type {OURS},@function
        {OURS}: ret
        .size {OURS},.-{OURS}
    """
    (tmp_path / "m.s").write_text(source)
    subprocess.run(["as", "-o", "m.o", "m.s"], cwd=tmp_path, check=True)
    (reference,) = elf.Object(tmp_path / "m.o").references()
    assert (reference.holder, reference.target) == ("table", OURS)


def test_a_file_that_is_no_object_is_named(tmp_path):
    (tmp_path / "m.ko").write_text("no object")
    with pytest.raises(elf.NotAnObject, match="m.ko"):
        elf.Object(tmp_path / "m.ko")
