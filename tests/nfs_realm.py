# SPDX-License-Identifier: GPL-2.0
"""A Kerberos realm for the tests of NFS: its key distribution centre and its server are the host VM."""

import time
from collections.abc import Callable

import pytest
from rig import Host, Result

REALM = "RVSOCK.TEST"
DOMAIN = "rvsock.test"
# What the address that stands for the server is called, and so the server's principal.
NAME = f"host.{DOMAIN}"
SERVER = f"nfs/{NAME}"
SERVER_KEYS = "/etc/krb5.keytab"

# A refusal takes this long at most, emulated.
SECONDS = 30.0

# Users that Debian has.
OWNER, OTHER, WITHOUT = "daemon", "games", "lp"

# Without it rpc.gssd now and then offers DES only: it looks for the kernel's new pipe, then a mount makes that and the
# old one, and it finds the old one (gssd_scan_clnt() in nfs-utils).
ENCRYPTION = ",".join(f"aes{cipher}" for cipher in (
    "256-cts-hmac-sha384-192", "128-cts-hmac-sha256-128", "256-cts-hmac-sha1-96", "128-cts-hmac-sha1-96"
))

# On each machine of the realm. It is reached by the name of its server, which leads to a relay.
CONFIGURATION = f"""
cat > /etc/krb5.conf <<END
[libdefaults]
default_realm = {REALM}
dns_lookup_kdc = false
dns_lookup_realm = false
rdns = false
[realms]
{REALM} = {{
    kdc = {NAME}
}}
[domain_realm]
.{DOMAIN} = {REALM}
END
printf '[General]\\nDomain = {DOMAIN}\\nLocal-Realms = {REALM}\\n' > /etc/idmapd.conf
printf '[gssd]\\nallowed-enctypes={ENCRYPTION}\\n' >> /etc/nfs.conf
"""

# `new_key PRINCIPAL FILE` adds a key that nobody knows.
NEW_KEY = """
new_key() { kadmin.local -q "addprinc -randkey $1"; kadmin.local -q "ktadd -k $2 $1"; }
"""

# In the host VM, with an /etc that can be written to. Only the relays lead from NAME to what listens there.
SET_UP = f"""
{CONFIGURATION}
rm -rf /run/krb5kdc
mkdir /run/krb5kdc
cat > /etc/krb5kdc/kdc.conf <<END
[realms]
{REALM} = {{
    database_name = /run/krb5kdc/principal
    key_stash_file = /etc/krb5kdc/stash
    kdc_listen = 127.0.0.1:88
    kdc_tcp_listen = 127.0.0.1:88
}}
END
kdb5_util create -s -r {REALM} -P secret
{NEW_KEY}
new_key {SERVER} {SERVER_KEYS}
"""


def run_as(user: str, script: str) -> str:
    """A command that runs a script as a user."""
    # The shell of a guest has one of its own that can do less.
    return f"/usr/bin/setpriv --reuid {user} --regid $(id -g {user}) --clear-groups sh -euc '{script}'"


def require_kerberos(host: Host) -> None:
    """Skips what a kernel without it cannot do."""
    if host.run(["modprobe", "-n", "rpcsec_gss_krb5"], check=False).status:
        pytest.skip("this kernel has no rpcsec_gss_krb5")


def refusal(mount: Callable[..., Result], options: str) -> str:
    """Asserts that a mount is refused, in time; what is said."""
    started = time.monotonic()
    result = mount(options, check=False)
    assert result.status == 32, result
    assert time.monotonic() - started < SECONDS
    return result.stderr
