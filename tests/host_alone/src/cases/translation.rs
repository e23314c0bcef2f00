// SPDX-License-Identifier: GPL-2.0
//! A guest behind an IOMMU: the device asks its monitor where memory is.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use rvsock_selftests::case::{wait_until, Setup};
use rvsock_selftests::errno::Errno;
use rvsock_selftests::pattern::Pattern;
use rvsock_selftests::socket::Kind;
use rvsock_selftests::{cases, ensure_eq};

use crate::device::{feature, Device, BACKEND_IOTLB_V2};
use crate::guest::{Guest, Options, CID, SHORT};
use crate::iotlb::{self, Message};
use crate::memory::{Memory, BASE, PAGE};

cases!("translation":
    a_guest_behind_an_iommu_works,
    what_is_not_known_is_asked_for,
    what_was_taken_back_is_asked_for_again,
    a_question_is_an_event_to_wait_for,
    a_miss_is_no_error_of_the_guest,
    messages_that_make_no_sense_are_refused,
    a_device_without_an_iotlb_has_no_questions,
);

/// Between addresses of the guest and those it tells the device.
pub const OFFSET: u64 = 0x7000_0000_0000;

pub fn behind_iommu() -> Options {
    let options = Options::default();
    Options {
        features: options.features | feature::ACCESS_PLATFORM,
        iommu: Some(OFFSET),
        ..options
    }
}

fn a_guest_behind_an_iommu_works(_: &Setup) -> anyhow::Result<()> {
    for features in [0, feature::EVENT_IDX] {
        let mut options = behind_iommu();
        options.features |= features;
        let mut guest = Guest::start(&options)?;
        for _ in 0..3 {
            guest.exercise()?;
        }
    }
    Ok(())
}

/// A monitor that answers page by page, until it is told to stop; how often it was asked.
fn answer(device: &Device, memory: &Memory, stop: &AtomicBool) -> anyhow::Result<usize> {
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        if device.poll(libc::POLLIN, Duration::from_millis(20))? == 0 {
            continue;
        }
        let question = Message::read(device)?;
        ensure_eq!(question.kind, iotlb::MISS);
        let page = question.address / PAGE * PAGE;
        ensure!(
            (BASE..BASE + memory.size()).contains(&(page.wrapping_sub(OFFSET))),
            "a question about {:#x}",
            question.address
        );
        let host = memory.host_address(page - OFFSET);
        device.write_message(&Message::update(page, PAGE, host).encode())?;
        asked += 1;
    }
    Ok(asked)
}

/// Runs `work` with a monitor that answers.
fn with_monitor(
    guest: &mut Guest,
    work: impl FnOnce(&mut Guest) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let (device, memory) = (guest.device.duplicate()?, guest.memory.clone());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let monitor = scope.spawn(|| answer(&device, &memory, &stop));
        let result = work(guest);
        stop.store(true, Ordering::Relaxed);
        let asked = monitor.join().unwrap();
        result?;
        asked
    })
}

fn forget(guest: &Guest) -> anyhow::Result<()> {
    let all = Message::invalidate(BASE + OFFSET, guest.memory.size());
    guest.device.write_message(&all.encode())?;
    Ok(())
}

fn what_is_not_known_is_asked_for(_: &Setup) -> anyhow::Result<()> {
    let pattern = Pattern::new(8);
    let bytes = pattern.bytes(0, 500_000);
    let mut options = behind_iommu();
    options.split = true;
    let mut guest = Guest::start(&options)?;
    forget(&guest)?;
    let asked = with_monitor(&mut guest, |guest| {
        let (socket, mut connection) = guest.accept_from(Kind::Stream)?;
        thread::scope(|scope| -> anyhow::Result<()> {
            let sender = scope.spawn(|| socket.send_all(&bytes));
            pattern.check(0, &guest.receive_data(&mut connection, bytes.len())?)?;
            Ok(sender.join().unwrap()?)
        })?;
        thread::scope(|scope| {
            let receiver = scope.spawn(|| socket.recv_exact(bytes.len()));
            guest.send_data(&mut connection, &bytes)?;
            pattern.check(0, &receiver.join().unwrap()?)
        })
    })?;
    ensure!(asked > 50, "it asked {asked} times");
    Ok(())
}

