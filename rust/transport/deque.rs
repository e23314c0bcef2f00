// SPDX-License-Identifier: GPL-2.0

//! A queue with two ends, in one allocation that grows on demand.

use kernel::{
    alloc::{AllocError, Flags},
    prelude::*,
};

/// A ring of values. Empty ones hold no memory.
pub(crate) struct Deque<T> {
    /// The ring; its length is zero or a power of two.
    slots: KVec<Option<T>>,
    /// Where the first value is.
    head: usize,
    len: usize,
}

impl<T> Deque<T> {
    /// Slots of the first allocation.
    const FIRST: usize = 4;

    pub(crate) const fn new() -> Self {
        Self {
            slots: KVec::new(),
            head: 0,
            len: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in the ring the value number `i` is.
    fn slot(&self, i: usize) -> usize {
        self.head.wrapping_add(i) & self.slots.len().wrapping_sub(1)
    }

    /// The value number `i`, counted from the front.
    pub(crate) fn get(&self, i: usize) -> Option<&T> {
        self.slots
            .as_slice()
            .get(self.slot(i))?
            .as_ref()
            .filter(|_| i < self.len)
    }

    /// All values, from the front.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len).map_while(|i| self.get(i))
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.get(0)
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut T> {
        let slot = self.slot(0);
        self.slots.as_mut_slice().get_mut(slot)?.as_mut()
    }

    pub(crate) fn back_mut(&mut self) -> Option<&mut T> {
        let slot = self.slot(self.len.checked_sub(1)?);
        self.slots.as_mut_slice().get_mut(slot)?.as_mut()
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let slot = self.slot(0);
        let value = self.slots.as_mut_slice().get_mut(slot)?.take()?;
        self.head = self.slot(1);
        self.len = self.len.saturating_sub(1);
        Some(value)
    }

    pub(crate) fn push_back(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(1, flags)?;
        let slot = self.slot(self.len);
        *self.slots.as_mut_slice().get_mut(slot).ok_or(AllocError)? = Some(value);
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// Makes room for `additional` more values.
    pub(crate) fn reserve(&mut self, additional: usize, flags: Flags) -> Result<(), AllocError> {
        let wanted = self.len.checked_add(additional).ok_or(AllocError)?;
        if wanted <= self.slots.len() {
            return Ok(());
        }
        let capacity = wanted
            .checked_next_power_of_two()
            .ok_or(AllocError)?
            .max(Self::FIRST);
        let mut slots = KVec::with_capacity(capacity, flags)?;
        for _ in 0..self.len {
            let slot = self.slot(0);
            let value = self
                .slots
                .as_mut_slice()
                .get_mut(slot)
                .and_then(Option::take);
            slots.push_within_capacity(value).map_err(|_| AllocError)?;
            self.head = self.slot(1);
        }
        while slots.len() < capacity {
            slots.push_within_capacity(None).map_err(|_| AllocError)?;
        }
        self.slots = slots;
        self.head = 0;
        Ok(())
    }

    /// Moves all values of `other` behind ours; nothing moves if there is no memory.
    pub(crate) fn append(&mut self, other: &mut Self, flags: Flags) -> Result<(), AllocError> {
        if self.is_empty() {
            core::mem::swap(self, other);
            return Ok(());
        }
        self.reserve(other.len, flags)?;
        while let Some(value) = other.pop_front() {
            self.push_back(value, flags)?;
        }
        Ok(())
    }

    /// Drops all values; keeps the memory of an ordinary number of them.
    pub(crate) fn clear(&mut self) {
        while self.pop_front().is_some() {}
        if self.slots.len() > 64 {
            *self = Self::new();
        }
    }
}
