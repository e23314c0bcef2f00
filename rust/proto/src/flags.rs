// SPDX-License-Identifier: GPL-2.0

//! Header flags: their bits mean one thing in a SHUTDOWN packet, another in a RW packet.

/// Defines a set of flags over a `u32`.
macro_rules! flags {
    (
        $(#[$doc:meta])*
        pub struct $name:ident {
            $($(#[$flag_doc:meta])* const $flag:ident = $bit:expr;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        pub struct $name(u32);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self($bit);)*

            /// No flag.
            pub const NONE: Self = Self(0);

            /// Every flag that has a meaning.
            pub const ALL: Self = Self(0 $(| $bit)*);

            /// The flags in `bits`; bits without a meaning are dropped.
            #[inline]
            pub const fn from_bits(bits: u32) -> Self {
                Self(bits & Self::ALL.0)
            }

            /// The wire value of these flags.
            #[inline]
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Whether all of `other` are among these.
            #[inline]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These and `other` together.
            #[inline]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}

flags! {
    /// What a side gives up for good: flags of a SHUTDOWN packet (section 5.10.6.5).
    ///
    /// The values are also those of `RCV_SHUTDOWN`, `SEND_SHUTDOWN` and `SHUTDOWN_MASK` in
    /// `include/net/sock.h`.
    pub struct ShutdownFlags {
        /// The sender of the packet will not receive any more (`VIRTIO_VSOCK_SHUTDOWN_RCV`).
        const RECEIVE = 1 << 0;
        /// The sender of the packet will not send any more (`VIRTIO_VSOCK_SHUTDOWN_SEND`).
        const SEND = 1 << 1;
    }
}

flags! {
    /// Where a message ends: flags of a RW packet between seqpacket sockets (section 5.10.6.6).
    pub struct MessageFlags {
        /// The last packet of a message (`VIRTIO_VSOCK_SEQ_EOM`).
        const END_OF_MESSAGE = 1 << 0;
        /// The last packet of a record: its sender passed `MSG_EOR` (`VIRTIO_VSOCK_SEQ_EOR`).
        const END_OF_RECORD = 1 << 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_bits_of_the_specification() {
        assert_eq!(ShutdownFlags::RECEIVE.bits(), 1);
        assert_eq!(ShutdownFlags::SEND.bits(), 2);
        assert_eq!(MessageFlags::END_OF_MESSAGE.bits(), 1);
        assert_eq!(MessageFlags::END_OF_RECORD.bits(), 2);
    }

    #[test]
    fn bits_without_a_meaning_are_dropped() {
        assert_eq!(ShutdownFlags::from_bits(u32::MAX), ShutdownFlags::ALL);
        assert_eq!(MessageFlags::from_bits(!3), MessageFlags::NONE);
    }

    #[test]
    fn a_set_contains_what_was_united_into_it() {
        let both = ShutdownFlags::RECEIVE.union(ShutdownFlags::SEND);
        assert_eq!(both, ShutdownFlags::ALL);
        assert!(both.contains(ShutdownFlags::SEND));
        assert!(both.contains(ShutdownFlags::NONE));
        assert!(!ShutdownFlags::SEND.contains(both));
    }
}
