// SPDX-License-Identifier: GPL-2.0

//! Events of the device (section 5.10.6.7).

use crate::{device::Device, link::Guest};
use af_vsock::for_each_connected;
use rvsock_bindings::Run;
use virtio::{InQueue, Reset};
use vsock_transport::Engine;

/// Bytes of an event.
const EVENT_LEN: usize = 4;
/// Buffers for events; the device drops what there is no buffer for.
const EVENTS: usize = 8;
/// So often the buffers are posted again before others get the lock, and the CPU. A device has next
/// to nothing to say: more are a flood, which may be as fast as we are.
const ROUNDS: usize = 4;
/// All connections are gone, and the CID may be another one.
const TRANSPORT_RESET: u32 = 0;

/// The event queue.
pub(crate) struct Events(InQueue<EVENT_LEN>);

impl Events {
    pub(crate) fn new(ring: InQueue<EVENT_LEN>) -> Self {
        Self(ring)
    }

    /// Posts buffers for events.
    pub(crate) fn fill(&mut self) {
        while self.0.posted() < EVENTS && self.0.post(Run::empty()).is_ok() {}
        if self.0.queue().needs_kick() {
            self.0.queue().kick();
        }
    }

    pub(crate) fn give_up(self, reset: &Reset) {
        self.0.give_up(reset);
    }

    /// The next event; those of a wrong length are none.
    fn next(&mut self) -> Option<u32> {
        loop {
            let filled = self.0.take_used()?;
            if filled.written == EVENT_LEN {
                return Some(u32::from_le_bytes(filled.header));
            }
        }
    }
}

impl Device {
    /// Handles the events there are, until others should have a turn, and what the transmitter has
    /// found out.
    pub(crate) fn handle_events(&self) {
        if self.transmitter.lock().has_broken_queue() {
            self.declare_broken();
        }
        let mut events = self.events.lock();
        // Torn down.
        let Some(events) = &mut *events else {
            return;
        };
        for _ in 0..ROUNDS {
            events.0.queue().disable_callback();
            // Not more at once than there are buffers: none is posted meanwhile.
            while let Some(event) = events.next() {
                self.handle_event(event);
            }
            events.fill();
            let is_idle = events.0.queue().enable_callback();
            if events.0.queue().is_broken() {
                self.declare_broken();
                return;
            }
            if is_idle {
                return;
            }
        }
        self.schedule_events();
    }

    fn handle_event(&self, event: u32) {
        if event == TRANSPORT_RESET {
            self.update_cid();
            // Listeners stay: they are bound, not connected.
            for_each_connected::<Engine<Guest>>();
        }
    }
}
