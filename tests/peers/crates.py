# SPDX-License-Identifier: GPL-2.0
"""Programs of other projects as crates.io has them, built unchanged."""

import contextlib
import os
import pathlib
import shutil
import subprocess

# Named, so that the flags below are not used for macros, which cannot be static.
TARGET = "x86_64-unknown-linux-gnu"


def build(name: str, version: str) -> pathlib.Path:
    """The program of a crate, built once, with the versions of its dependencies that it was released with.

    Statically linked: guests have no libraries of their own.
    """
    peers = pathlib.Path(os.environ["RVSOCK_CACHE"]) / "peers"
    target = peers / f"{name}-{version}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        install(name, version, partial)
        with contextlib.suppress(OSError):
            # A run beside this one may have been quicker.
            partial.rename(target)
    return target / "bin" / name


def install(name: str, version: str, root: pathlib.Path) -> None:
    command = ["cargo", "install", "--quiet", "--locked", "--root", str(root)]
    command += ["--target", TARGET, "--version", version, name]
    objects = root.with_name(f"{root.name}.target")
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(objects),
        "RUSTFLAGS": "-C target-feature=+crt-static -C strip=symbols",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    shutil.rmtree(objects, ignore_errors=True)
    if result.returncode:
        raise RuntimeError(f"{name} {version} does not build:\n{result.stderr.rstrip()}")
