// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=record`.

#![no_main]

rvsock_fuzz::fuzz!(record);
