// SPDX-License-Identifier: GPL-2.0

//! Record marking: how RPC messages are told apart in a byte stream (RFC 5531, section 11).
//!
//! A message is a record, a record is one or more fragments, and a fragment is a [`Marker`] and as
//! many bytes as that says. [`RecordReader`] says what to read next; the bytes themselves it does
//! not see, except those of markers.

/// Bytes of a marker.
pub const MARKER_LEN: usize = 4;

/// The longest fragment there can be (`RPC_MAX_FRAGMENT_SIZE`).
pub const MAX_FRAGMENT: u32 = u32::MAX >> 1;

/// Set in the marker of the last fragment of a record (`RPC_LAST_STREAM_FRAGMENT`).
const LAST: u32 = 1 << 31;

/// What stands before a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker {
    length: u32,
    is_last: bool,
}

impl Marker {
    /// The marker of a record in one fragment; `None` if that cannot be so long.
    pub const fn of_record(length: u32) -> Option<Self> {
        if length > MAX_FRAGMENT {
            return None;
        }
        Some(Self {
            length,
            is_last: true,
        })
    }

    /// Reads a marker from the wire. All 32-bit values are markers.
    pub const fn from_bytes(bytes: [u8; MARKER_LEN]) -> Self {
        let word = u32::from_be_bytes(bytes);
        Self {
            length: word & MAX_FRAGMENT,
            is_last: word & LAST != 0,
        }
    }

    /// The marker as it is sent.
    pub const fn to_bytes(self) -> [u8; MARKER_LEN] {
        let last = if self.is_last { LAST } else { 0 };
        (self.length | last).to_be_bytes()
    }
}

/// Why a stream cannot be read any further. The connection has to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// The record would be longer than the reader takes.
    TooLong,
    /// A fragment has no bytes and is not the last: a peer could send those for ever.
    EmptyFragment,
}

/// What a reader needs next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// This many bytes, and no more, for [`RecordReader::handle_marker`].
    Marker(usize),
    /// Bytes of the record, at this place in it, this many at most.
    Payload {
        /// Bytes of the record before them.
        offset: u32,
        /// Bytes up to the end of the fragment; not 0.
        length: u32,
    },
}

/// What is there now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// The record goes on.
    Partial,
    /// A record of this length is complete; the next begins.
    Complete(u32),
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Marker { word: u32, missing: usize },
    Payload { rest: u32, is_last: bool },
}

const NEXT_MARKER: Part = Part::Marker {
    word: 0,
    missing: MARKER_LEN,
};

/// Follows a stream from record to record.
#[derive(Clone, Debug)]
pub struct RecordReader {
    part: Part,
    received: u32,
    limit: u32,
}

impl RecordReader {
    /// At the beginning of a stream whose records are no longer than `limit`.
    pub const fn new(limit: u32) -> Self {
        Self {
            part: NEXT_MARKER,
            received: 0,
            limit,
        }
    }

    /// Bytes of the current record that have been received.
    pub const fn received(&self) -> u32 {
        self.received
    }

    /// What to read next.
    pub const fn poll_want(&self) -> Want {
        match self.part {
            Part::Marker { missing, .. } => Want::Marker(missing),
            Part::Payload { rest, .. } => Want::Payload {
                offset: self.received,
                length: rest,
            },
        }
    }

    /// Bytes of a marker arrived: as many as were wanted, or fewer. More than that are ignored.
    pub fn handle_marker(&mut self, bytes: &[u8]) -> Result<Progress, RecordError> {
        let Part::Marker {
            mut word,
            mut missing,
        } = self.part
        else {
            return Ok(Progress::Partial);
        };
        for byte in bytes.iter().take(missing) {
            word = (word << 8) | u32::from(*byte);
            missing = missing.saturating_sub(1);
        }
        if missing > 0 {
            self.part = Part::Marker { word, missing };
            return Ok(Progress::Partial);
        }
        self.begin(Marker::from_bytes(word.to_be_bytes()))
    }

    fn begin(&mut self, marker: Marker) -> Result<Progress, RecordError> {
        let total = self.received.checked_add(marker.length);
        if total.is_none_or(|total| total > self.limit) {
            return Err(RecordError::TooLong);
        }
        if marker.length == 0 && !marker.is_last {
            return Err(RecordError::EmptyFragment);
        }
        self.part = Part::Payload {
            rest: marker.length,
            is_last: marker.is_last,
        };
        Ok(self.handle_payload(0))
    }

