// SPDX-License-Identifier: GPL-2.0

//! Credit in all orders of writing, reading, delivering and resizing, with windows of a few bytes.

use crate::{
    credit::{
        Pair,
        Side::{A, B},
    },
    endpoint::Step::{AskForCredit, Resize, SetLowWater},
    search::Seen,
};
use std::time::Instant;
use vsock_proto::Kind;

const WINDOWS: [u32; 3] = [1, 2, 3];
/// One byte, or all there is.
const SIZES: [usize; 2] = [1, 4];

fn all_windows() -> impl Iterator<Item = [u32; 2]> {
    WINDOWS.into_iter().flat_map(|a| WINDOWS.map(|b| [a, b]))
}

#[test]
fn a_stream_never_stops_and_never_overruns_in_any_order() {
    let (started, mut seen) = (Instant::now(), Seen::default());
    for windows in all_windows() {
        let events = [(B, SetLowWater(2)), (A, AskForCredit)];
        let pair = Pair::new(Kind::Stream, windows, [vec![4], vec![2]]);
        seen.explore(pair.with(&SIZES, &events));
    }
    seen.report("stream", started);
}

#[test]
fn a_stream_survives_windows_that_change_in_any_order() {
    let (started, mut seen) = (Instant::now(), Seen::default());
    for windows in all_windows() {
        for (sender, receiver) in [(1, 1), (3, 1), (1, 3), (3, 3)] {
            let events = [
                (A, Resize(sender)),
                (B, Resize(receiver)),
                (B, SetLowWater(2)),
            ];
            let pair = Pair::new(Kind::Stream, windows, [vec![4], Vec::new()]);
            seen.explore(pair.with(&SIZES, &events));
        }
    }
    seen.report("stream, windows change", started);
}

#[test]
fn messages_never_stop_and_never_overrun_in_any_order() {
    let (started, mut seen) = (Instant::now(), Seen::default());
    for window in WINDOWS {
        let longest = window as usize;
        for messages in [vec![1, longest], vec![longest, 1], vec![longest, longest]] {
            let events = [(B, SetLowWater(2)), (B, AskForCredit)];
            let pair = Pair::new(Kind::Seqpacket, [window; 2], [messages, vec![longest]]);
            seen.explore(pair.with(&SIZES, &events));
        }
    }
    seen.report("messages", started);
}
