// SPDX-License-Identifier: GPL-2.0

//! Credit under random schedules, with large windows and many bytes.

use crate::{
    credit::{Pair, Side},
    endpoint::Step,
    search::{finish, Model},
};
use proptest::prelude::*;
use vsock_proto::Kind;

/// Runs the schedule, then lets everybody go on until nothing moves any more.
fn run(mut pair: Pair, schedule: Vec<(Side, Step)>) {
    for step in schedule {
        pair.perform(step);
        pair.check();
    }
    finish(&mut pair);
}

/// Window sizes from one byte to more than there is to send.
fn window() -> impl Strategy<Value = u32> {
    prop_oneof![1..16u32, 64..8192u32, Just(1 << 20), Just(u32::MAX)]
}

fn schedule(step: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<(Side, Step)>> {
    proptest::collection::vec((prop_oneof![Just(Side::A), Just(Side::B)], step), 0..300)
}

/// Steps that leave the sizes alone.
fn transfer() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..9000usize).prop_map(Step::Write),
        3 => (1..9000usize).prop_map(Step::Read),
        6 => Just(Step::Deliver),
        1 => Just(Step::AskForCredit),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => transfer(),
        1 => window().prop_map(Step::Resize),
        1 => window().prop_map(Step::SetLowWater),
    ]
}

proptest! {
    #[test]
    fn a_stream_arrives_whole_whatever_the_schedule(
        windows in (window(), window()),
        lengths in (0..20_000usize, 0..20_000usize),
        schedule in schedule(any_step()),
    ) {
        // A message of no bytes cannot be sent.
        let unsent = [lengths.0, lengths.1].map(|len| Vec::from_iter((len > 0).then_some(len)));
        run(Pair::new(Kind::Stream, [windows.0, windows.1], unsent), schedule);
    }

    #[test]
    fn messages_up_to_the_window_arrive_whole_whatever_the_schedule(
        window in 64..8192u32,
        fractions in proptest::collection::vec(1..=64usize, 0..20),
        schedule in schedule(transfer()),
    ) {
        let messages = fractions.iter().map(|part| window as usize * part / 64).collect();
        run(Pair::new(Kind::Seqpacket, [window; 2], [messages, Vec::new()]), schedule);
    }
}

#[test]
fn a_message_as_large_as_the_window_gets_through_behind_a_small_one() {
    let unsent = [vec![1000, 262_144], Vec::new()];
    run(Pair::new(Kind::Seqpacket, [262_144; 2], unsent), Vec::new());
}
