# SPDX-License-Identifier: GPL-2.0
"""Step 3: ssh into a guest that has no network."""

from rig import runs

from .stage import CID_GUEST, Stage

TITLE = "ssh into the guest (samples/ssh)"

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
SERVER_SCRIPT = "samples/ssh/sshd-vsock"

SERVER_CONFIG = """\
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
"""

# ssh takes the home directory from /etc/passwd, and root's is read-only in the host VM.
CLIENT_CONFIG = """\
Include {checkout}/samples/ssh/vsock.conf
Host *
	IdentityFile {home}/.ssh/id_ed25519
	UserKnownHostsFile {home}/.ssh/known_hosts
	StrictHostKeyChecking yes
"""

QUESTIONS = ("whoami", "hostname", "uname -a")


def show(stage: Stage) -> None:
    exchange_keys(stage)
    stage.guest.program(runs.CHECKOUT / SERVER_SCRIPT)
    with stage.background("guest", "sshd-vsock -e", "") as server:
        stage.guest.shell("until ss --vsock --listening --no-header | grep -q ':22 '; do sleep 0.1; done")
        answer = stage.run("host", f"ssh -F ~/.ssh/config guest '{'; '.join(QUESTIONS)}'")
        expected = [stage.guest.shell(question).stdout.strip() for question in QUESTIONS]
        stage.screen.note("meanwhile in the guest:")
        stage.screen.output(server.stderr)
    stage.require(
        answer.splitlines() == expected, f"the commands ran in {stage.guest.name} (CID {CID_GUEST}), as root"
    )
    stage.require("Accepted publickey for root" in server.stderr, "with the key that was made for it")


def exchange_keys(stage: Stage) -> None:
    """New keys on both sides; the public ones go across as an image builder would put them there."""
    home = stage.host.shell("echo $HOME").stdout.strip()
    stage.guest.shell("mkdir -p /run/sshd /etc/ssh")
    stage.host.shell("mkdir -p -m 700 ~/.ssh")
    stage.run("guest", f"ssh-keygen -q -t ed25519 -N '' -f {HOST_KEY}")
    stage.run("host", "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
    user_key = stage.host.shell("cat ~/.ssh/id_ed25519.pub").stdout
    host_key = stage.guest.shell(f"cat {HOST_KEY}.pub").stdout
    stage.prepare("guest", "/root/.ssh/authorized_keys", user_key, 0o600)
    stage.prepare("guest", "/etc/ssh/sshd_config", SERVER_CONFIG)
    stage.prepare("host", f"{home}/.ssh/known_hosts", f"guest {host_key}")
    stage.prepare("host", f"{home}/.ssh/config", CLIENT_CONFIG.format(checkout=runs.CHECKOUT, home=home))
    stage.run("host", "cat samples/ssh/vsock.conf")
