// SPDX-License-Identifier: GPL-2.0
//! The commands of the device, and how they fail.

use std::fs;
use std::os::raw::c_ulong;
use std::ptr::without_provenance_mut;

use rvsock_selftests::case::Setup;
use rvsock_selftests::errno::{check, Errno};
use rvsock_selftests::namespace;
use rvsock_selftests::socket::{Kind, Socket};
use rvsock_selftests::{cases, ensure_eq};
use vhost::vhost_kern::vhost_binding as raw;

use crate::device::{feature, Device, BACKEND_IOTLB_V2, RX, TX};
use crate::guest::{prepare, Guest, Options, CID};
use crate::memory::{Memory, BASE};

cases!("command":
    the_device_has_its_number,
    features_are_offered_and_unknown_ones_refused,
    a_device_has_one_owner,
    commands_are_the_owners,
    some_cids_are_nobodys,
    a_cid_has_one_guest,
    a_guest_can_change_its_cid,
    a_cid_needs_no_owner,
    a_cid_of_another_local_namespace_is_free,
    a_guest_belongs_to_the_namespace_of_who_opened_the_device,
    arguments_that_are_not_there_are_a_fault,
    unknown_commands_are_refused,
    queues_have_sizes_that_are_powers_of_two,
    queues_that_cannot_be_reached_do_not_start,
    a_device_can_be_started_and_stopped_twice,
    a_running_queue_keeps_its_size,
    a_stopped_device_tells_how_far_it_was,
);

const OFFERED: u64 = feature::SEQPACKET
    | feature::NOTIFY_ON_EMPTY
    | feature::LOG_ALL
    | feature::ANY_LAYOUT
    | feature::INDIRECT
    | feature::EVENT_IDX
    | feature::VERSION_1
    | feature::ACCESS_PLATFORM;

fn the_device_has_its_number(_: &Setup) -> anyhow::Result<()> {
    let number = fs::read_to_string("/sys/class/misc/vhost-vsock/dev")?;
    ensure_eq!(number.trim(), "10:241");
    Ok(())
}

fn features_are_offered_and_unknown_ones_refused(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    ensure_eq!(device.features()?, OFFERED);
    ensure_eq!(device.backend_features()?, BACKEND_IOTLB_V2);
    for bit in 0..64 {
        let features = feature::VERSION_1 | (1 << bit);
        // Logs and an IOTLB need a device that was set up.
        if features & (feature::LOG_ALL | feature::ACCESS_PLATFORM) == 0 {
            let expected = match features & !OFFERED {
                0 => Ok(()),
                _ => Err(Errno(libc::EOPNOTSUPP)),
            };
            ensure_eq!(device.set_features(features), expected, "bit {bit}");
        }
        let expected = match 1 << bit {
            BACKEND_IOTLB_V2 => Ok(()),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        };
        ensure_eq!(device.set_backend_features(1 << bit), expected, "bit {bit}");
    }
    Ok(())
}

fn a_device_has_one_owner(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    device.set_owner()?;
    ensure_eq!(device.set_owner(), Err(Errno(libc::EBUSY)));
    Ok(())
}

