// SPDX-License-Identifier: GPL-2.0

//! Whether many connections send at the same time, as the packets of all of them show.

/// What a packet of another connection than the one before counts, and the sum from which on many send
/// at once. So many bytes take one off, of which a packet costs some whatever it carries: or a stream
/// of single bytes would pass for many connections long after the others have fallen silent.
const CHANGE: u32 = 8;
const MANY: u32 = 8;
const MANY_MAX: u32 = 32;
const CHANGE_BYTES: u32 = 64 * 1024;
const PACKET_BYTES: u32 = 1024;

/// Watches packets with payload that go the same way, and whose turns they are.
#[derive(Clone, Copy, Default, Debug)]
pub struct Turns {
    /// Ports of the last packet.
    last: (u32, u32),
    /// How much packets change between connections, and bytes that were not taken off for.
    changes: u32,
    bytes: u32,
}

impl Turns {
    /// A packet of the connection with these ports carries `len` bytes.
    pub fn add(&mut self, ports: (u32, u32), len: u32) {
        if core::mem::replace(&mut self.last, ports) != ports {
            self.changes = self.changes.saturating_add(CHANGE).min(MANY_MAX);
        }
        let cost = len.saturating_add(PACKET_BYTES);
        self.bytes = self.bytes.saturating_add(cost);
        if self.bytes >= CHANGE_BYTES {
            self.bytes = 0;
            self.changes = self.changes.saturating_sub(1);
        }
    }

    /// Whether many send, or did just now.
    pub const fn are_many(&self) -> bool {
        self.changes >= MANY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: (u32, u32) = (1024, 1);
    const OTHER: (u32, u32) = (1025, 1);

    /// Two that have sent in turns for long.
    fn two(len: u32) -> Turns {
        let mut turns = Turns::default();
        for _ in 0..1000 {
            turns.add(ONE, len);
            turns.add(OTHER, len);
        }
        turns
    }

    /// How many packets one sends alone until it is taken for what it is.
    fn packets_until_alone(mut turns: Turns, len: u32) -> Option<usize> {
        (0..100_000).find(|_| {
            turns.add(ONE, len);
            !turns.are_many()
        })
    }

    fn len() -> impl Strategy<Value = u32> {
        prop_oneof![0..2048u32, any::<u32>()]
    }

    proptest! {
        #[test]
        fn two_in_turns_are_many_whatever_they_send(len in len()) {
            prop_assert!(two(len).are_many());
        }

        #[test]
        fn one_is_alone_soon_after_the_others_whatever_it_sends(before in len(), len in len()) {
            let packets = packets_until_alone(two(before), len);
            prop_assert!(packets.is_some_and(|packets| packets < 2000), "{packets:?}");
        }
    }

    #[test]
    fn large_packets_are_forgotten_sooner() {
        let packets = |len| packets_until_alone(two(1), len);
        assert!(packets(65_536) < packets(1).map(|packets| packets / 10));
    }
}
