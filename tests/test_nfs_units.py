# SPDX-License-Identifier: GPL-2.0
"""What `make install` installs for NFS over vsock, under systemd: units, a mount helper, a line in fstab."""

import shlex

import nfs_system
import pytest
from nfs_system import CID_LOCAL
from rig.nfs import MOUNT

pytestmark = pytest.mark.nfs

OWN = "/run/nfs/own"


@pytest.fixture(scope="module")
def system(host):
    with nfs_system.installed(host, f"mkdir -p {OWN}; echo own > {OWN}/file") as system:
        yield system


def test_the_listener_comes_back_whenever_the_server_is_started(system):
    system.run(f"nfs-vsock allow {CID_LOCAL}")
    system.systemctl("enable", "--now", "nfs-server", "nfs-vsock")
    system.wait_for_listener()
    system.systemctl("restart", "nfs-server")
    system.wait_for_listener()
    system.systemctl("stop", "nfs-server")
    assert not system.listens()
    assert system.run("systemctl is-active nfs-vsock", check=False).status != 0
    system.systemctl("start", "nfs-server")
    system.wait_for_listener()


def test_a_line_in_fstab_mounts_at_the_first_use(system):
    system.run(f"echo 'local:/ {MOUNT} nfs_vsock nofail,x-systemd.automount 0 0' > /etc/fstab")
    system.systemctl("daemon-reload")
    system.systemctl("start", "run-mnt.automount")
    assert "nfs4" not in system.run(f"findmnt -n -o FSTYPE {MOUNT}").stdout
    assert system.run(f"cat {MOUNT}/file").stdout == "hello\n"
    assert "nfs4" in system.run(f"findmnt -n -o FSTYPE {MOUNT}").stdout
    system.systemctl("stop", "run-mnt.automount", "run-mnt.mount")
    system.run("rm /etc/fstab")


def test_a_mount_unit_mounts(system):
    unit = f"[Mount]\nWhat=local:/\nWhere={MOUNT}\nType=nfs_vsock\n"
    system.run(f"printf '%s' {shlex.quote(unit)} > /etc/systemd/system/run-mnt.mount")
    system.systemctl("daemon-reload")
    system.systemctl("start", "run-mnt.mount")
    assert system.run(f"cat {MOUNT}/file").stdout == "hello\n"
    system.systemctl("stop", "run-mnt.mount")


def test_the_server_of_its_own_takes_over(system):
    # The listener goes with the server's threads.
    system.systemctl("disable", "--now", "nfs-vsock")
    system.systemctl("restart", "nfs-server")
    assert not system.listens()
    system.run(f'echo "{OWN} $(nfs-vsock address {CID_LOCAL})(rw,no_subtree_check,fsid=0)" > /etc/nfs-vsock/exports')
    system.systemctl("start", "nfs-vsock-server")
    system.systemctl("reload", "nfs-vsock-server")
    system.systemctl("start", "run-mnt.mount")
    assert system.run(f"cat {MOUNT}/file").stdout == "own\n"
    system.systemctl("stop", "run-mnt.mount")
    # There is one port, and whoever is started has it.
    system.systemctl("start", "nfs-vsock")
    assert system.listens()
    assert system.run("systemctl is-active nfs-vsock-server", check=False).status != 0
