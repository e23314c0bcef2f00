// SPDX-License-Identifier: GPL-2.0

//! Connections in all orders of what two applications, the link and the clock do; and in random
//! orders, with more of it.

use crate::{
    life::{Budget, Life},
    search::{finish, Model, Seen},
};
use proptest::prelude::*;
use std::time::Instant;

const SMALL: Budget = Budget {
    connects: 1,
    interrupts: 1,
    writes: [1, 1],
    shutdowns: [1, 1],
};

fn explore(name: &str, budget: Budget, clock: bool) {
    let (started, mut seen) = (Instant::now(), Seen::default());
    for full in [false, true] {
        seen.explore(Life::new(budget.clone(), full, clock));
    }
    seen.report(name, started);
}

#[test]
fn both_ends_reach_closed_without_a_clock_unless_data_was_left() {
    explore("life, no clock", SMALL, false);
}

#[test]
fn both_ends_reach_closed_with_timers_at_any_time() {
    let budget = Budget {
        writes: [1, 0],
        ..SMALL
    };
    explore("life, timers at any time", budget, true);
}

#[test]
fn both_ends_reach_closed_when_directions_are_shut_one_by_one() {
    let budget = Budget {
        interrupts: 0,
        writes: [0, 1],
        shutdowns: [2, 1],
        ..SMALL
    };
    explore("life, half shutdowns", budget, false);
}

#[test]
fn connecting_again_meets_what_the_first_try_left() {
    let budget = Budget {
        connects: 2,
        writes: [0, 0],
        shutdowns: [1, 0],
        ..SMALL
    };
    explore("life, two connects", budget, true);
}

proptest! {
    #[test]
    fn both_ends_reach_closed_whatever_the_schedule(
        schedule in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
        full: bool,
        clock: bool,
    ) {
        let budget = Budget { connects: 3, interrupts: 2, writes: [3, 3], shutdowns: [3, 3] };
        let mut life = Life::new(budget, full, clock);
        for index in schedule {
            let possible: Vec<_> = life
                .steps()
                .into_iter()
                .filter(|step| life.clone().perform(*step))
                .collect();
            if possible.is_empty() {
                break;
            }
            life.perform(*index.get(&possible));
            life.check();
        }
        finish(&mut life);
    }
}
