# SPDX-License-Identifier: GPL-2.0
"""Installed modules are what modprobe and the kernel's own loading of modules come to."""

import pathlib

import install
import pytest
from rig import runs

pytestmark = pytest.mark.lifecycle

MODULES = "/lib/modules"

# A system with few modules: an emulated depmod takes minutes for all of them.
SMALL_SYSTEM = """
set -e
mkdir -p /run/modules.small /run/modprobe.small
paths=$(for name in vsock_loopback vhost_vsock vsock_diag; do modprobe --show-depends $name; done | cut -d" " -f2)
for path in /lib/modules/*/modules.builtin* /lib/modules/*/modules.order $paths; do
    mkdir -p /run/modules.small/$(dirname ${path#/lib/modules/})
    cp $path /run/modules.small/${path#/lib/modules/}
done
mount --bind /run/modules.small /lib/modules
mount --bind /run/modprobe.small /etc/modprobe.d
"""


@pytest.fixture(scope="module")
def system(host):
    """The host VM, in which modules can be installed until the end of the tests."""
    for role in ("host", "loopback"):
        host.unload(role)
    host.shell(SMALL_SYSTEM)
    yield host
    for role in ("host", "loopback"):
        host.unload(role)
    host.shell("umount /etc/modprobe.d /lib/modules")


@pytest.fixture(scope="module")
def installed(system, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    arguments = ["--root", str(root), "--release", runs.release()]
    assert install.main(["install", *arguments]) == 0
    for path in filter(pathlib.Path.is_file, root.rglob("*")):
        target = pathlib.Path("/", path.relative_to(root))
        # The commands, if they are built, are installed by tests/test_nfs_units.py.
        if target.parts[1] != "etc" and "modules" not in target.parts:
            continue
        system.run(["mkdir", "-p", str(target.parent)])
        system.put(path, str(target))
    system.run(["depmod", runs.release()])
    return system


@pytest.mark.parametrize(
    "role, name", [("loopback", "vsock_loopback"), ("host", "vhost_vsock"), ("host", "devname:vhost-vsock")]
)
def test_ours_is_loaded_under_the_name_of_the_kernels_own(installed, role, name):
    installed.unload(role)
    installed.run(["modprobe", name])
    loaded = installed.loaded_modules()
    theirs = "vsock_loopback" if role == "loopback" else "vhost_vsock"
    assert install.REPLACED[theirs] in loaded
    assert theirs not in loaded
    installed.unload(role)


def test_the_kernels_own_is_loaded_where_ours_cannot_be(installed):
    release = runs.release()
    installed.unload("loopback")
    installed.shell(f"rm {MODULES}/{release}/updates/rvsock/vsock_loopback_rs.ko && depmod {release}")
    installed.run(["modprobe", "vsock_loopback"])
    assert "vsock_loopback" in installed.loaded_modules()
    installed.unload("loopback")
