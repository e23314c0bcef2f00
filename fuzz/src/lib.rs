// SPDX-License-Identifier: GPL-2.0

//! What the fuzz targets share: the functions themselves, which `cargo test` runs as well, and
//! their seeds.

#[path = "../../rust/proto/tests/fuzz/targets/mod.rs"]
pub mod targets;

#[doc(hidden)]
pub use libfuzzer_sys;

/// Makes a fuzz target of the function with this name.
#[macro_export]
macro_rules! fuzz {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds(&$crate::targets::$name::seeds()),
            |data: &[u8]| $crate::targets::$name::run(data)
        );
    };
}

/// Puts the seeds where `RVSOCK_SEEDS` says; libFuzzer reads them next.
pub fn write_seeds(seeds: &[Vec<u8>]) {
    let Some(directory) = std::env::var_os("RVSOCK_SEEDS") else {
        return;
    };
    for (number, seed) in seeds.iter().enumerate() {
        let path = std::path::Path::new(&directory).join(format!("seed-{number}"));
        std::fs::write(path, seed).expect("a directory for seeds");
    }
}
