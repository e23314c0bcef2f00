# SPDX-License-Identifier: GPL-2.0
"""Step 1: which kernels run, what is loaded in them, and that there is no network."""

import re

from rig import runs, transports

from .stage import LANGUAGES, TRANSPORTS, Stage

TITLE = "What is loaded where"

# Documentation/admin-guide/tainted-kernels.rst: bit 12, out of tree, and bit 13, unsigned.
TAINT_OUT_OF_TREE_UNSIGNED = 1 << 12 | 1 << 13

# The rest is the signature of modules in the tree, a page of numbers.
FIELDS = "filename|description|depends|intree|vermagic"


def show(stage: Stage) -> None:
    for side in ("guest", "host"):
        show_side(stage, side)
    network = stage.run("guest", "ip link")
    interfaces = re.findall(r"^\d+: ([^:@]+)", network, re.MULTILINE)
    stage.require(interfaces == ["lo"], "the guest has no network device, only its loopback interface")


def show_side(stage: Stage, side: str) -> None:
    module = stage.modules(side)[-1]
    version = stage.run(side, "cat /proc/version")
    stage.require(
        version.startswith(f"Linux version {runs.release()} (debian-kernel@"),
        f"the {side} runs the kernel {runs.release()} as Debian ships it",
    )
    stage.run(side, "lsmod | grep vsock")
    candidates = set(transports.ROLES[side].all) - set(transports.SHARED)
    stage.require(
        candidates & set(stage.machine(side).loaded_modules()) == {module},
        f"the transport of the {side} is {module}: {LANGUAGES[stage.sides[side]]}",
    )
    show_module(stage, side, module)


def show_module(stage: Stage, side: str, module: str) -> None:
    file = f"/run/modules/{module}.ko" if stage.ours(side) else module
    facts = stage.run(side, f"modinfo {file} | grep -E '^({FIELDS}):'")
    vermagic = re.search(r"^vermagic:\s+(\S+)", facts, re.MULTILINE)
    stage.require(bool(vermagic) and vermagic[1] == runs.release(), "it was built for this kernel")
    # One pattern after the other: a word search over all symbols takes 10 s in an emulated guest.
    owner = stage.run(side, f"grep -F '[{module}]' /proc/kallsyms | grep -w {TRANSPORTS[side]}")
    stage.require(
        owner.rstrip().endswith(f"[{module}]"), f"the object {TRANSPORTS[side]} is the one of {module}"
    )
    tainted = int(stage.run(side, "cat /proc/sys/kernel/tainted"))
    if stage.ours(side):
        claim = f"taint {tainted}: an out-of-tree, unsigned module, and nothing else"
        stage.require(tainted == TAINT_OUT_OF_TREE_UNSIGNED, claim)
    else:
        stage.require(tainted == 0, "not tainted: nothing but the distribution's modules")
