# SPDX-License-Identifier: GPL-2.0
"""NFS over vsock: a directory of the host mounted in guests."""

import contextlib
import re
import statistics
import time

import pytest
import rig
from rig import nfs, runs
from rig.nfs import EXPORT, MOUNT

pytestmark = pytest.mark.nfs

# The C transports are what is known to be good: what fails there is not the transports' fault.
IMPLEMENTATIONS = ["c", "rust"]
CIDS = (3, 4)

# A failure that is said at once. A mount that is refused by closing the connection takes 20 s.
AT_ONCE = 1.0
# Tries to be refused, of which the one in the middle counts: other machines on the same CPUs may hold up one of them.
REFUSALS = 3


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request, host):
    """The transport of the host and its guests."""
    host.unload("loopback")
    host.load("host", request.param)
    return request.param


@pytest.fixture(scope="module")
def server(implementation, host):
    nfs.load(host)
    server = nfs.Server(host)
    server.prepare()
    server.start()
    server.export(*CIDS)
    server.allow(*CIDS)
    yield server
    server.close()
    nfs.unload(host)


@pytest.fixture(scope="module")
def guests(server, host, implementation):
    """Two guests with our module."""
    with contextlib.ExitStack() as stack:
        machines = []
        for cid in CIDS:
            guest = stack.enter_context(
                host.guest(cid=cid, memory=512, programs=nfs.GUEST_PROGRAMS, modules=nfs.GUEST_MODULES)
            )
            guest.load("guest", implementation)
            guest.run(["modprobe", "nfsv4"])
            nfs.load(guest)
            machines.append(nfs.Client(guest))
        yield machines
        for client in machines:
            nfs.unload(client.machine)


@pytest.fixture
def guest(guests):
    return guests[0]


@pytest.fixture
def ready(server, host):
    """The server as every test finds it."""
    server.export(*CIDS)
    server.allow(*CIDS)
    host.shell(f"rm -rf {EXPORT}/*; echo hello > {EXPORT}/file")
    return server


def test_a_file_of_the_host_is_read_in_the_guest(ready, guest):
    with guest.mounted():
        assert guest.machine.shell(f"cat {MOUNT}/file").stdout == "hello\n"


def test_a_file_of_the_guest_is_read_on_the_host(ready, guest, host):
    with guest.mounted():
        guest.machine.shell(f"echo from the guest > {MOUNT}/other; sync")
        assert host.shell(f"cat {EXPORT}/other").stdout == "from the guest\n"


def test_callbacks_reach_the_guest(ready, guest):
    with guest.mounted():
        guest.machine.run(["cat", f"{MOUNT}/file"])
        assert "callback state: UP" in ready.clients()


# A file is this block, over and over: making and summing up more takes longer than sending it.
BLOCK_MIB = 32


@pytest.mark.parametrize("options, mib", [("", 64), ("nconnect=4", 256)])
def test_many_mib_arrive_as_they_were_sent(ready, guest, host, options, mib):
    size = BLOCK_MIB << 20
    script = f"dd if=/dev/urandom of=/tmp/block bs=1M count={BLOCK_MIB} 2>/dev/null"
    guest.machine.shell(script, timeout=nfs.BULK_TIMEOUT)
    with guest.mounted(options):
        script = f"for n in $(seq {mib // BLOCK_MIB}); do cat /tmp/block; done > {MOUNT}/big"
        guest.machine.shell(script, timeout=nfs.BULK_TIMEOUT)
        guest.forget()
        if options:
            lines = guest.machine.shell("grep -c 'xprt:' /proc/self/mountstats").stdout
            assert lines.strip() == "4"
        assert int(host.run(["stat", "-c", "%s", f"{EXPORT}/big"]).stdout) == mib << 20
        # The first block is the one that was sent, and each equals the one before it.
        host.shell(f"head -c {size} {EXPORT}/big > /run/nfs/block")
        assert nfs.checksum(host, "/run/nfs/block") == nfs.checksum(guest.machine, "/tmp/block")
        host.shell(f"cmp -n {(mib << 20) - size} -i 0:{size} {EXPORT}/big {EXPORT}/big", timeout=nfs.BULK_TIMEOUT)
        script = f"""
        for n in $(seq 0 {mib // BLOCK_MIB - 1}); do
            dd if={MOUNT}/big bs=1M skip=$((n * {BLOCK_MIB})) count={BLOCK_MIB} 2>/dev/null | cmp - /tmp/block
        done
        """
        guest.machine.shell(script, timeout=nfs.BULK_TIMEOUT)
    host.run(["rm", f"{EXPORT}/big", "/run/nfs/block"])
    guest.machine.run(["rm", "/tmp/block"])


