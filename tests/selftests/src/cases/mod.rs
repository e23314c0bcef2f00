// SPDX-License-Identifier: GPL-2.0
//! The cases, by what they are about.

mod credit;
mod ending;
mod monitor;
mod namespace;
mod polling;
mod race;
mod seqpacket;
mod shortage;
mod sockmap;
mod source;
mod splice;
mod stall;
mod trace;
mod unload;
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
    stall::CASES,
    zerocopy::CASES,
    splice::CASES,
    uring::CASES,
    shortage::CASES,
    monitor::CASES,
    trace::CASES,
    namespace::CASES,
    sockmap::CASES,
    unload::CASES,
];
