# SPDX-License-Identifier: GPL-2.0
"""The kernel's own vsock programs (tools/testing/vsock), built unchanged and statically from KDIR."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess

PROGRAMS = ("vsock_test", "vsock_diag_test", "vsock_uring_test", "vsock_perf")
COMPILER = "gcc-14"
PATIENCE = pathlib.Path(__file__).with_name("patience.c")


def sources() -> pathlib.Path:
    return pathlib.Path(os.environ["KDIR"]) / "tools/testing/vsock"


def fingerprint(files: list[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(patient: bool = False) -> dict[str, pathlib.Path]:
    """Builds the programs, once for each version of their sources; their paths by name.

    Patient ones take ten times as long until they give up; nothing else about them is different.
    """
    files = sorted(path for path in sources().iterdir() if path.suffix in (".c", ".h", "") and path.is_file())
    name = f"vsock-{fingerprint([*files, PATIENCE])}{'-patient' if patient else ''}"
    target = pathlib.Path(os.environ["RVSOCK_CACHE"]) / "peers" / name
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in files:
            shutil.copy(path, partial)
        compile_in(partial, patient)
        with contextlib.suppress(OSError):
            # A run beside this one may have been quicker.
            partial.rename(target)
    return {name: target / name for name in PROGRAMS}


def compile_in(directory: pathlib.Path, patient: bool) -> None:
    """The flags of their Makefile, with its relative paths into the kernel made absolute."""
    kernel = os.environ["KDIR"]
    flags = f"-O2 -I. -I{kernel}/tools/include -I{kernel}/usr/include -U_FORTIFY_SOURCE -D_GNU_SOURCE"
    linking = f"-static -Wl,--wrap=alarm,--wrap=poll {PATIENCE}" if patient else "-static"
    command = ["make", f"CC={COMPILER}", f"LDFLAGS={linking}", f"CFLAGS={flags}", "test", "vsock_perf"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{sources()} does not build:\n{result.stderr}")
