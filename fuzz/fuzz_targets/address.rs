// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=address`.

#![no_main]

rvsock_fuzz::fuzz!(address);
