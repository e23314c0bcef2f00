// SPDX-License-Identifier: GPL-2.0

//! Free-running byte counters, which wrap every 4 GiB by design (section 5.10.6.3).

/// How many bytes have passed a point since the connection began, modulo 2³².
///
/// It is not an integer, so that nobody compares two of them or adds them unchecked: what counts
/// is the distance from one to the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Count(u32);

impl Count {
    /// Both sides start counting here.
    pub(crate) const ZERO: Self = Self(0);

    /// The counter that a header carries.
    #[inline]
    pub(crate) const fn from_wire(value: u32) -> Self {
        Self(value)
    }

    /// What goes into a header.
    #[inline]
    pub(crate) const fn to_wire(self) -> u32 {
        self.0
    }

    /// The counter when `bytes` more have passed.
    #[inline]
    pub(crate) const fn plus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The counter as if the last `bytes` had not passed.
    #[inline]
    pub(crate) const fn minus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }

    /// Bytes that have passed since the counter stood at `earlier`.
    #[inline]
    pub(crate) const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_distance_survives_the_wrap() {
        let before = Count::from_wire(u32::MAX);
        assert_eq!(before.plus(3).to_wire(), 2);
        assert_eq!(before.plus(3).since(before), 3);
    }

    proptest! {
        #[test]
        fn minus_undoes_plus(start: u32, bytes: u32) {
            let start = Count::from_wire(start);
            prop_assert_eq!(start.plus(bytes).minus(bytes), start);
            prop_assert_eq!(start.plus(bytes).since(start), bytes);
        }
    }
}
