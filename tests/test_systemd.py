# SPDX-License-Identifier: GPL-2.0
"""A guest with systemd: without any configuration it listens for ssh on its vsock device, and tells the host when
it is up. Nothing here has a network."""

import base64
import concurrent.futures
import contextlib
import hashlib
import random
import time
import typing

import pytest
import rig
from peers import ssh
from rig import runs

pytestmark = pytest.mark.clients

CID = 3
MEMORY = 1024
NOTIFY_PORT = 9999
NOTIFIED = "/run/notified"

# The longest, the start of the system, takes 40 s on a quiet machine.
TIMEOUT = 300.0


class System(typing.NamedTuple):
    host: rig.Host
    guest: rig.Guest

    def ssh(self, script: str, **options) -> rig.Result:
        return self.host.run(ssh.command(CID, script), timeout=TIMEOUT * runs.patience(), **options)


@contextlib.contextmanager
def listening_for_notifications(host):
    """What a manager of virtual machines does."""
    server = host.start(["socat", "-u", f"VSOCK-LISTEN:{NOTIFY_PORT},fork", f"OPEN:{NOTIFIED},creat,append"])
    try:
        yield server
    finally:
        server.kill()


def kernel_arguments(key: str) -> list[str]:
    """What systemd is told; the two credentials are those that a manager of virtual machines hands over."""
    return [
        "systemd.unit=sockets.target",
        # The driver is there already.
        "modprobe.blacklist=vmw_vsock_virtio_transport",
        f"systemd.set_credential=vmm.notify_socket:vsock-stream:2:{NOTIFY_PORT}",
        f"systemd.set_credential_binary=ssh.authorized_keys.root:{base64.b64encode(key.encode()).decode()}",
    ]


def wait_until_ready(host, guest):
    deadline = time.monotonic() + TIMEOUT * runs.patience()
    # It is the host that is told, but the guest that may be lost meanwhile.
    while guest.run(["true"]) and host.run(["grep", "-qs", "READY=1", NOTIFIED], check=False).status != 0:
        assert time.monotonic() < deadline, describe(host, guest)
        time.sleep(0.5)


def describe(host, guest) -> str:
    """What a system is doing that does not become ready."""
    commands = (["systemctl", "list-jobs"], ["systemctl", "--failed"], ["journalctl", "-b", "-n", "40", "--no-pager"])
    parts = [guest.in_system(command, check=False).stdout for command in commands]
    for machine in (guest, host):
        parts.append(machine.run(["ss", "--vsock", "--all"], check=False).stdout)
    told = host.run(["cat", NOTIFIED], check=False).stdout
    return "\n".join(["the system is not ready; it told:", told, *parts])


@pytest.fixture(scope="module")
def system(host):
    """A guest that runs systemd; both modules are ours."""
    host.load("host", "rust")
    host.run(["rm", "-f", NOTIFIED])
    arguments = kernel_arguments(ssh.make_key(host))
    with (
        listening_for_notifications(host),
        host.guest(cid=CID, memory=MEMORY, kernel=arguments, system=True) as guest,
    ):
        guest.load("guest", "rust")
        guest.run(["chroot", rig.SYSTEM_ROOT, "ssh-keygen", "-A"])
        guest.start_system()
        wait_until_ready(host, guest)
        yield System(host, guest)


def test_systemd_listens_on_the_device(system):
    state = system.guest.in_system(["systemctl", "is-active", "sshd-vsock.socket"], check=False)
    assert state.stdout.strip() == "active"


def test_a_command_and_its_status_come_through(system):
    answer = system.ssh("cat /proc/1/comm; wc -c; exit 7", input=b"x" * 100_000, check=False)
    assert answer.stdout.split() == ["systemd", "100000"]
    assert answer.status == 7


def test_several_sessions_at_once(system):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda number: system.ssh(f"seq {number} 20000 | md5sum"), range(3)))
    for number, answer in enumerate(answers):
        assert answer.stdout == system.host.shell(f"seq {number} 20000 | md5sum").stdout


def test_what_is_copied_is_whole(system):
    data = random.Random(1).randbytes(4 << 20)
    there = system.ssh("tee /root/data | md5sum", input=data).stdout
    back = system.ssh("md5sum </root/data; cat /root/data | base64 -w 0").stdout
    assert there.split()[0] == hashlib.md5(data).hexdigest()
    assert base64.b64decode(back.splitlines()[1]) == data
