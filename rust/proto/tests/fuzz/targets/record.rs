// SPDX-License-Identifier: GPL-2.0

//! Record marking: a stream read in pieces beside the same stream taken apart at once.

use super::bytes::Bytes;
use vsock_proto::{Progress, RecordError, RecordReader, Want};

const LIMIT: u32 = 100;

/// The size of pieces in a byte, then the stream.
pub fn seeds() -> Vec<Vec<u8>> {
    let with = |piece: u8, stream: &[&[u8]]| [&[piece], stream.concat().as_slice()].concat();
    vec![
        with(0, &[b"\x80\0\0\x03abc", b"\x80\0\0\x02de"]),
        with(2, &[b"\0\0\0\x03abc", b"\0\0\0\x01d", b"\x80\0\0\x02ef"]),
        with(7, &[b"\0\0\0\x03abc", b"\x80\0\0\0", b"\x80\0\0\0"]),
        with(3, &[b"\0\0\0\0", b"\x80\0\0\x02ef"]),
        with(3, &[b"\x80\0\0\x65x"]),
        with(3, &[b"\xff\xff\xff\xffx"]),
    ]
}

pub fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let piece = usize::from(input.u8()) + 1;
    assert_eq!(in_pieces(input.0, piece), at_once(input.0));
}

/// The complete records, and what ended them.
type Records = (Vec<Vec<u8>>, Option<RecordError>);

fn in_pieces(mut stream: &[u8], piece: usize) -> Records {
    let mut reader = RecordReader::new(LIMIT);
    let (mut records, mut record) = (Vec::new(), Vec::new());
    while !stream.is_empty() {
        let want = reader.poll_want();
        let wanted = match want {
            Want::Marker(missing) => missing,
            Want::Payload { length, .. } => length as usize,
        };
        assert_ne!(wanted, 0, "a reader that wants nothing waits for ever");
        let (bytes, rest) = stream.split_at(wanted.min(piece).min(stream.len()));
        stream = rest;
        let progress = match want {
            Want::Marker(_) => match reader.handle_marker(bytes) {
                Ok(progress) => progress,
                Err(error) => return (records, Some(error)),
            },
            Want::Payload { offset, .. } => {
                assert_eq!(offset as usize, record.len());
                record.extend(bytes);
                reader.handle_payload(bytes.len() as u32)
            }
        };
        if let Progress::Complete(length) = progress {
            assert_eq!(length as usize, record.len());
            records.push(core::mem::take(&mut record));
        }
    }
    (records, None)
}

fn at_once(mut stream: &[u8]) -> Records {
    let (mut records, mut record) = (Vec::new(), Vec::new());
    while let Some((marker, rest)) = stream.split_first_chunk::<4>() {
        let word = u32::from_be_bytes(*marker);
        let (is_last, length) = (word >= 0x8000_0000, (word % 0x8000_0000) as usize);
        if record.len() + length > LIMIT as usize {
            return (records, Some(RecordError::TooLong));
        }
        if length == 0 && !is_last {
            return (records, Some(RecordError::EmptyFragment));
        }
        let Some((fragment, rest)) = rest.split_at_checked(length) else {
            break;
        };
        record.extend(fragment);
        stream = rest;
        if is_last {
            records.push(core::mem::take(&mut record));
        }
    }
    (records, None)
}
