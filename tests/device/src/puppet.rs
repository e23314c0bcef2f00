// SPDX-License-Identifier: GPL-2.0
//! The program in the guest that does what it is told with sockets, over a connection to the device
//! (tests/puppet).

use anyhow::{ensure, Context};

use crate::device::{Device, Key};

/// Where the program connects to.
pub const CONTROL_PORT: u32 = 1;
/// Where it connects to for messages and bytes that it sends back, on connections that nothing else
/// happens to.
pub const ECHO_PORTS: [u32; 2] = [2, 3];

/// The program, connected.
pub struct Puppet {
    pub key: Key,
}

impl Puppet {
    /// Waits for the program.
    pub fn accept(device: &mut Device) -> anyhow::Result<Self> {
        device.services.insert(CONTROL_PORT);
        device.services.extend(ECHO_PORTS);
        let key = device.accepted(CONTROL_PORT)?;
        let mut puppet = Self { key };
        puppet.call(device, "hello")?;
        Ok(puppet)
    }

    /// Gives an order, without waiting for the answer.
    pub fn order(&mut self, device: &mut Device, order: &str) -> anyhow::Result<()> {
        device.write(self.key, format!("{order}\n").as_bytes(), usize::MAX)
    }

    /// The answer to an order: words, or the name of an error.
    pub fn answer(&mut self, device: &mut Device) -> anyhow::Result<String> {
        let mut line = Vec::new();
        loop {
            let byte = device.read(self.key, 1)?;
            ensure!(!byte.is_empty(), "the program in the guest is gone");
            if byte == b"\n" {
                return Ok(String::from_utf8(line)?);
            }
            line.extend(byte);
        }
    }

    /// Gives an order; the answer, whatever it is.
    pub fn ask(&mut self, device: &mut Device, order: &str) -> anyhow::Result<String> {
        self.order(device, order)?;
        self.answer(device).with_context(|| order.to_owned())
    }

    /// Gives an order that has to succeed; what it returns.
    pub fn call(&mut self, device: &mut Device, order: &str) -> anyhow::Result<String> {
        let answer = self.ask(device, order)?;
        let result = answer.strip_prefix("ok");
        let result = result.with_context(|| format!("{order}: {answer}"))?;
        Ok(result.trim().to_owned())
    }
}
