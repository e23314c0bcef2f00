// SPDX-License-Identifier: GPL-2.0

//! `make fuzz TARGET=cid_list`.

#![no_main]

rvsock_fuzz::fuzz!(cid_list);
