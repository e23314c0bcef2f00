// SPDX-License-Identifier: GPL-2.0
//! What programs of cases share: cases and their runner, sockets, and what goes wrong on purpose.

pub mod case;
pub mod errno;
pub mod fault;
pub mod namespace;
pub mod pattern;
pub mod relay;
pub mod runner;
pub mod shortage;
pub mod socket;
