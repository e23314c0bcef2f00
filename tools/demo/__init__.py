# SPDX-License-Identifier: GPL-2.0
"""A guided tour: boots a host VM and a guest, and moves real data between them over AF_VSOCK.

Every line that starts with a prompt is a command that runs in the machine as it stands there; every
line marked ok is a claim that was checked. The first one that does not hold ends the demo.
"""
