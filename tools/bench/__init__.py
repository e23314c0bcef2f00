# SPDX-License-Identifier: GPL-2.0
"""Compares the speed of implementations, C and Rust, inside the same running virtual machines.

cells.py    what is measured
lanes.py    where: machines, and how drivers are exchanged in them
load.py     runs the load program (load/) in the machines
memory.py   what sockets cost in memory
counts.py   packets, kicks, interrupts and the like, which depend on no clock
blocks.py   in which order, and what is repeated
ratio.py    from samples to a ratio with its interval
results.py  rows, and files made of them: table.py, chart.py
"""
