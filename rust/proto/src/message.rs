// SPDX-License-Identifier: GPL-2.0

//! How many message boundaries a seqpacket receiver keeps (section 5.10.6.6).
//!
//! Credit counts payload bytes, and a boundary takes memory too: a peer could fill it with empty
//! messages, which use up no credit at all (CVE-2026-53132).

/// Window bytes per boundary. C charges 576 (`SKB_TRUESIZE(0)`), hence 455 messages in the default
/// window of 256 KiB, and resets a connection that has more.
const BYTES_PER_BOUNDARY: u32 = 64;

/// Boundaries that even the smallest window holds: `VSOCK_DEFAULT_BUFFER_MIN_SIZE` (128 bytes, in
/// `net/vmw_vsock/af_vsock.c`) full of messages of one byte.
const MIN_BOUNDARIES: u32 = 128;

/// The most message boundaries that may be queued in a window of `window` bytes; with one more,
/// the connection has to end (`ENOBUFS`).
#[inline]
pub const fn max_boundaries(window: u32) -> u32 {
    let share = window / BYTES_PER_BOUNDARY;
    if share < MIN_BOUNDARIES {
        MIN_BOUNDARIES
    } else {
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_window_holds_4096_messages() {
        assert_eq!(max_boundaries(256 * 1024), 4096);
    }

    #[test]
    fn the_smallest_window_can_be_filled_byte_by_byte() {
        assert_eq!(max_boundaries(0), 128);
        assert_eq!(max_boundaries(128), 128);
        assert_eq!(max_boundaries(64 * 128 + 64), 129);
    }

    #[test]
    fn a_window_that_c_accepts_is_never_stricter_here() {
        for window in (0..1 << 22).step_by(97) {
            assert!(max_boundaries(window) >= window / 576);
        }
    }
}
