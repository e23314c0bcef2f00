# SPDX-License-Identifier: GPL-2.0
"""Speed of NFS over vsock beside other ways to share a directory with a guest."""
