# SPDX-License-Identifier: GPL-2.0
"""systemd in namespaces of the host VM, with what `make install` installs for NFS over vsock."""

import contextlib
import shlex
from collections.abc import Iterator

import commands
from rig import nfs
from rig.nfs import EXPORT, MOUNT, NFSD

CID_LOCAL = 1

# Emulated, and with all that a start of the NFS server brings along.
PATIENCE = 120.0

# Directories that a system can write to.
WRITABLE = """
for directory in etc usr var/lib; do
    mkdir -p /run/over/$directory /run/over/$directory.work
    mount -t overlay -o lowerdir=/$directory,upperdir=/run/over/$directory,workdir=/run/over/$directory.work \\
        over-$directory /$directory
done
"""

# What systemd and its services have to say: at the console, or to the system's log.
CONSOLE = "/run/systemd-console"
TERMINAL = "/run/systemd-terminal"
LOG = "/dev/log"

# A mount that failed may have nothing to say itself.
RESULTS = "systemctl show --property=Id,ActiveState,Result '*.mount' '*.automount'"

# Not what this is about, and some of it would find nothing to work with in this machine.
MASKED = f"""
cd /usr/lib/systemd/system
for unit in *.target.wants/* rpcbind.socket rpc-statd.service rpc-statd-notify.service; do
    case $unit in *.target) ;; *) ln -sf /dev/null /etc/systemd/system/${{unit##*/}} ;; esac
done
echo '[Unit]' > /etc/systemd/system/rig.target
mkdir -p /etc/systemd/system/service.d /etc/systemd/system/mount.d
# Tests start services more often than people do.
cat > /etc/systemd/system/service.d/rig.conf <<END
[Unit]
StartLimitIntervalSec=0
[Service]
StandardOutput=append:{CONSOLE}
StandardError=append:{CONSOLE}
END
cat > /etc/systemd/system/mount.d/rig.conf <<END
[Mount]
StandardOutput=append:{CONSOLE}
StandardError=append:{CONSOLE}
END
"""

# The first process of a PID namespace, which takes itself for that of a container.
SYSTEMD = f"""
echo "pid $$"
: > {CONSOLE}
export container=rig SYSTEMD_LOG_TARGET=console
exec unshare --fork --kill-child --pid --mount --uts --mount-proc \\
    sh -euc 'mount --bind {TERMINAL} /dev/console; exec /usr/lib/systemd/systemd --unit=rig.target'
"""


class System:
    """systemd in namespaces of the host VM."""

    def __init__(self, host):
        self.host = host
        # What another system left is in the way. For systemd, nothing but a terminal is a console.
        host.shell(f"rm -f {LOG} {TERMINAL}")
        self._listeners = [
            host.start(["socat", "-u", source, f"OPEN:{CONSOLE},creat,append"])
            for source in (f"UNIX-RECV:{LOG}", f"PTY,rawer,link={TERMINAL}")
        ]
        host.shell(f"until [ -e {LOG} -a -e {TERMINAL} ]; do sleep 0.1; done", timeout=PATIENCE)
        self._command = host.start(["sh", "-euc", SYSTEMD])
        self._command.wait_for("\n", PATIENCE)
        outer = self._command.stdout.split()[1]
        script = f"until pgrep --parent {outer}; do sleep 0.1; done"
        self._pid = host.shell(script, timeout=PATIENCE).stdout.strip()
        script = "until [ -e /run/systemd/private ] && systemctl is-active -q rig.target; do sleep 0.2; done"
        self.run(script)

    def run(self, script: str, check: bool = True):
        """Runs a script there."""
        # The root of the host VM is not that of its mount namespace.
        into = ["--target", self._pid, "--mount", "--pid", "--uts", "--root", "--wd"]
        command = ["nsenter", *into, "sh", "-euc", script]
        result = self.host.run(command, timeout=PATIENCE, check=False)
        if check and result.status:
            found = self.run(f"systemctl list-jobs; {RESULTS}; tail -n 100 {CONSOLE}", check=False)
            raise AssertionError(f"{script}: {result.stderr}\nWhat the units say:\n{found.stdout}")
        return result

    def systemctl(self, *arguments: str) -> None:
        self.run(shlex.join(["systemctl", *arguments]))

    def listens(self) -> bool:
        return f"vsock {nfs.PORT}\n" in self.run(f"cat {NFSD}/portlist").stdout

    def wait_for_listener(self) -> None:
        """systemctl waits for the units it was told of, not for those that come with them."""
        self.run(f"until grep -q '^vsock {nfs.PORT}$' {NFSD}/portlist; do sleep 0.2; done")

    def close(self) -> None:
        self._command.kill()
        for listener in self._listeners:
            listener.kill()


@contextlib.contextmanager
def installed(host, script: str = "") -> Iterator[System]:
    """A system with our commands, a file to export, and this machine as its own client.

    `script` prepares more of it, before systemd is started.
    """
    host.unload("host")
    host.load("loopback", "rust")
    nfs.load(host)
    for module in ("overlay", "autofs4", "nfsd", "nfsv4"):
        host.run(["modprobe", module])
    host.shell(WRITABLE)
    commands.build()
    for name, (source, mode) in commands.installed(commands.BUILD).items():
        host.put(source, f"/{name}", mode)
    host.shell(MASKED)
    prepare = f"""
    mount -t tmpfs nfs-state /var/lib/nfs
    mkdir -p /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery /run/rpc_pipefs {EXPORT} {MOUNT} /etc/nfs-vsock
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    mount -t tmpfs nfs-export {EXPORT}
    echo hello > {EXPORT}/file
    address=$(nfs-vsock address {CID_LOCAL})
    echo "{EXPORT} $address(rw,no_root_squash,no_subtree_check,fsid=0)" > /etc/exports
    # nfs.conf stays, with its manage-gids=y: for 30 seconds after a mountd that had it, the kernel waits for
    # another to say what groups a user is in (cache_listeners_exist() in net/sunrpc/cache.c).
    mkdir -p /etc/nfs.conf.d
    printf '[nfsd]\\nvers3=n\\nthreads=2\\n' > /etc/nfs.conf.d/rig.conf
    """
    host.shell(prepare + script)
    system = System(host)
    try:
        yield system
    finally:
        system.run("systemctl stop nfs-vsock-server nfs-vsock nfs-server", check=False)
        system.close()
        host.shell(f"umount -l {EXPORT} /var/lib/nfs /var/lib /usr /etc; rm -rf /run/over /run/nfs")
        nfs.unload(host)
        host.unload("loopback")
