// SPDX-License-Identifier: GPL-2.0
//! The cases, by what they are about.

mod command;
mod connection;
mod credit;
mod dirty;
mod fairness;
mod lifecycle;
mod memory;
mod queue;
mod restart;
mod source;
mod translation;

use rvsock_selftests::case::Case;

pub const ALL: &[&[Case]] = &[
    command::CASES,
    connection::CASES,
    credit::CASES,
    queue::CASES,
    translation::CASES,
    lifecycle::CASES,
    restart::CASES,
    source::CASES,
    dirty::CASES,
    fairness::CASES,
    memory::CASES,
];
