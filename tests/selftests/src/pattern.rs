// SPDX-License-Identifier: GPL-2.0
//! Bytes that tell their position, so that a reader notices what is lost, doubled or moved.

/// A sequence of bytes, as long as one likes.
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// Bytes until it begins again. A prime: no packet, page or window is a multiple of it.
    pub const PERIOD: usize = 65_521;

    /// Patterns with different seeds differ nearly everywhere.
    pub fn new(seed: u64) -> Self {
        // xorshift64
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        Self((0..Self::PERIOD).map(next).collect())
    }

    /// Writes the bytes from `position` on into `out`.
    pub fn fill(&self, mut position: u64, out: &mut [u8]) {
        let mut rest = out;
        while !rest.is_empty() {
            let from = &self.0[(position % Self::PERIOD as u64) as usize..];
            let (now, later) = rest.split_at_mut(from.len().min(rest.len()));
            now.copy_from_slice(&from[..now.len()]);
            position += now.len() as u64;
            rest = later;
        }
    }

    /// `len` bytes from `position` on.
    pub fn bytes(&self, position: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(position, &mut out);
        out
    }

    /// Asserts that `bytes` are those from `position` on.
    pub fn check(&self, position: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let expected = self.bytes(position, bytes.len());
        match bytes
            .iter()
            .zip(&expected)
            .position(|(is, should)| is != should)
        {
            None => Ok(()),
            Some(at) => anyhow::bail!(
                "byte {} of the stream is {:#04x}, not {:#04x} (byte {at} of {} that were read)",
                position + at as u64,
                bytes[at],
                expected[at],
                bytes.len()
            ),
        }
    }
}
