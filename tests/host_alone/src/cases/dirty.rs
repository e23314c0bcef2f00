// SPDX-License-Identifier: GPL-2.0
//! The log of dirty pages, without which a guest that migrates loses what arrives meanwhile.

use anyhow::ensure;
use rvsock_selftests::case::Setup;
use rvsock_selftests::cases;
use rvsock_selftests::socket::Kind;

use super::translation::behind_iommu;
use crate::device::{feature, RX};
use crate::guest::{Guest, Options};
use crate::header;
use crate::memory::{BASE, PAGE};
use crate::ring::Piece;

cases!("dirty":
    pages_that_are_written_are_logged
        => "only writes to the rings are logged",
    pages_behind_an_iommu_are_logged
        => "only writes to the rings are logged",
    logging_can_be_turned_off,
);

struct Log(Vec<u8>);

impl Log {
    fn new(guest: &Guest) -> Self {
        Self(vec![
            0;
            ((BASE + guest.memory.size()) / PAGE / 8 + 8) as usize
        ])
    }

    /// Whether the page of `address` is dirty.
    fn has(&self, address: u64) -> bool {
        let page = address / PAGE;
        // SAFETY: A byte of a vector, which the kernel may be writing.
        let byte = unsafe { std::ptr::read_volatile(&self.0[(page / 8) as usize]) };
        (byte >> (page % 8)) & 1 != 0
    }
}

/// An IOTLB is forgotten with the features it came with.
fn set_features(guest: &Guest, features: u64) -> anyhow::Result<()> {
    guest.device.set_features(features)?;
    guest.fill_iotlb()
}

/// Pages of a buffer, which the bytes sent through it fill up to the third.
const PAGES: u64 = 5;
const LEN: usize = 9000;

fn logged(options: &Options) -> anyhow::Result<()> {
    let mut guest = Guest::prepare(options)?;
    guest.reposts = false;
    guest.post(1)?;
    guest.device.set_cid(options.cid.into())?;
    guest.device.set_running(1)?;
    // As QEMU does it: in the middle of everything.
    let log = Log::new(&guest);
    guest.device.set_log(&log.0)?;
    let mut addresses = guest.addresses(RX, &guest.rx);
    addresses.flags = 1;
    addresses.log_guest_addr = guest.rx.used;
    guest.device.set_queue_addresses(&addresses)?;
    set_features(&guest, options.features | feature::LOG_ALL)?;

    let (socket, _connection) = guest.connect_pair(Kind::Stream)?;
    let buffers = [(); 2].map(|()| guest.memory.allocate(PAGES * PAGE, PAGE));
    for buffer in buffers {
        let piece = Piece {
            address: buffer,
            len: (PAGES * PAGE) as u32,
            writable: true,
        };
        ensure!(guest.rx.add(&[piece]).is_some());
    }
    guest.rx.publish()?;
    socket.send_all(&[1; LEN])?;
    ensure!(guest.rx.wait_used(rvsock_selftests::case::PATIENCE)?);
    let written = (header::LEN + LEN) as u32;
    ensure!(guest.rx.take_used().is_some_and(|(_, len)| len == written));

    for page in 0..u64::from(written).div_ceil(PAGE) {
        ensure!(log.has(buffers[0] + page * PAGE), "page {page} is missing");
    }
    ensure!(!log.has(buffers[1]), "a page that nobody has written");
    ensure!(!log.has(guest.tx.descriptors), "a page that is only read");
    ensure!(log.has(guest.rx.used), "the ring is missing");
    drop((guest, socket));
    Ok(())
}

fn pages_that_are_written_are_logged(_: &Setup) -> anyhow::Result<()> {
    logged(&Options::default())
}

fn pages_behind_an_iommu_are_logged(_: &Setup) -> anyhow::Result<()> {
    logged(&behind_iommu())
}

fn logging_can_be_turned_off(_: &Setup) -> anyhow::Result<()> {
    for options in [Options::default(), behind_iommu()] {
        let mut guest = Guest::start(&options)?;
        let log = Log::new(&guest);
        guest.device.set_log(&log.0)?;
        set_features(&guest, options.features | feature::LOG_ALL)?;
        guest.exercise()?;
        set_features(&guest, options.features)?;
        guest.flush()?;
        let before = log.0.clone();
        guest.exercise()?;
        guest.flush()?;
        ensure!(before == log.0, "pages are marked that nobody asked for");
    }
    Ok(())
}