def test_parallel_writers_do_not_mix(ready, guest, host):
    writers, mib = 6, 8
    with guest.mounted("nconnect=2"):
        script = f"""
        for n in $(seq {writers}); do
            (dd if=/dev/urandom bs=1M count={mib} 2>/dev/null | tee {MOUNT}/part$n > /tmp/part$n) &
        done
        wait
        """
        guest.machine.shell(script, timeout=nfs.BULK_TIMEOUT)
        guest.forget()
        for n in range(1, writers + 1):
            guest.machine.run(["cmp", f"{MOUNT}/part{n}", f"/tmp/part{n}"], timeout=nfs.BULK_TIMEOUT)
            assert nfs.checksum(host, f"{EXPORT}/part{n}") == nfs.checksum(guest.machine, f"/tmp/part{n}")
        guest.machine.shell("rm /tmp/part*")


def test_a_lock_of_one_guest_holds_off_the_other(ready, guests):
    first, second = guests
    with first.mounted(), second.mounted():
        first.machine.shell(f"touch {MOUNT}/lock")
        holder = first.machine.start(["flock", f"{MOUNT}/lock", "sh", "-c", "echo held; cat"])
        holder.wait_for("held", 60)
        try_it = ["flock", "-n", f"{MOUNT}/lock", "true"]
        assert second.machine.run(try_it, check=False).status != 0
        holder.close_input()
        holder.wait(60)
        # It knows after a round trip, or asks again after a while.
        second.machine.run(["flock", "-w", "30", f"{MOUNT}/lock", "true"])


def test_a_write_on_the_host_recalls_the_guest_s_copy(ready, guest, host):
    with guest.mounted():
        reader = guest.machine.start(["sh", "-c", f"exec 3< {MOUNT}/file; cat <&3; echo open; cat"])
        reader.wait_for("open", 60)
        before = recalls(guest.machine)
        host.shell(f"echo changed > {EXPORT}/file", timeout=30)
        assert recalls(guest.machine) > before
        reader.close_input()
        reader.wait(60)
        assert guest.machine.run(["cat", f"{MOUNT}/file"]).stdout == "changed\n"


def recalls(machine: rig.Guest) -> int:
    """Delegations that the client has given back."""
    text = machine.shell("cat /proc/self/mountstats").stdout
    return int(re.search(r"^\s*DELEGRETURN: (\d+)", text, re.MULTILINE).group(1))


def test_a_guest_that_is_not_allowed_is_told_at_once(ready, guest, host):
    ready.allow(CIDS[1])
    # Past the helper's own question, so that the kernel's mount is what is refused.
    options = "vers=4.2,proto=rdma6,port=2049,addr=fdf5:7c6b:3a10::2,clientaddr=::"
    command = ["mount", "-i", "-t", "nfs4", "-o", options, "[fdf5:7c6b:3a10::2]:/", MOUNT]
    times = []
    for _ in range(REFUSALS):
        started = time.monotonic()
        result = guest.machine.run(command, check=False)
        times.append(time.monotonic() - started)
        assert result.status != 0
    assert statistics.median(times) < AT_ONCE * runs.patience()
    assert f"CID {CIDS[0]} calls, and is not allowed to" in host.kernel_log()


def test_nobody_is_allowed_by_default(ready, guest, host):
    ready.allow()
    assert host.run(["cat", nfs.PARAMETER]).stdout == "\n"
    result = guest.mount(check=False)
    assert result.status == 32
    assert "does not serve this machine" in result.stderr


