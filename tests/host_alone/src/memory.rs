// SPDX-License-Identifier: GPL-2.0
//! The memory of a guest: a piece of this process's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use anyhow::Context;
use vm_memory::{
    AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
};

/// Where the memory begins for the guest: nothing works by chance that forgets to translate.
pub const BASE: u64 = 0x1_0000_0000;

pub const PAGE: u64 = 4096;

/// Accesses that miss are mistakes of this program, and panic.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

struct Inner {
    mapping: GuestMemoryMmap<()>,
    size: u64,
    /// The first byte that was not given out.
    next: AtomicU64,
}

const OUTSIDE: &str = "an address of the guest";

impl Memory {
    pub fn new(size: u64) -> anyhow::Result<Self> {
        let mapping = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), size as usize)])
            .context("memory for a guest")?;
        Ok(Self(Arc::new(Inner {
            mapping,
            size,
            next: AtomicU64::new(BASE),
        })))
    }

    /// Touches each page, of what nobody uses yet: who comes there needs no memory any more.
    pub fn touch(&self) {
        for page in (BASE..BASE + self.0.size).step_by(PAGE as usize) {
            self.write(page, &[0]);
        }
    }

    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Gives out memory, which nobody gives back.
    pub fn allocate(&self, len: u64, align: u64) -> u64 {
        let mut start = 0;
        let next = |next: u64| {
            start = next.next_multiple_of(align);
            Some(start + len)
        };
        let _ = self
            .0
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        assert!(
            start + len <= BASE + self.0.size,
            "the guest's memory is full"
        );
        start
    }

    /// Where this process has what the guest has at `address`.
    pub fn host_address(&self, address: u64) -> u64 {
        let address = GuestAddress(address);
        let pointer = self.0.mapping.get_host_address(address).expect(OUTSIDE);
        pointer as u64
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let address = GuestAddress(address);
        self.0.mapping.write_slice(bytes, address).expect(OUTSIDE);
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let address = GuestAddress(address);
        self.0
            .mapping
            .read_slice(&mut bytes, address)
            .expect(OUTSIDE);
        bytes
    }

    pub fn get<T: ByteValued>(&self, address: u64) -> T {
        self.0
            .mapping
            .read_obj(GuestAddress(address))
            .expect(OUTSIDE)
    }

    /// As one access, ordered against everything else.
    pub fn load<T: AtomicAccess>(&self, address: u64) -> T {
        let address = GuestAddress(address);
        self.0
            .mapping
            .load(address, Ordering::SeqCst)
            .expect(OUTSIDE)
    }

    pub fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        let address = GuestAddress(address);
        self.0
            .mapping
            .store(value, address, Ordering::SeqCst)
            .expect(OUTSIDE);
        // A store that is only ordered lets later loads overtake it.
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}
