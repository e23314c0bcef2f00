// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=credit`.

#![no_main]

rvsock_fuzz::fuzz!(credit);
