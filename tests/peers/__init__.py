# SPDX-License-Identifier: GPL-2.0
"""Other people's suites and clients, built and run as they are."""
