// SPDX-License-Identifier: GPL-2.0

//! Models of the protocol: two sides, lossless ordered links between them, and everything that can
//! happen in any order. The random form takes long ways through large sizes, the exhaustive form
//! all ways through small ones; both run the same model.

mod credit;
mod credit_exhaustive;
mod credit_random;
mod endpoint;
mod life;
mod life_host;
mod life_tests;
mod search;
