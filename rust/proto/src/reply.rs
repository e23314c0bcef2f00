// SPDX-License-Identifier: GPL-2.0

//! The answer to a packet that no socket answers for.

use crate::header::{Header, Operation};

/// Whether a reset answers this operation: any but a reset, or two sides would reset each other
/// for ever.
#[inline]
pub const fn answers_with_reset(operation: Operation) -> bool {
    !matches!(operation, Operation::Reset)
}

/// The reset for a packet that belongs to no socket, [`None`] if there must not be one
/// (`virtio_transport_reset_no_sock()`).
///
/// It goes back to where the packet came from. Its `type` is the packet's, even an unknown one
/// (section 5.10.6.4), and its credit is zero: without a socket there is no window.
pub fn reset_for(header: &Header) -> Option<Header> {
    answers_with_reset(header.operation).then_some(Header {
        source: header.destination,
        destination: header.source,
        len: 0,
        kind: header.kind,
        operation: Operation::Reset,
        flags: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Address;

    const REQUEST: Header = Header {
        source: Address::new(3, 1024),
        destination: Address::new(2, 22),
        len: 1,
        kind: 77,
        operation: Operation::Request,
        flags: 2,
        buf_alloc: 3,
        fwd_cnt: 4,
    };

    #[test]
    fn a_reset_goes_back_to_the_source_with_the_kind_it_came_with() {
        let reset = Header {
            source: REQUEST.destination,
            destination: REQUEST.source,
            len: 0,
            kind: 77,
            operation: Operation::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        };
        assert_eq!(reset_for(&REQUEST), Some(reset));
    }

    #[test]
    fn only_a_reset_is_never_answered_by_a_reset() {
        for value in 0..=u16::MAX {
            let operation = Operation::from_wire(value);
            let reply = reset_for(&Header {
                operation,
                ..REQUEST
            });
            assert_eq!(reply.is_none(), operation == Operation::Reset);
        }
    }

    #[test]
    fn two_sides_that_know_no_socket_fall_silent() {
        let reset = reset_for(&REQUEST).unwrap();
        assert_eq!(reset_for(&reset), None);
    }
}