def test_a_guest_that_loses_its_permission_loses_access(ready, guest):
    with guest.mounted("soft,timeo=50,retrans=1,noac"):
        guest.machine.run(["ls", MOUNT])
        ready.allow(CIDS[1])
        assert guest.machine.run(["ls", MOUNT], check=False).status != 0
        ready.allow(*CIDS)
        guest.machine.run(["ls", MOUNT])


def test_an_export_is_for_the_guests_it_names(ready, guests):
    ready.export(CIDS[1])
    first, second = guests
    result = first.mount(check=False)
    assert result.status == 32
    assert "does not export" in result.stderr or "no directory" in result.stderr
    with second.mounted():
        assert second.machine.run(["cat", f"{MOUNT}/file"]).stdout == "hello\n"


@pytest.mark.parametrize(
    "source, says",
    [
        ("2:/", "nobody listens"),
        ("77:/", "does not answer|nobody listens"),
        ("server:/", "not of the form"),
    ],
)
def test_a_mount_that_cannot_be_says_why_in_seconds(ready, guest, source, says):
    started = time.monotonic()
    result = guest.mount("port=2050", source=source, check=False)
    assert result.status != 0
    assert re.search(says, result.stderr), result.stderr
    assert time.monotonic() - started < 10


def test_stock_tools_remount(ready, guest):
    with guest.mounted():
        guest.machine.run(["mount", "-o", "remount,ro", MOUNT])
        assert guest.machine.shell(f"echo x > {MOUNT}/new", check=False).status != 0
        guest.machine.run(["mount", "-o", "remount,rw", MOUNT])
        guest.machine.shell(f"echo x > {MOUNT}/new")


def test_clients_wait_for_a_server_that_restarts(ready, guest, host):
    """Files that are written meanwhile are whole, and a lock is still held."""
    with guest.mounted():
        guest.machine.shell(f"touch {MOUNT}/lock")
        holder = guest.machine.start(["flock", f"{MOUNT}/lock", "sh", "-c", "echo held; cat"])
        holder.wait_for("held", 60)
        script = f"dd if=/dev/urandom bs=64k count=256 2>/dev/null | tee {MOUNT}/big | sha256sum"
        writer = guest.machine.start(["sh", "-euc", script])
        for _ in range(2):
            time.sleep(1)
            ready.stop()
            time.sleep(1)
            ready.start()
        sent = writer.wait(120 + 3 * nfs.LEASE * runs.patience()).stdout.split()[0]
        guest.machine.run(["sync"], timeout=120)
        assert nfs.checksum(host, f"{EXPORT}/big") == sent
        # The server has the lock again, of its client.
        assert not nfs.can_lock(host, f"{EXPORT}/lock")
        holder.close_input()
        holder.wait(60)


def test_a_guest_that_is_killed_leaves_nothing(ready, host, implementation):
    options = {"memory": 512, "programs": nfs.GUEST_PROGRAMS, "modules": nfs.GUEST_MODULES}
    ready.export(*CIDS, 5)
    ready.allow(*CIDS, 5)
    for _ in range(2):
        with host.guest(cid=5, **options) as machine:
            machine.load("guest", implementation)
            machine.run(["modprobe", "nfsv4"])
            nfs.load(machine)
            client = nfs.Client(machine)
            client.mount()
            machine.start(["sh", "-c", f"while :; do dd if=/dev/zero of={MOUNT}/x bs=1M count=8; done"])
            holder = machine.start(["flock", f"{MOUNT}/file", "sh", "-c", "echo held; cat"])
            holder.wait_for("held", 60)
            assert not nfs.can_lock(host, f"{EXPORT}/file")
    # Its lease runs out, and with it the lock.
    assert nfs.can_lock(host, f"{EXPORT}/file", 6 * nfs.LEASE * runs.patience())


def test_the_modules_can_be_unloaded(ready, guest, host):
    """While there is a mount, or a server, they cannot; then they can."""
    with guest.mounted():
        assert guest.machine.run(["rmmod", nfs.MODULE], check=False).status != 0
        assert host.run(["rmmod", nfs.MODULE], check=False).status != 0
    nfs.unload(guest.machine)
    nfs.load(guest.machine)
    ready.stop()
    nfs.unload(host)
    nfs.load(host)
    ready.start()
