// SPDX-License-Identifier: GPL-2.0
//! A ring as the device sees it: what it does, and what it should not do.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use vhost_user_backend::VringT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use crate::backend::Backend;

/// Where the flags, the index and the entries of a used ring are (section 2.7.8).
const USED_IDX: u64 = 2;
const USED_ENTRIES: u64 = 4;
const USED_ENTRY_LEN: u64 = 8;

/// Piece of a buffer in the guest's memory.
type Piece = (GuestAddress, u32);

/// A buffer that the driver has made available.
#[derive(Clone)]
pub struct Chain {
    pub head: u16,
    pub readable: Vec<Piece>,
    pub writable: Vec<Piece>,
    /// The driver may have taken its ring back since.
    epoch: u64,
}

impl Chain {
    /// Bytes that can be written.
    pub fn room(&self) -> usize {
        self.writable.iter().map(|(_, len)| *len as usize).sum()
    }
}

/// One of the rings. Everything happens under its lock and only as long as the driver has it in
/// use: what is written later would hit memory that it has freed.
pub struct Ring {
    backend: Arc<Backend>,
    /// Its number; a foreign ring has that of the one it comes and goes with.
    index: usize,
    foreign: Option<Foreign>,
}

/// A ring that QEMU does not hand over.
struct Foreign {
    queue: Mutex<Queue>,
    /// When it was found.
    epoch: u64,
}

impl Ring {
    pub fn new(backend: Arc<Backend>, index: usize) -> Self {
        Self {
            backend,
            index,
            foreign: None,
        }
    }

    /// The ring in `queue`, whose addresses are known, and which the driver takes back together with
    /// ring number `index`.
    pub fn foreign(backend: Arc<Backend>, index: usize, queue: Queue) -> Self {
        let foreign = Foreign {
            queue: Mutex::new(queue),
            epoch: backend.epoch(),
        };
        Self {
            backend,
            index,
            foreign: Some(foreign),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Queue, &GuestMemoryMmap, u64) -> Option<T>) -> Option<T> {
        let (vring, memory) = self.backend.ring(self.index)?;
        let mut vring = vring.get_mut();
        let queue = vring.get_queue_mut();
        if !queue.ready() {
            return None;
        }
        let epoch = self.backend.epoch();
        let Some(foreign) = &self.foreign else {
            return f(queue, &memory.memory(), epoch);
        };
        if epoch != foreign.epoch {
            return None;
        }
        let mut queue = foreign.queue.lock().ok()?;
        f(&mut queue, &memory.memory(), epoch)
    }

    /// Takes up the indexes of a ring that has been in use.
    pub fn catch_up(&self) -> Option<()> {
        self.with(|queue, memory, _| {
            let used = queue.used_idx(memory, Ordering::Acquire).ok()?;
            queue.set_next_used(used.0);
            queue.set_next_avail(used.0);
            Some(())
        })
    }

    /// As [`Ring::with`], for a buffer that has to be the driver's still.
    fn with_chain<T>(
        &self,
        chain: &Chain,
        f: impl FnOnce(&mut Queue, &GuestMemoryMmap) -> Option<T>,
    ) -> Option<T> {
        self.with(|queue, memory, epoch| (epoch == chain.epoch).then(|| f(queue, memory))?)
    }

    /// Takes the next available buffer.
    pub fn pop(&self) -> Option<Chain> {
        self.with(|queue, memory, epoch| {
            let found = queue.pop_descriptor_chain(memory)?;
            let mut chain = Chain {
                head: found.head_index(),
                readable: Vec::new(),
                writable: Vec::new(),
                epoch,
            };
            for piece in found {
                let pieces = if piece.is_write_only() {
                    &mut chain.writable
                } else {
                    &mut chain.readable
                };
                pieces.push((piece.addr(), piece.len()));
            }
            Some(chain)
        })
    }

    /// Asks to be notified of the next available buffer; whether there is one already.
    pub fn wait_for_more(&self) -> bool {
        self.with(|queue, memory, _| queue.enable_notification(memory).ok())
            .unwrap_or(false)
    }

    /// All bytes that the driver lets us read.
    pub fn read(&self, chain: &Chain) -> Option<Vec<u8>> {
        self.with_chain(chain, |_, memory| {
            let mut bytes = Vec::new();
            for (address, len) in &chain.readable {
                let start = bytes.len();
                bytes.resize(start + *len as usize, 0);
                memory.read_slice(&mut bytes[start..], *address).ok()?;
            }
            Some(bytes)
        })
    }

    /// Writes as many of `bytes` as there is room for.
    pub fn write(&self, chain: &Chain, bytes: &[u8]) -> Option<usize> {
        self.with_chain(chain, |_, memory| {
            let mut rest = bytes;
            for (address, len) in &chain.writable {
                let (now, later) = rest.split_at(rest.len().min(*len as usize));
                memory.write_slice(now, *address).ok()?;
                rest = later;
            }
            Some(bytes.len() - rest.len())
        })
    }

    /// Gives a buffer back, with `written` bytes in it.
    pub fn give_back(&self, chain: &Chain, written: u32) -> Option<()> {
        self.with_chain(chain, |queue, memory| {
            queue.add_used(memory, chain.head, written).ok()
        })
    }

    /// Publishes a used entry as it comes. The id need not be one.
    pub fn lie(&self, id: u32, written: u32) -> Option<()> {
        self.with(|queue, memory, _| {
            let next = queue.next_used();
            let slot = u64::from(next % queue.size());
            let at =
                GuestAddress(queue.used_ring()).unchecked_add(USED_ENTRIES + slot * USED_ENTRY_LEN);
            memory.write_obj([id, written], at).ok()?;
            queue.set_next_used(next.wrapping_add(1));
            self.publish(queue, memory, next.wrapping_add(1))
        })
    }

    /// Moves the used index by `step`, with nothing behind it.
    pub fn jump(&self, step: u16) -> Option<()> {
        self.with(|queue, memory, _| {
            let next = queue.next_used().wrapping_add(step);
            queue.set_next_used(next);
            self.publish(queue, memory, next)
        })
    }

    fn publish(&self, queue: &Queue, memory: &GuestMemoryMmap, index: u16) -> Option<()> {
        let at = GuestAddress(queue.used_ring()).unchecked_add(USED_IDX);
        memory.store(index.to_le(), at, Ordering::Release).ok()
    }

    /// Writes the flags and the event index of the used ring: when the driver shall notify.
    pub fn confuse_notifications(&self, flags: u16, event: u16) -> Option<()> {
        self.with(|queue, memory, _| {
            let used = GuestAddress(queue.used_ring());
            let end = USED_ENTRIES + u64::from(queue.size()) * USED_ENTRY_LEN;
            memory.write_obj(flags, used).ok()?;
            memory.write_obj(event, used.unchecked_add(end)).ok()
        })
    }

    pub fn size(&self) -> Option<u16> {
        self.with(|queue, _, _| Some(queue.size()))
    }

    /// Interrupts the driver, whether it wants that or not.
    pub fn interrupt(&self) {
        if let Some((vring, _)) = self.backend.ring(self.index) {
            // A ring that was stopped has nobody to call.
            let _ = vring.signal_used_queue();
        }
    }

    /// Interrupts the driver if it wants that.
    pub fn notify(&self) {
        let wanted = self.with(|queue, memory, _| queue.needs_notification(memory).ok());
        if wanted == Some(true) {
            self.interrupt();
        }
    }
}
