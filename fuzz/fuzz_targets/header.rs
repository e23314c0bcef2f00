// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=header`.

#![no_main]

rvsock_fuzz::fuzz!(header);
