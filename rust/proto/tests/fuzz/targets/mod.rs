// SPDX-License-Identifier: GPL-2.0

//! Functions that take any bytes and compare this crate with a second, simpler opinion.
//!
//! They panic where the two differ. `make fuzz` looks for such bytes with libFuzzer (`fuzz/`),
//! `cargo test` tries the seeds and some random ones.

pub mod address;
pub mod bytes;
pub mod cid_list;
pub mod connection;
pub mod credit;
pub mod header;
pub mod mapping;
pub mod record;

/// One of the functions.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that lead into the interesting places.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[
            $(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds },)*
        ];
    };
}

targets! { address cid_list connection credit header mapping record }
