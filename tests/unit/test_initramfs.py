# SPDX-License-Identifier: GPL-2.0
"""Root file systems of guests, unpacked with cpio."""

import os
import pathlib
import subprocess

import pytest
from rig import RigError, initramfs

pytestmark = pytest.mark.unit


@pytest.fixture
def unpacked(tmp_path):
    """What cpio makes of an archive."""

    def unpack(archive: initramfs.Archive) -> pathlib.Path:
        data = b"".join(archive.encode())
        subprocess.run(["cpio", "--extract", "--quiet"], cwd=tmp_path, input=data, check=True)
        return tmp_path

    return unpack


def test_files_links_and_directories_arrive(unpacked):
    archive = initramfs.Archive()
    archive.file("usr/bin/tool", b"#!/bin/sh\n", 0o755)
    archive.file("odd", b"12345", 0o600)
    archive.link("bin", "usr/bin")
    root = unpacked(archive)
    assert (root / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (root / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "odd").read_bytes() == b"12345"
    assert (root / "odd").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "path, name",
    [
        ("/bin/ls", "usr/bin/ls"),
        ("/usr/sbin/sshd", "usr/bin/sshd"),
        ("/sbin/ip", "usr/bin/ip"),
        ("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("/usr/share/x", "usr/share/x"),
    ],
)
def test_directories_with_aliases_have_one_name(path, name):
    assert initramfs.merged(pathlib.Path(path)) == name


def test_a_program_brings_its_libraries(unpacked):
    archive = initramfs.Archive()
    for path in [pathlib.Path("/usr/bin/ss"), *initramfs.libraries(pathlib.Path("/usr/bin/ss"))]:
        archive.add(path)
    initramfs.add_aliases(archive)
    root = unpacked(archive)
    result = subprocess.run(["chroot", root, "/usr/bin/ss", "-V"], capture_output=True, text=True, check=True)
    assert "ss utility" in result.stdout


def test_a_program_the_tree_lacks_is_named():
    with pytest.raises(RigError, match="no-such-program"):
        initramfs.find_program("no-such-program")


def test_modules_come_with_their_dependencies_first():
    names = [path.name.split(".")[0] for path in initramfs.kernel_modules(["vmw_vsock_virtio_transport"])]
    assert names == ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"]


def test_archives_that_were_used_longest_ago_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(initramfs, "KEPT", 2)
    archives = [tmp_path / f"{name}.cpio" for name in "abc"]
    for age, archive in enumerate(archives):
        archive.touch()
        os.utime(archive, (age, age))
    assert initramfs.is_kept(archives[0])
    initramfs.prune(tmp_path)
    assert [archive.exists() for archive in archives] == [True, False, True]


def test_an_archive_that_is_gone_is_not_made_up(tmp_path):
    gone = tmp_path / "gone.cpio"
    assert not initramfs.is_kept(gone)
    assert not gone.exists()
