# SPDX-License-Identifier: GPL-2.0
"""ssh in the host VM, to a guest by its CID, as systemd has configured it (systemd-ssh-proxy)."""

from rig import Host

CONFIG = "/usr/lib/systemd/ssh_config.d/20-systemd-ssh-proxy.conf"
KEY = "/run/client/key"


def make_key(host: Host) -> str:
    """A key for the commands; what lets it in."""
    directory = KEY.rpartition("/")[0]
    host.shell(f"rm -rf {directory}; mkdir -m 700 {directory}; ssh-keygen -q -t ed25519 -N '' -f {KEY}")
    return host.run(["cat", f"{KEY}.pub"]).stdout


def command(cid: int, script: str) -> list[str]:
    """Runs a shell script in a guest, as root."""
    return ["ssh", "-F", CONFIG, "-i", KEY, "-o", "BatchMode=yes", f"root@vsock/{cid}", script]
