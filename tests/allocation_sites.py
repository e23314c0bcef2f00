# SPDX-License-Identifier: GPL-2.0
"""Where the finished modules allocate, so that each such place can be made to fail (`shortage` of tests/selftests)."""

import pathlib
import re

from check import elf
from check.allowed import Allowed, matches
from check.rust_names import demangle

# Functions of the kernel that our code calls, and that fail if there is no memory.
ALLOCATORS = re.compile(
    r"rust_helper_kv?m?realloc_node_align|__alloc_skb|alloc_skb_with_frags|__pskb_pull_tail|__alloc_pages_noprof"
    r"|msg_zerocopy_realloc|alloc_workqueue_noprof|vsock_create_connected|virtqueue_add_\w+|vhost_init_device_iotlb"
    r"|__kmalloc\w*"
)

# It waits until there is memory.
NEVER_FAILS = "rvsock_helper_kmalloc_nofail"

CALL, JUMP = 0xE8, 0xE9

# What comes before a call that frees: krealloc() to nothing, with no flags (xor ecx, ecx), on no certain node
# (mov r8d, -1). Who allocates has flags.
FREES = bytes.fromhex("31c9 41b8ffffffff")

# Sites at which nothing can be seen to fail, each with its reason.
EXCUSED = pathlib.Path(__file__).with_name("allocation_sites_excused")

STRUCK = re.compile(r"^# struck (\S+)$", re.MULTILINE)


def of_module(path: pathlib.Path) -> list[str]:
    """Each call of an allocator in a module, by function and offset of where it returns to."""
    module = elf.Object(path)
    starts = {function.name: function.value for function in module.functions()}
    code = [one for one in module.references() if one.section.executable and one.holder != NEVER_FAILS]
    sites, targets = [], {reference.target for reference in code if ALLOCATORS.fullmatch(reference.target)}
    while targets:
        found = [reference for reference in code if reference.target in targets]
        # What ends with a jump to an allocator is one, as what returns from there is its caller.
        targets = {one.holder for one in found if opcode(module, one) == JUMP}
        calls = (one for one in found if opcode(module, one) == CALL and not frees(module, one))
        sites += [f"{one.holder}+{one.offset + 4 - starts[one.holder]:#x}" for one in calls]
    assert sites, f"{path} allocates nothing"
    return sites


def opcode(module: elf.Object, reference: elf.Reference) -> int:
    """The byte before what a relocation fills in."""
    return module.content(reference.section)[reference.offset - 1]


def frees(module: elf.Object, call: elf.Reference) -> bool:
    return module.content(call.section)[: call.offset - 1].endswith(FREES)


def check(module: str, sites: list[str], output: str) -> None:
    """Asserts that a run has seen all sites of a module fail, but those for which there is an excuse."""
    struck = set(STRUCK.findall(output))
    functions = {site: site.rpartition("+")[0] for site in sites}
    names = demangle(sorted(set(functions.values())))
    excuses = Allowed.read(EXCUSED).entries
    left = []
    for site in sites:
        name = f"{module} {names[functions[site]]}"
        if site not in struck and not any(matches(excuse.what, name) for excuse in excuses):
            left.append(f"{name} ({site})")
    print(f"{len(struck)} of {len(sites)} calls of allocators were seen to fail")
    assert not left, "never failed:\n" + "\n".join(left)
