# SPDX-License-Identifier: GPL-2.0
"""Step 7: the modules go, and leave nothing behind."""

from .stage import Stage

TITLE = "Unloading"


def show(stage: Stage) -> None:
    unload(stage, "guest")
    with stage.screen.timed("taking the vsock device out of the guest: it is a user of the host's module"):
        stage.guest.unplug_vsock()
    unload(stage, "host")
    stage.run("guest", "dmesg | grep -E 'vsock|virtio_transport'")
    stage.host.check_kernel_logs()
    stage.screen.ok("neither kernel has logged a warning, an oops or any other complaint")


def unload(stage: Stage, side: str) -> None:
    modules = stage.modules(side)
    if stage.ours(side):
        stage.run(side, f"rmmod {' '.join(reversed(modules))}")
    else:
        stage.run(side, f"modprobe -r {modules[-1]}")
    left = set(modules) & set(stage.machine(side).loaded_modules())
    stage.require(not left, f"{modules[-1]} is gone from the {side}")
