// SPDX-License-Identifier: GPL-2.0
//! The cases, by what they are about.

mod credit;
mod ending;
mod polling;
mod race;
mod seqpacket;
mod source;
mod uring;
mod zerocopy;

use crate::case::Case;

pub const ALL: &[&[Case]] = &[
    source::CASES,
    credit::CASES,
    polling::CASES,
    seqpacket::CASES,
    ending::CASES,
    race::CASES,
    zerocopy::CASES,
    uring::CASES,
];
