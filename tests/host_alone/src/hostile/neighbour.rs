// SPDX-License-Identifier: GPL-2.0
//! The guest that behaves well.

use anyhow::{ensure, Context};
use rvsock_selftests::socket::{Kind, Socket};

use super::NEIGHBOUR;
use crate::guest::{Connection, Guest, Options};
use crate::memory::PAGE;

/// The guest that behaves well.
pub(super) struct Neighbour {
    guest: Guest,
    pub(super) socket: Socket,
    connection: Connection,
    /// Memory that nobody may write to.
    canary: u64,
}

const CANARY: &[u8] = &[0x5a; 1 << 20];

impl Neighbour {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut guest = Guest::start(&Options {
            cid: NEIGHBOUR,
            ..Options::default()
        })?;
        let (socket, connection) = guest.accept_from(Kind::Stream)?;
        let canary = guest.memory.allocate(CANARY.len() as u64, PAGE);
        guest.memory.write(canary, CANARY);
        Ok(Self {
            guest,
            socket,
            connection,
            canary,
        })
    }

    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        self.guest
            .converse(&self.socket, &mut self.connection)
            .context("the connection of the guest that behaves well")
    }

    pub(super) fn look_closely(&mut self) -> anyhow::Result<()> {
        self.look()?;
        self.guest.exercise()?;
        let canary = self.guest.memory.read(self.canary, CANARY.len());
        ensure!(
            canary == CANARY,
            "the memory of the other guest has changed"
        );
        ensure!(
            !self.guest.rx.take_error() && !self.guest.tx.take_error(),
            "the host reports errors of the guest that behaves well"
        );
        Ok(())
    }
}
