# SPDX-License-Identifier: GPL-2.0
"""Whether the host VM can run on hardware, found out by trying."""

import json
import pathlib
import subprocess

from . import runs

# A kernel that KVM runs properly panics for want of a root after 1-2 s.
PROBE_SECONDS = 20
PROBE_MARK = b"Unable to mount root fs"

EMULATION = ["-accel", "tcg,thread=multi,tb-size=512"]
HARDWARE = ["-accel", "kvm"]

# Guests need nested paging, which QEMU's default model lacks. With ERMS and FSRM the kernel copies
# with `rep movsb`, which QEMU emulates byte by byte: without them the host VM boots in 10 s of CPU
# time instead of 13, and bulk transfers are three times as fast.
EMULATED_CPU = "max,-erms,-fsrm"
HARDWARE_CPU = "max"


def cpu() -> str:
    """The CPU model for the host VM and the guests in it."""
    return HARDWARE_CPU if hardware() else EMULATED_CPU


def hardware() -> bool:
    """Whether /dev/kvm boots the kernel; asked once for every kernel, boot of the machine and image."""
    device = pathlib.Path("/dev/kvm")
    # kvm_pvm offers the device but boots no ordinary kernel, and may take the machine down trying.
    if not device.exists() or pathlib.Path("/sys/module/kvm_pvm").exists():
        return False
    record = runs.cache() / "kvm-probe.json"
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    question = [boot, str(runs.image())]
    try:
        answer = json.loads(record.read_text())
        if answer["question"] == question:
            return answer["works"]
    except (OSError, ValueError, KeyError):
        pass
    works = probe()
    record.write_text(json.dumps({"question": question, "works": works}))
    return works


def probe() -> bool:
    """Boots the kernel without a root under KVM with nested virtualization."""
    command = [
        *("qemu-system-x86_64", "-M", "q35", *HARDWARE, "-cpu", "host", "-m", "512", "-nodefaults"),
        *("-no-user-config", "-display", "none", "-vga", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(runs.image()), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return PROBE_MARK in result.stdout
