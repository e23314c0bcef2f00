# SPDX-License-Identifier: GPL-2.0
"""Runs commands inside the Debian tree, in mount and PID namespaces of their own.

Whatever happens to such a command or to the program that started it, nothing stays mounted and
nothing keeps running, and removing the cache can never reach the machine's /dev.
"""

import os
import pathlib
import signal
import subprocess

# $1: tree, $2: directories that keep their path inside (with colons), $3: directory to start in,
# then the command.
SCRIPT = r"""
tree=$1 shared=$2 directory=$3
shift 3
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"
mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
	[ -e "$file" ] && [ -e "$tree$file" ] && mount --bind "$file" "$tree$file"
done
IFS=:
for path in $shared; do
	[ -e "$path" ] || continue
	mkdir -p "$tree$path"
	mount --bind "$path" "$tree$path"
done
unset IFS
# Not chroot: the root has to be a mount, for those inside who want namespaces of their own.
cd "$tree"
pivot_root . .
umount -l .
cd "$directory"
exec "$@"
"""

KEPT = (
    *("TERM", "CI", "KERNEL", "T", "OUT", "LONG", "LANE", "V"),
    *("KDIR", "KARCH", "KRUSTFLAGS", "RVSOCK_RELEASE", "RVSOCK_IMAGE"),
    *("http_proxy", "https_proxy", "no_proxy"),
)


def environment(cache_root: pathlib.Path) -> dict[str, str]:
    """A small environment of the tree's own, plus the variables the README names."""
    inside = {name: os.environ[name] for name in KEPT if name in os.environ}
    inside.update(
        PATH="/usr/sbin:/usr/bin:/sbin:/bin",
        HOME=str(cache_root / "home"),
        RVSOCK_CACHE=str(cache_root),
        RVSOCK_INSIDE="1",
        LC_ALL="C.UTF-8",
        PYTHONDONTWRITEBYTECODE="1",
    )
    return inside


def contained(command: list[str]) -> list[str]:
    """The command that runs `command` with mounts and processes of its own.

    They go when it ends, and when its caller does: also by kill -9 (hence the death signal).
    The shell stays as their first process, because a command may lose the signal: apt does.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("sh", "-c", 'trap : INT; "$@"; exit $?', "sh"),
        *command,
    ]


def command_line(
    tree: pathlib.Path, shared: list[pathlib.Path], directory: pathlib.Path, command: list[str]
) -> list[str]:
    """The command that runs `command` inside `tree`, in `directory`."""
    paths = ":".join(map(str, shared))
    return contained(["sh", "-euc", SCRIPT, "sh", str(tree), paths, str(directory), *command])


def run(
    cache_root: pathlib.Path,
    tree: pathlib.Path,
    checkout: pathlib.Path,
    command: list[str],
) -> int:
    """Runs `command` on the terminal of the caller; its exit status."""
    (cache_root / "home").mkdir(exist_ok=True)
    line = command_line(tree, [checkout, cache_root], checkout, command)
    process = subprocess.Popen(line, env=environment(cache_root))
    # Ctrl-C reaches the command too: it ends in its own time, and cleans up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.wait()
