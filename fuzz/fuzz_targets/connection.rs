// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=connection`.

#![no_main]

rvsock_fuzz::fuzz!(connection);
