# SPDX-License-Identifier: GPL-2.0
"""vhost-device-vsock, the rust-vmm project's vsock device in user space, as crates.io has it."""

import contextlib
import os
import pathlib
import shutil
import subprocess

NAME = "vhost-device-vsock"
VERSION = "0.3.0"
# Named, so that the flags below are not used for macros, which cannot be static.
TARGET = "x86_64-unknown-linux-gnu"


def build() -> pathlib.Path:
    """The program, built once, with the versions of its dependencies that it was released with."""
    peers = pathlib.Path(os.environ["RVSOCK_CACHE"]) / "peers"
    target = peers / f"{NAME}-{VERSION}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        install(partial)
        with contextlib.suppress(OSError):
            # A run beside this one may have been quicker.
            partial.rename(target)
    return target / "bin" / NAME


def install(root: pathlib.Path) -> None:
    command = ["cargo", "install", "--quiet", "--locked", "--root", str(root)]
    command += ["--target", TARGET, "--version", VERSION, NAME]
    objects = root.with_suffix(".target")
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(objects),
        "RUSTFLAGS": "-C target-feature=+crt-static -C strip=symbols",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    shutil.rmtree(objects, ignore_errors=True)
    if result.returncode:
        raise RuntimeError(f"{NAME} {VERSION} does not build:\n{result.stderr.rstrip()}")