fn what_was_taken_back_is_asked_for_again(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&behind_iommu())?;
    for _ in 0..10 {
        forget(&guest)?;
        ensure!(with_monitor(&mut guest, |guest| guest.exercise())? > 0);
    }
    Ok(())
}

fn a_question_is_an_event_to_wait_for(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&behind_iommu())?;
    guest.exercise()?;
    guest.device.set_nonblocking()?;
    ensure_eq!(guest.device.poll(libc::POLLIN, Duration::ZERO)?, 0);
    let nothing = guest.device.read_message(&mut [0; iotlb::LEN]);
    ensure_eq!(nothing.map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
    forget(&guest)?;
    guest.tx.kick.write(1)?;
    ensure_eq!(
        guest.device.poll(libc::POLLIN, Duration::from_secs(20))?,
        libc::POLLIN
    );
    // Too little room for a message: nothing is lost.
    ensure_eq!(guest.device.read_message(&mut [0; 8])?, 0);
    ensure_eq!(Message::read(&guest.device)?.kind, iotlb::MISS);
    Ok(())
}

/// Rings are known, buffers are not.
fn a_miss_is_no_error_of_the_guest(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&behind_iommu())?;
    guest.exercise()?;
    let stray = guest.memory.allocate(PAGE, PAGE);
    // What is taken back goes with all that was told at once.
    forget(&guest)?;
    let end = BASE + guest.memory.size();
    for (start, end) in [(BASE, stray), (stray + PAGE, end)] {
        let host = guest.memory.host_address(start);
        let known = Message::update(start + OFFSET, end - start, host);
        guest.device.write_message(&known.encode())?;
    }
    guest.tx.add(&[crate::ring::Piece {
        address: stray,
        len: 44,
        writable: false,
    }]);
    guest.tx.publish()?;
    let question = Message::read(&guest.device)?;
    ensure_eq!(question.address, stray + OFFSET);
    thread::sleep(SHORT);
    ensure_eq!(guest.tx.take_error(), false);
    let host = guest.memory.host_address(stray);
    let update = Message::update(stray + OFFSET, PAGE, host);
    guest.device.write_message(&update.encode())?;
    wait_until("the host takes the packet", || {
        guest.tx.take_used().is_some()
    })?;
    guest.exercise()
}

fn messages_that_make_no_sense_are_refused(_: &Setup) -> anyhow::Result<()> {
    let guest = Guest::start(&behind_iommu())?;
    let error = |bytes: &[u8]| {
        let written = guest.device.write_message(bytes);
        written.map_err(Errno::from)
    };
    let invalid = Err(Errno(libc::EINVAL));
    let fault = Err(Errno(libc::EFAULT));
    let good = Message::update(0x1000, PAGE, guest.memory.host_address(BASE));
    ensure_eq!(error(&good.encode()), Ok(iotlb::LEN));
    ensure_eq!(error(&good.encode()[..3]), invalid);
    ensure_eq!(error(&good.encode()[..20]), invalid);
    let mut unknown = good.encode();
    unknown[0] = 9;
    ensure_eq!(error(&unknown), invalid);
    ensure_eq!(error(&Message { size: 0, ..good }.encode()), invalid);
    ensure_eq!(error(&Message { kind: 77, ..good }.encode()), fault);
    let outside = Message {
        host: u64::MAX - 100,
        ..good
    };
    ensure_eq!(error(&outside.encode()), fault);
    Ok(())
}

fn a_device_without_an_iotlb_has_no_questions(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    device.set_owner()?;
    device.set_backend_features(BACKEND_IOTLB_V2)?;
    device.set_cid(CID.into())?;
    let answer = Message::update(0x1000, PAGE, 0x1000).encode();
    let refused = device.write_message(&answer);
    ensure_eq!(
        refused.map_err(|e| e.raw_os_error()),
        Err(Some(libc::EFAULT))
    );
    let none = device.read_message(&mut [0; iotlb::LEN]);
    ensure_eq!(none.map_err(|e| e.raw_os_error()), Err(Some(libc::EBADFD)));
    ensure_eq!(device.poll(libc::POLLIN, Duration::ZERO)?, 0);
    Ok(())
}
