# SPDX-License-Identifier: GPL-2.0
"""Root file systems for guests: made of files of the tree, kept under the hash of their content."""

import dataclasses
import hashlib
import lzma
import os
import pathlib
import re
import secrets
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

from . import runs
from .errors import RigError

# What virtio-vsock, its tools and the rig need; dependencies are added.
MODULES = ("vmw_vsock_virtio_transport", "vsock_loopback", "vsock_diag", "vsockmon", "virtio_net")

# Archives in the cache.
KEPT = 20

DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "var/tmp", "var/log", "etc", "usr/bin", "usr/lib")
ALIASES = {
    "bin": "usr/bin",
    "sbin": "usr/bin",
    "usr/sbin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
}
ETC = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        "tcpdump:x:101:65534::/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file, directory or symbolic link of an archive."""

    mode: int
    data: bytes = b""


class Archive:
    """A cpio archive in the form the kernel reads ("newc", see initramfs-buffer-format.rst)."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def directory(self, name: str) -> None:
        if name and name not in self.entries:
            self.directory(os.path.dirname(name))
            self.entries[name] = Entry(stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.directory(os.path.dirname(name))
        self.entries[name] = Entry(stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        self.directory(os.path.dirname(name))
        self.entries.setdefault(name, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def add(self, path: pathlib.Path) -> None:
        """A file or a whole directory, at the path it has in the tree."""
        name = merged(path)
        if path.is_symlink():
            self.link(name, os.readlink(path))
            self.add(pathlib.Path(os.path.normpath(path.parent / os.readlink(path))))
        elif path.is_dir():
            self.directory(name)
            for child in sorted(path.iterdir()):
                if child.name != "__pycache__":
                    self.add(child)
        else:
            self.file(name, path.read_bytes(), path.stat().st_mode & 0o777)

    def encode(self) -> Iterator[bytes]:
        entries = [*self.entries.items(), ("TRAILER!!!", Entry(0))]
        for inode, (name, entry) in enumerate(entries, 1):
            fields = [inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name) + 1, 0]
            head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
            yield head + bytes(-len(head) % 4)
            yield entry.data + bytes(-len(entry.data) % 4)


def merged(path: pathlib.Path) -> str:
    """The path inside the archive, where /bin and its like are links."""
    name = str(path).lstrip("/")
    for alias, target in ALIASES.items():
        if name.startswith(alias + "/"):
            return target + name[len(alias) :]
    return name


def add_aliases(archive: Archive) -> None:
    for alias, target in ALIASES.items():
        archive.link(alias, os.path.relpath(target, os.path.dirname(alias) or "."))


def libraries(path: pathlib.Path) -> list[pathlib.Path]:
    """Shared libraries of a program, with its loader."""
    output = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return [pathlib.Path(name) for name in re.findall(r"(/\S+) \(0x", output)]


def find_program(name: str) -> pathlib.Path:
    for directory in ("/usr/bin", "/usr/sbin", "/"):
        path = pathlib.Path(directory) / name.lstrip("/")
        if path.exists():
            return path
    raise RigError(f"the tree has no program called {name}")


def kernel_modules(names: Iterable[str]) -> list[pathlib.Path]:
    """Files of modules and their dependencies, in load order."""
    command = ["modprobe", "--set-version", runs.release(), "--ignore-install", "--show-depends"]
    files: dict[pathlib.Path, None] = {}
    for name in names:
        output = subprocess.run([*command, name], capture_output=True, text=True)
        if output.returncode:
            raise RigError(f"kernel {runs.release()} has no module {name}: {output.stderr.strip()}")
        for line in output.stdout.splitlines():
            if line.startswith("insmod "):
                files[pathlib.Path(line.split()[1])] = None
    return list(files)


def add_modules(archive: Archive, files: list[pathlib.Path]) -> None:
    """Modules, unpacked, with the indexes that modprobe and the kernel's autoloading use."""
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        base = root / "lib/modules" / runs.release()
        for path in files:
            target = base / str(path).split(runs.release() + "/", 1)[1].removesuffix(".xz")
            target.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            target.write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
        for listing in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
            source = pathlib.Path("/usr/lib/modules") / runs.release() / listing
            if source.exists():
                (base / listing).write_bytes(source.read_bytes())
        subprocess.run(["depmod", "--basedir", root, runs.release()], check=True)
        for path in sorted(base.rglob("*")):
            if path.is_file():
                archive.file(f"usr/lib/modules/{path.relative_to(root / 'lib/modules')}", path.read_bytes())


def add_busybox(archive: Archive) -> None:
    busybox = find_program("busybox")
    archive.file("usr/bin/busybox", busybox.read_bytes(), 0o755)
    for name in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        archive.link(f"usr/bin/{name}", "busybox")


def fill(agent: pathlib.Path, programs: list[pathlib.Path], modules: list[pathlib.Path]) -> Archive:
    archive = Archive()
    for name in DIRECTORIES:
        archive.directory(name)
    add_aliases(archive)
    for name, text in ETC.items():
        archive.file(name, text.encode())
    archive.file("init", (runs.RIG / "guest-init").read_bytes(), 0o755)
    archive.file("usr/bin/rvsock-agent", agent.read_bytes(), 0o755)
    for path in programs:
        archive.entries.pop(merged(path), None)
        archive.add(path)
        for library in libraries(path) if path.is_file() else []:
            archive.add(library)
    add_busybox(archive)
    add_modules(archive, modules)
    return archive


def fingerprint(paths: Iterable[pathlib.Path]) -> str:
    """A hash over names, sizes and times of change: reading a Python library takes longer than it saves."""
    digest = hashlib.sha256(runs.release().encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def build(agent: pathlib.Path, programs: Iterable[str], modules: Iterable[str]) -> pathlib.Path:
    """The archive with these programs (names, or absolute paths of files or directories) and modules."""
    found = [find_program(name) for name in sorted(set(programs))]
    files = kernel_modules(modules)
    inputs = [pathlib.Path(__file__), runs.RIG / "guest-init", agent, *found, *files]
    target = runs.cache() / "initramfs" / f"{fingerprint(inputs)}.cpio"
    if not is_kept(target):
        target.parent.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{secrets.token_hex(8)}")
        with open(partial, "wb") as output:
            output.writelines(fill(agent, found, files).encode())
        partial.rename(target)
        prune(target.parent)
    return target


def is_kept(archive: pathlib.Path) -> bool:
    """Whether an archive is there; if so, it was used just now."""
    try:
        # Not touch(): where another run prunes at this moment, that would leave an empty archive.
        os.utime(archive)
    except FileNotFoundError:
        return False
    return True


def prune(directory: pathlib.Path) -> None:
    """Removes the archives that were used longest ago."""
    for path in sorted(directory.glob("*.cpio"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        path.unlink(missing_ok=True)