/// Whether `work` is true in a process of its own.
fn elsewhere(work: impl FnOnce() -> bool) -> anyhow::Result<bool> {
    // SAFETY: There are no other threads but workers of the kernel.
    let child = check(unsafe { libc::fork() })?;
    if child == 0 {
        let status = i32::from(!work());
        // SAFETY: Nothing of the parent's must be cleaned up.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: The child is ours.
    check(unsafe { libc::waitpid(child, &mut status, 0) })?;
    Ok(status == 0)
}

fn commands_are_the_owners(_: &Setup) -> anyhow::Result<()> {
    let nobody = Err(Errno(libc::EPERM));
    let device = Device::open()?;
    let memory = Memory::new(1 << 20)?;
    ensure_eq!(device.set_running(1), nobody);
    ensure_eq!(device.set_running(0), nobody);
    ensure_eq!(device.set_memory(&memory), nobody);

    let guest = Guest::prepare(&Options::default())?;
    let refused = || {
        let device = &guest.device;
        device.set_running(1) == nobody
            && device.set_running(0) == nobody
            && device.set_memory(&guest.memory) == nobody
            && device.set_owner() == Err(Errno(libc::EBUSY))
    };
    ensure_eq!(elsewhere(refused)?, true);
    guest.device.set_running(1)?;
    ensure_eq!(elsewhere(refused)?, true);
    Ok(())
}

fn some_cids_are_nobodys(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    let any = u64::from(u32::MAX);
    for cid in [0, 1, 2, any, any + 1, any + 1 + u64::from(CID), u64::MAX] {
        ensure_eq!(device.set_cid(cid), Err(Errno(libc::EINVAL)), "{cid:#x}");
    }
    for cid in [3, any - 1, u64::from(CID)] {
        ensure_eq!(device.set_cid(cid), Ok(()), "{cid:#x}");
    }
    Ok(())
}

fn a_cid_has_one_guest(_: &Setup) -> anyhow::Result<()> {
    let (first, second) = (Device::open()?, Device::open()?);
    first.set_cid(CID.into())?;
    ensure_eq!(second.set_cid(CID.into()), Err(Errno(libc::EADDRINUSE)));
    // What failed changed nothing.
    second.set_cid(u64::from(CID) + 1)?;
    ensure_eq!(second.set_cid(CID.into()), Err(Errno(libc::EADDRINUSE)));
    ensure_eq!(
        first.set_cid(u64::from(CID) + 1),
        Err(Errno(libc::EADDRINUSE))
    );
    drop(first);
    second.set_cid(CID.into())?;
    Ok(())
}

fn a_guest_can_change_its_cid(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    guest.exercise()?;
    // Far away, and in the same bucket of a table by the low bits or by a hash.
    for cid in [CID + 1, CID + 256, 99_999, CID] {
        guest.device.set_cid(cid.into())?;
        guest.device.set_cid(cid.into())?;
        let old = guest.address(1);
        guest.options.cid = cid;
        guest.exercise()?;
        if old.cid != cid {
            let socket = Socket::new(Kind::Stream)?;
            prepare(&socket)?;
            ensure_eq!(socket.connect(old), Err(Errno(libc::ENODEV)));
        }
    }
    Ok(())
}

fn a_cid_needs_no_owner(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    device.set_cid(CID.into())?;
    let socket = Socket::new(Kind::Stream)?;
    prepare(&socket)?;
    let address = rvsock_selftests::socket::Address { cid: CID, port: 1 };
    ensure_eq!(socket.connect(address), Err(Errno(libc::EHOSTUNREACH)));
    Ok(())
}

fn a_cid_of_another_local_namespace_is_free(_: &Setup) -> anyhow::Result<()> {
    namespace::prepare("local")?;
    let options = Options::default();
    let mut guests = Vec::new();
    for _ in 0..2 {
        guests.push(namespace::inside("local", || Guest::start(&options))?);
    }
    let global = Guest::start(&options)?;
    ensure_eq!(
        Device::open()?.set_cid(CID.into()),
        Err(Errno(libc::EADDRINUSE))
    );
    drop(global);
    Ok(())
}

fn a_guest_belongs_to_the_namespace_of_who_opened_the_device(_: &Setup) -> anyhow::Result<()> {
    namespace::prepare("local")?;
    let socket = || {
        let socket = Socket::new(Kind::Stream)?;
        prepare(&socket)?;
        Ok(socket)
    };
    let (mut guest, inside) = namespace::inside("local", || {
        Ok((Guest::start(&Options::default())?, socket()?))
    })?;
    let other = namespace::inside("local", socket)?;
    for outside in [socket()?, other] {
        ensure_eq!(outside.connect(guest.address(1)), Err(Errno(libc::ENODEV)));
    }
    let (inside, mut connection) = guest.accept_socket(inside)?;
    guest.converse(&inside, &mut connection)?;

    // A listener of the namespace outside is nobody for the guest.
    let listener = Socket::listening(Kind::Stream)?;
    let refused = guest.connect(Kind::Stream, 1, listener.port()?);
    ensure_eq!(refused.is_err(), true);
    Ok(())
}

fn arguments_that_are_not_there_are_a_fault(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    device.set_owner()?;
    let commands: [fn() -> c_ulong; 14] = [
        raw::VHOST_GET_FEATURES,
        raw::VHOST_SET_FEATURES,
        raw::VHOST_GET_BACKEND_FEATURES,
        raw::VHOST_SET_BACKEND_FEATURES,
        raw::VHOST_VSOCK_SET_GUEST_CID,
        raw::VHOST_VSOCK_SET_RUNNING,
        raw::VHOST_SET_MEM_TABLE,
        raw::VHOST_SET_LOG_BASE,
        raw::VHOST_SET_VRING_NUM,
        raw::VHOST_SET_VRING_ADDR,
        raw::VHOST_SET_VRING_BASE,
        raw::VHOST_GET_VRING_BASE,
        raw::VHOST_SET_VRING_KICK,
        raw::VHOST_SET_VRING_CALL,
    ];
    for command in commands {
        for bad in [0, 8, usize::MAX].map(without_provenance_mut::<u64>) {
            let result = device.command(command(), bad);
            ensure_eq!(result, Err(Errno(libc::EFAULT)), "{:#x}", command());
        }
    }
    Ok(())
}

fn unknown_commands_are_refused(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    let mut argument = [0u64; 8];
    let mut refused = |number| {
        device
            .command(number, argument.as_mut_ptr())
            .map_err(|Errno(errno)| errno)
    };
    // VHOST_NEW_WORKER, _FREE_WORKER, _ATTACH_VRING_WORKER, _GET_VRING_WORKER and
    // VHOST_GET_FEATURES_ARRAY; a command of vhost-net and one of nobody.
    let number = |direction: c_ulong, size: c_ulong, nr: c_ulong| {
        (direction << 30) | (size << 16) | (0xaf << 8) | nr
    };
    device.set_owner()?;
    for unknown in [
        number(2, 4, 8),
        number(1, 4, 9),
        number(1, 8, 0x15),
        number(3, 8, 0x16),
        number(2, 8, 0x83),
        number(1, 8, 0x30),
        number(1, 8, 0xfe),
    ] {
        ensure_eq!(refused(unknown), Err(libc::ENOTTY), "{unknown:#x}");
    }
    ensure_eq!(device.reset_owner(), Err(Errno(libc::EFAULT)));
    Ok(())
}

fn queues_have_sizes_that_are_powers_of_two(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    device.set_owner()?;
    for size in [0, 3, 127, 0x1_0000, u32::MAX] {
        ensure_eq!(
            device.set_queue_size(RX, size),
            Err(Errno(libc::EINVAL)),
            "{size}"
        );
    }
    for size in [1, 2, 1024, 0x8000] {
        ensure_eq!(device.set_queue_size(TX, size), Ok(()), "{size}");
    }
    ensure_eq!(device.set_queue_size(2, 128), Err(Errno(libc::ENOBUFS)));
    Ok(())
}

fn queues_that_cannot_be_reached_do_not_start(_: &Setup) -> anyhow::Result<()> {
    let device = Device::open()?;
    device.set_owner()?;
    ensure_eq!(device.set_running(1), Err(Errno(libc::EFAULT)));

    // The second queue is at fault: the first must not go on running.
    let mut guest = Guest::prepare(&Options::default())?;
    let Guest { memory, device, .. } = &guest;
    device.set_memory_table(&[(BASE + (1 << 30), memory.size(), memory.host_address(BASE))])?;
    let mut addresses = guest.addresses(TX, &guest.tx);
    addresses.used_user_addr = 4096;
    device.set_queue_addresses(&addresses)?;
    ensure_eq!(device.set_running(1), Err(Errno(libc::EFAULT)));
    device.set_queue_size(RX, 64)?;
    device.set_queue_size(RX, 128)?;

    device.set_memory(&guest.memory)?;
    device.set_queue_addresses(&guest.addresses(TX, &guest.tx))?;
    device.set_cid(CID.into())?;
    device.set_running(1)?;
    guest.post(8)?;
    guest.exercise()
}

fn a_device_can_be_started_and_stopped_twice(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    guest.device.set_running(7)?;
    guest.exercise()?;
    for _ in 0..2 {
        guest.device.set_running(0)?;
    }
    for _ in 0..2 {
        guest.device.set_running(1)?;
    }
    guest.exercise()
}

fn a_running_queue_keeps_its_size(_: &Setup) -> anyhow::Result<()> {
    let guest = Guest::start(&Options::default())?;
    let busy = Err(Errno(libc::EBUSY));
    ensure_eq!(guest.device.set_queue_size(RX, 64), busy);
    ensure_eq!(guest.device.set_queue_base(TX, 0), busy);
    guest.device.set_running(0)?;
    ensure_eq!(guest.device.set_queue_size(RX, 64), Ok(()));
    Ok(())
}

fn a_stopped_device_tells_how_far_it_was(_: &Setup) -> anyhow::Result<()> {
    let mut guest = Guest::start(&Options::default())?;
    guest.exercise()?;
    guest.flush()?;
    guest.device.set_running(0)?;
    ensure_eq!(guest.device.queue_base(RX)?, u32::from(guest.rx.next_used));
    ensure_eq!(guest.device.queue_base(TX)?, u32::from(guest.tx.next_used));
    guest.device.set_running(1)?;
    guest.exercise()
}
