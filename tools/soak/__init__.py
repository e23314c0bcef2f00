# SPDX-License-Identifier: GPL-2.0
"""Hours of mixed load, restarts and faults on all three modules, and what that does to memory and kernel logs.

plan.py       what is done in which order: it follows from the seed
traffic.py    runs the load: pairs of programs, one after the other, in several places at once
gate.py       who passes while a place is disturbed, and who was disturbed
machines.py   the host and its guests, which may have to be booted again
disturb.py    restarts and faults
memory.py     what the kernels hold, and whether that has grown
report.py     the table, the verdict, the file
session.py    a whole run
"""
