// SPDX-License-Identifier: GPL-2.0

//! The short form of `make fuzz`: the same functions on their seeds, and on random changes of them.

mod targets;

use proptest::prelude::*;
use targets::{Target, TARGETS};

#[test]
fn seeds_pass() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for seed in seeds {
            (target.run)(&seed);
        }
    }
}

/// A seed with some bytes replaced and some appended.
fn changed(
    seeds: &[Vec<u8>],
    which: usize,
    changes: &[(prop::sample::Index, u8)],
    more: &[u8],
) -> Vec<u8> {
    let mut data = seeds[which % seeds.len()].clone();
    data.extend(more);
    for (at, byte) in changes {
        if let len @ 1.. = data.len() {
            data[at.index(len)] = *byte;
        }
    }
    data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_seeds_pass(
        which: usize,
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6),
        more in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        for Target { seeds, run, .. } in TARGETS {
            run(&changed(&seeds(), which, &changes, &more));
        }
    }

    #[test]
    fn noise_passes(data in prop::collection::vec(any::<u8>(), 0..200)) {
        for target in TARGETS {
            (target.run)(&data);
        }
    }
}
