// SPDX-License-Identifier: GPL-2.0

//! From the receive ring to the engine.
//!
//! Packets that are small and few are received in a soft interrupt: to wake a thread for them would
//! take longer than that. The others, and what has to wait for a socket, are left to a thread.

use crate::{device::Device, link::Guest, receiver::allocate, transmit::Replies};
use af_vsock::{deliver_tap, Net, TapPayload};
use kernel::{
    prelude::*,
    sync::atomic::ordering,
    time::{delay::fsleep, Delta},
};
use rvsock_bindings::Run;
use vsock_transport::{Payload, Received};

/// Packets that a thread takes off the ring before others get the CPU.
const BUDGET: usize = 256;
/// Packets that are few.
const FEW: usize = 4;
/// Bytes of payload of a packet that is small.
const SMALL: u32 = 4096;
/// How long to wait for memory, in microseconds.
const PAUSE: i64 = 100_000;

/// What there is to do next for who receives.
enum Step {
    /// To receive a packet; and to post more buffers, if few are left.
    Receive {
        packet: Received<'static>,
        runs_low: bool,
    },
    /// To post more buffers.
    Refill,
    /// The device broke the rules: nobody receives any more.
    GiveUp,
    /// Nothing: there will be a callback, or the transmitter says when to go on; or the receiver is
    /// gone. From now on somebody else may receive.
    Wait,
}

impl Device {
    /// Receives what has come in, until there is nothing more or others should have a turn. May
    /// sleep.
    pub(crate) fn receive(&self) {
        if !self.begin(true) {
            return;
        }
        let mut buffer = None;
        let mut is_refilled = false;
        let mut packets = 0;
        while packets < BUDGET {
            match self.next(buffer.take(), is_refilled) {
                Step::Receive { packet, runs_low } => {
                    if runs_low {
                        self.refill_or_retry();
                    }
                    buffer = packet.receive::<Guest>();
                    packets = packets.saturating_add(1);
                    is_refilled = false;
                }
                Step::Refill => {
                    self.refill_or_retry();
                    is_refilled = true;
                }
                // Also where others found out: what has been received since may have made connections.
                Step::GiveUp => return self.declare_broken(),
                Step::Wait => return self.set_crowded(packets > FEW),
            }
        }
        self.set_crowded(true);
        self.end(buffer, None);
        self.schedule_receive();
    }

    /// Receives a few packets, as long as they are small and nobody has to be waited for, and leaves
    /// the rest to [`Device::receive`]. Soft interrupt.
    pub(crate) fn receive_at_once(&self) {
        if !self.begin(false) {
            return;
        }
        let mut buffer = None;
        let mut left = None;
        for _ in 0..FEW {
            let (packet, runs_low) = match self.next(buffer.take(), true) {
                Step::Receive { packet, runs_low } => (packet, runs_low),
                Step::Wait => return,
                Step::Refill | Step::GiveUp => break,
            };
            match try_receive(packet) {
                Ok(unused) => buffer = unused,
                Err(packet) => left = Some(packet),
            }
            if runs_low || left.is_some() {
                break;
            }
        }
        self.end(buffer, left);
        self.schedule_receive();
    }

    fn set_crowded(&self, is_crowded: bool) {
        self.is_crowded.store(is_crowded, ordering::Relaxed);
    }

    /// Begins to receive, unless somebody else does, who will look at the ring again; or there is a
    /// packet for somebody who can wait, who is on the way, and this `can_wait` not.
    fn begin(&self, can_wait: bool) -> bool {
        let mut receiver = self.receiver.lock();
        Option::as_mut(&mut receiver).is_some_and(|receiver| {
            (can_wait || receiver.left.is_none())
                && !core::mem::replace(&mut receiver.is_in_use, true)
        })
    }

    /// Posts a buffer that was not kept, and finds out what to do next. If that was to post more
    /// buffers, it is not again (`is_refilled`).
    ///
    /// The lock is given back before anything is delivered: that may have to wait for the owner of a
    /// socket.
    fn next(&self, buffer: Option<Run>, is_refilled: bool) -> Step {
        let mut receiver = self.receiver.lock();
        let Some(used) = &mut *receiver else {
            return Step::Wait;
        };
        if let Some(run) = buffer {
            used.recycle(run);
            used.announce();
        }
        let is_answer = core::mem::take(&mut used.is_answer);
        let replies = self.transmitter.lock().takes_replies(is_answer);
        match replies {
            Replies::Taken => {}
            Replies::Refused => return Step::GiveUp,
            Replies::Later => {
                used.is_in_use = false;
                return Step::Wait;
            }
        }
        if let Some(packet) = used.left.take() {
            return Step::Receive {
                packet,
                runs_low: false,
            };
        }
        let (header, run) = loop {
            if let Some(packet) = used.next() {
                break packet;
            }
            if used.ring.queue().is_broken() {
                return Step::GiveUp;
            }
            if used.is_short() && !is_refilled {
                return Step::Refill;
            }
            used.announce();
            if used.ring.queue().enable_callback() {
                used.is_in_use = false;
                return Step::Wait;
            }
        };
        used.ring.queue().disable_callback();
        let runs_low = used.runs_low();
        drop(receiver);
        deliver_tap(&header, TapPayload::Bytes(run.as_slice()));
        let packet = Received::new(header, Payload::Run(run), Net::GLOBAL, None);
        Step::Receive { packet, runs_low }
    }

    /// Ends to receive, before everything was received: posts a buffer that was not kept, and puts a
    /// packet back.
    fn end(&self, buffer: Option<Run>, left: Option<Received<'static>>) {
        if let Some(receiver) = &mut *self.receiver.lock() {
            if let Some(run) = buffer {
                receiver.recycle(run);
            }
            receiver.left = left;
            receiver.is_in_use = false;
        }
    }

    /// Tries again, after a pause, what there was no memory for: to post buffers, and to send.
    pub(crate) fn retry(&self) {
        loop {
            fsleep(Delta::from_micros(PAUSE));
            if self.refill() {
                break;
            }
        }
        // Asks for another try by itself.
        self.transmit();
    }

    fn refill_or_retry(&self) {
        if !self.refill() {
            self.schedule_retry();
        }
    }

    /// Posts buffers until there are enough of them, and tells the device. May sleep.
    ///
    /// False if there is no memory for as many as it takes to go on. Nothing is short where there is
    /// no receiver any more.
    #[must_use]
    pub(crate) fn refill(&self) -> bool {
        let mut run = None;
        let mut had_memory = true;
        while let Some(size) = self.supply(run.take()).filter(|_| had_memory) {
            run = allocate(size).ok();
            had_memory = run.is_some();
        }
        match &mut *self.receiver.lock() {
            Some(receiver) => {
                receiver.announce();
                had_memory || receiver.can_go_on()
            }
            None => true,
        }
    }

    /// Posts a buffer, if there is one; the size of the next one that is needed.
    fn supply(&self, run: Option<Run>) -> Option<usize> {
        Option::as_mut(&mut self.receiver.lock())?.supply(run)
    }
}

/// Receives a packet, if it is small and that takes no waiting.
fn try_receive(packet: Received<'static>) -> Result<Option<Run>, Received<'static>> {
    if packet.header.len > SMALL {
        return Err(packet);
    }
    packet.try_receive::<Guest>()
}
