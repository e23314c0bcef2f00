# SPDX-License-Identifier: GPL-2.0
"""Step 6: NFS, without a network."""

import re

from rig import nfs

from .stage import CID_GUEST, Stage

TITLE = "A directory of the host, mounted in the guest (NFS over vsock)"


def show(stage: Stage) -> None:
    with stage.screen.timed("loading sunrpc_vsock on both sides, starting the kernel's NFS server"):
        server = nfs.Server(stage.host)
        guest = nfs.Client(stage.guest)
        for machine in (stage.host, stage.guest):
            nfs.load(machine)
        server.prepare()
        server.start()
        server.export(CID_GUEST)
    stage.host.shell(f"echo hello from the host >{nfs.EXPORT}/greeting")
    stage.run("host", "cat /etc/exports /proc/fs/nfsd/portlist")
    refused(stage)
    stage.run("host", f"nfs-vsock allow {CID_GUEST}")
    stage.run("guest", f"mount -t nfs_vsock 2:/ {nfs.MOUNT}")
    both_ways(stage)
    recalled(stage)
    stage.run("host", "nfs-vsock list")
    guest.unmount()
    server.close()
    for machine in (stage.guest, stage.host):
        nfs.unload(machine)


def refused(stage: Stage) -> None:
    line = f"mount -t nfs_vsock 2:/ {nfs.MOUNT} 2>&1 || true"
    says = stage.run("guest", line)
    stage.require("does not serve this machine" in says, "nobody is served before the host allows it")


def both_ways(stage: Stage) -> None:
    read = stage.run("guest", f"cat {nfs.MOUNT}/greeting")
    stage.require(read == "hello from the host\n", "the guest reads what the host has written")
    stage.run("guest", f"echo hello from the guest >{nfs.MOUNT}/answer; sync")
    read = stage.run("host", f"cat {nfs.EXPORT}/answer")
    stage.require(read == "hello from the guest\n", "the host reads what the guest has written")


def recalled(stage: Stage) -> None:
    """The guest may keep a copy of a file that it has open, until the host wants to write it."""
    with stage.background("guest", f"tail -f {nfs.MOUNT}/greeting", "hello"):
        before = returned(stage)
        stage.run("host", f"echo changed on the host >{nfs.EXPORT}/greeting")
        stage.require(returned(stage) > before, "for that, the host called the guest's copy back")
    read = stage.run("guest", f"cat {nfs.MOUNT}/greeting")
    stage.require(read == "changed on the host\n", "the guest sees the change at once")


def returned(stage: Stage) -> int:
    """Delegations that the guest has given back."""
    text = stage.guest.shell("cat /proc/self/mountstats").stdout
    found = re.search(r"^\s*DELEGRETURN: (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