    /// Bytes of the record arrived: as many as were wanted, or fewer. More than that are not
    /// counted.
    pub fn handle_payload(&mut self, length: u32) -> Progress {
        let Part::Payload { rest, is_last } = self.part else {
            return Progress::Partial;
        };
        self.received = self.received.saturating_add(length.min(rest));
        let rest = rest.saturating_sub(length);
        if rest > 0 {
            self.part = Part::Payload { rest, is_last };
            return Progress::Partial;
        }
        self.part = NEXT_MARKER;
        if !is_last {
            return Progress::Partial;
        }
        Progress::Complete(core::mem::take(&mut self.received))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    /// Feeds a stream in pieces of the given sizes, over and over; returns the records.
    fn read(stream: &[u8], pieces: &[usize], limit: u32) -> Result<Vec<Vec<u8>>, RecordError> {
        let mut reader = RecordReader::new(limit);
        let mut pieces = pieces.iter().cycle();
        let (mut rest, mut record, mut records) = (stream, vec![], vec![]);
        while !rest.is_empty() {
            let piece = *pieces.next().unwrap();
            let progress = match reader.poll_want() {
                Want::Marker(missing) => {
                    let (bytes, after) = rest.split_at(missing.min(piece).min(rest.len()));
                    rest = after;
                    reader.handle_marker(bytes)?
                }
                Want::Payload { offset, length } => {
                    assert_eq!(offset as usize, record.len());
                    assert_eq!(offset, reader.received());
                    assert_ne!(length, 0);
                    let (bytes, after) =
                        rest.split_at((length as usize).min(piece).min(rest.len()));
                    rest = after;
                    record.extend_from_slice(bytes);
                    reader.handle_payload(bytes.len() as u32)
                }
            };
            if let Progress::Complete(length) = progress {
                assert_eq!(length as usize, record.len());
                records.push(core::mem::take(&mut record));
            }
        }
        Ok(records)
    }

    fn fragment(bytes: &[u8], is_last: bool) -> Vec<u8> {
        let length = bytes.len() as u32;
        let marker = Marker { length, is_last };
        [&marker.to_bytes(), bytes].concat()
    }

    #[test]
    fn a_marker_has_its_flag_in_the_top_bit() {
        let marker = Marker::of_record(0x0102_0304).unwrap();
        assert_eq!(marker.to_bytes(), [0x81, 2, 3, 4]);
        assert_eq!(Marker::from_bytes([0x81, 2, 3, 4]), marker);
        assert_eq!(Marker::of_record(MAX_FRAGMENT + 1), None);
    }

    #[test]
    fn fragments_make_a_record() {
        let stream = [
            fragment(b"one ", false),
            fragment(b"record", true),
            fragment(b"next", true),
        ]
        .concat();
        let records = read(&stream, &[1], 100);
        assert_eq!(records, Ok(vec![b"one record".to_vec(), b"next".to_vec()]));
    }

    #[test]
    fn the_last_fragment_may_be_empty() {
        let stream = [fragment(b"record", false), fragment(b"", true)].concat();
        assert_eq!(read(&stream, &[9], 100), Ok(vec![b"record".to_vec()]));
    }

    #[test]
    fn an_empty_record_is_one() {
        assert_eq!(read(&fragment(b"", true), &[4], 100), Ok(vec![vec![]]));
    }

    #[test]
    fn an_empty_fragment_that_is_not_the_last_is_refused() {
        let stream = fragment(b"", false);
        assert_eq!(read(&stream, &[4], 100), Err(RecordError::EmptyFragment));
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_at_its_marker() {
        let mut reader = RecordReader::new(10);
        assert_eq!(reader.handle_marker(&[0, 0, 0, 10]), Ok(Progress::Partial));
        assert_eq!(reader.handle_payload(10), Progress::Partial);
        let error = reader.handle_marker(&[0x80, 0, 0, 1]);
        assert_eq!(error, Err(RecordError::TooLong));
        let longest = RecordReader::new(u32::MAX).handle_marker(&[0xff; 4]);
        assert_eq!(longest, Ok(Progress::Partial));
    }

    proptest! {
        #[test]
        fn records_come_out_as_they_went_in(
            records in prop::collection::vec(prop::collection::vec(
                prop::collection::vec(any::<u8>(), 1..40), 1..5), 0..5),
            pieces in prop::collection::vec(1usize..50, 1..10),
        ) {
            let mut stream = vec![];
            for fragments in &records {
                for (at, bytes) in fragments.iter().enumerate() {
                    stream.extend(fragment(bytes, at + 1 == fragments.len()));
                }
            }
            let expected: Vec<Vec<u8>> = records.iter().map(|fragments| fragments.concat()).collect();
            prop_assert_eq!(read(&stream, &pieces, 1000), Ok(expected));
        }

        #[test]
        fn nothing_is_too_strange(
            stream in prop::collection::vec(any::<u8>(), 0..200),
            pieces in prop::collection::vec(1usize..50, 1..10),
            limit: u32,
        ) {
            if let Ok(records) = read(&stream, &pieces, limit) {
                prop_assert!(records.iter().all(|record| record.len() as u64 <= u64::from(limit)));
            }
        }

        #[test]
        fn lengths_that_nobody_asked_for_change_nothing_else(
            calls in prop::collection::vec((any::<bool>(), any::<u32>()), 0..30),
            limit: u32,
        ) {
            let mut reader = RecordReader::new(limit);
            for (is_marker, word) in calls {
                if is_marker {
                    if reader.handle_marker(&word.to_be_bytes()).is_err() {
                        break;
                    }
                } else {
                    let _ = reader.handle_payload(word);
                }
                prop_assert!(reader.received() <= limit);
            }
        }
    }
}
