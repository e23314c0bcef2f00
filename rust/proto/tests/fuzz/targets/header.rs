// SPDX-License-Identifier: GPL-2.0

//! Headers, field by field where the specification puts them.

use super::bytes::Bytes;
use vsock_proto::{reset_for, Header, HeaderError, Operation, HEADER_LEN};

pub fn seeds() -> Vec<Vec<u8>> {
    let mut whole: Vec<u8> = (1..=44).collect();
    whole[4..8].fill(0);
    whole[12..16].fill(0);
    let mut seeds = vec![vec![0; 44], vec![0xff; 44], whole.clone()];
    for operation in 0..=8 {
        whole[28] = 1;
        whole[30..32].copy_from_slice(&[operation, 0]);
        seeds.push(whole.clone());
    }
    seeds
}

pub fn run(data: &[u8]) {
    let mut bytes = [0; HEADER_LEN];
    let len = data.len().min(HEADER_LEN);
    bytes[..len].copy_from_slice(&data[..len]);
    let mut fields = Bytes(&bytes);
    let [source_cid, source_high, cid, high] = core::array::from_fn(|_| fields.u32());
    let parsed = Header::parse(&bytes);
    if source_high != 0 || high != 0 {
        return assert_eq!(parsed, Err(HeaderError::WideCid));
    }
    let header = parsed.expect("a header");
    assert_eq!(
        (header.source.cid, header.destination.cid),
        (source_cid, cid)
    );
    assert_eq!(header.source.port, fields.u32());
    assert_eq!(header.destination.port, fields.u32());
    assert_eq!(header.len, fields.u32());
    let word = fields.u32();
    assert_eq!(u32::from(header.kind), word & 0xffff);
    assert_eq!(u32::from(header.operation.to_wire()), word >> 16);
    assert_eq!(header.flags, fields.u32());
    assert_eq!(header.buf_alloc, fields.u32());
    assert_eq!(header.fwd_cnt, fields.u32());
    assert_eq!(header.encode(), bytes);
    check_parts(&header);
    check_reset(&header);
}

/// Both parts of a packet that is cut in two say what the whole says, and the end once.
fn check_parts(header: &Header) {
    let first = header.part(header.len / 2, false);
    let last = header.part(header.len - header.len / 2, true);
    assert_eq!(first.len + last.len, header.len);
    assert_eq!(last.flags, header.flags);
    let hidden = first.flags ^ header.flags;
    let ends = if header.operation == Operation::ReadWrite {
        header.flags & 3
    } else {
        0
    };
    assert_eq!(hidden, ends);
}

/// A reset goes back, and is the end of it.
fn check_reset(header: &Header) {
    let Some(reset) = reset_for(header) else {
        return assert_eq!(header.operation.to_wire(), 3);
    };
    assert_ne!(header.operation.to_wire(), 3);
    assert_eq!(
        (reset.source, reset.destination),
        (header.destination, header.source)
    );
    assert_eq!((reset.kind, reset.operation.to_wire()), (header.kind, 3));
    assert_eq!(
        (reset.len, reset.flags, reset.buf_alloc, reset.fwd_cnt),
        (0, 0, 0, 0)
    );
    assert_eq!(reset_for(&reset), None);
}
