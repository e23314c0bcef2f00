# SPDX-License-Identifier: GPL-2.0
"""What can be proven of the project in seconds, without a virtual machine."""
