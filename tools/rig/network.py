# SPDX-License-Identifier: GPL-2.0
"""A network between the host VM and one guest: virtio-net, with the host's kernel as its back end (vhost-net)."""

from .guest import Guest
from .host import Host

HOST_ADDRESS, GUEST_ADDRESS = "10.9.0.1", "10.9.0.2"

# What the guest needs.
DEVICES = (
    *("-netdev", "tap,id=network,ifname=network0,script=no,downscript=no,vhost=on"),
    *("-device", "virtio-net-pci,netdev=network,romfile="),
)
MODULES = ("virtio_net",)


def prepare(host: Host) -> None:
    """The host's end, before the guest is started."""
    host.shell(f"""
    modprobe -a tun vhost_net
    ip tuntap add network0 mode tap
    ip address add {HOST_ADDRESS}/24 dev network0
    ip link set network0 up
    """)


def join(guest: Guest) -> None:
    """The guest's end."""
    guest.shell(f"modprobe virtio_net; ip link set eth0 up; ip address add {GUEST_ADDRESS}/24 dev eth0")


def remove(host: Host) -> None:
    """Once the guest is gone."""
    host.shell("ip link delete network0")
