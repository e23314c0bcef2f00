// SPDX-License-Identifier: GPL-2.0
//! Messages of the IOTLB, in their second form: a monitor's answers to what the device asks.

use anyhow::ensure;

use crate::device::Device;

pub const MISS: u8 = 1;
pub const UPDATE: u8 = 2;
pub const INVALIDATE: u8 = 3;

pub const READ_WRITE: u8 = 3;

/// `VHOST_IOTLB_MSG_V2`
const TYPE: u32 = 2;
pub const LEN: usize = 72;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub address: u64,
    pub size: u64,
    /// Where this process has it.
    pub host: u64,
    pub permission: u8,
    pub kind: u8,
}

impl Message {
    pub fn update(address: u64, size: u64, host: u64) -> Self {
        Self {
            address,
            size,
            host,
            permission: READ_WRITE,
            kind: UPDATE,
        }
    }

    pub fn invalidate(address: u64, size: u64) -> Self {
        Self {
            address,
            size,
            host: 0,
            permission: 0,
            kind: INVALIDATE,
        }
    }

    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&TYPE.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.address.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.host.to_ne_bytes());
        bytes[32] = self.permission;
        bytes[33] = self.kind;
        bytes
    }

    fn decode(bytes: &[u8; LEN]) -> Self {
        let long = |at: usize| u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[at + i]));
        Self {
            address: long(8),
            size: long(16),
            host: long(24),
            permission: bytes[32],
            kind: bytes[33],
        }
    }

    /// What the device asks next; waits if it is not a device that does not block.
    pub fn read(device: &Device) -> anyhow::Result<Self> {
        let mut bytes = [0; LEN];
        let len = device.read_message(&mut bytes)?;
        ensure!(len == LEN, "a message of {len} bytes");
        Ok(Self::decode(&bytes))
    }
}
