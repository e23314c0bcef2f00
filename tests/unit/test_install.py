# SPDX-License-Identifier: GPL-2.0
"""`make install`: what is put where, and taken back."""

import pathlib
import subprocess

import commands
import install
import pytest

pytestmark = pytest.mark.unit

RELEASE = "7.2.12+test"


@pytest.fixture
def build(tmp_path) -> pathlib.Path:
    directory = tmp_path / "build"
    directory.mkdir()
    for name in (*install.REPLACED.values(), "vsock_trace_rs", "sunrpc_vsock"):
        (directory / f"{name}.ko").write_text(name)
    return directory


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def run(action: str, root: pathlib.Path, build: pathlib.Path, release: str = RELEASE) -> int:
    arguments = ["--root", str(root), "--release", release, "--build", str(build)]
    return install.main([action, *arguments, "--commands", str(build / "commands")])


@pytest.fixture
def built_commands(build) -> pathlib.Path:
    """Programs that do nothing, in place of those for NFS."""
    directory = build / "commands"
    directory.mkdir()
    for name in commands.PROGRAMS:
        (directory / name).write_text("#!/bin/sh\n")
    for shell in commands.COMPLETIONS:
        (directory / f"completion.{shell}").write_text(shell)
    return directory


def files(root: pathlib.Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_all_modules_and_the_preference_are_installed_as_often_as_one_likes(root, build):
    for _ in range(2):
        assert run("install", root, build) == 0
    names = {f"lib/modules/{RELEASE}/updates/rvsock/{path.name}" for path in build.glob("*.ko")}
    assert files(root) == names | {install.PREFERENCE}


def test_what_was_installed_is_removed(root, build):
    run("install", root, build)
    for _ in range(2):
        assert run("uninstall", root, build) == 0
        assert files(root) == set()


def test_the_preference_stays_for_another_kernel(root, build):
    run("install", root, build)
    run("install", root, build, "7.3")
    run("uninstall", root, build)
    assert install.PREFERENCE in files(root)
    run("uninstall", root, build, "7.3")
    assert files(root) == set()


def test_what_was_not_built_is_not_installed(root, tmp_path, capsys):
    assert run("install", root, tmp_path / "nothing") == 1
    assert f"RVSOCK_KERNEL={RELEASE} make modules" in capsys.readouterr().err
    assert files(root) == set()


def test_each_module_of_the_kernel_has_a_line_that_falls_back_to_it():
    lines = [line for line in install.preference().splitlines() if not line.startswith("#")]
    assert len(lines) == len(install.REPLACED)
    for line, (theirs, ours) in zip(lines, install.REPLACED.items(), strict=True):
        assert line.startswith(f"install {theirs} ")
        assert f" {ours} || " in line
        assert line.endswith(f"--ignore-install {theirs}")


def test_without_the_commands_the_modules_are_installed(root, build, capsys):
    assert run("install", root, build) == 0
    assert "make commands" in capsys.readouterr().out


def test_the_commands_come_with_the_modules_and_go_with_the_last_of_them(root, build, built_commands):
    assert run("install", root, build) == 0
    assert run("install", root, build, "7.3") == 0
    names = set(commands.installed(built_commands))
    assert {"usr/sbin/nfs-vsock", "usr/sbin/mount.nfs_vsock", "usr/share/man/man8/nfs-vsock.8"} <= names
    assert names <= files(root)
    for name in commands.PROGRAMS.values():
        assert (root / name).stat().st_mode & 0o777 == 0o755
    run("uninstall", root, build)
    assert names <= files(root)
    run("uninstall", root, build, "7.3")
    assert files(root) == set()
    assert not (root / commands.SCRIPTS).exists()


def test_the_units_make_sense_and_start_what_is_installed(root, build, built_commands, tmp_path):
    run("install", root, build)
    units = []
    for name in commands.installed(built_commands):
        if name.startswith(commands.UNITS):
            text = (root / name).read_text()
            for other in commands.installed(built_commands):
                text = text.replace(f"/{other}", str(root / other))
            units.append(tmp_path / pathlib.PurePath(name).name)
            units[-1].write_text(text)
    assert len(units) == 6
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
