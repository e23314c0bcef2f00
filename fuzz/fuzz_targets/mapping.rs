// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=mapping`.

#![no_main]

rvsock_fuzz::fuzz!(mapping);
