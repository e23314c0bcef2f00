// SPDX-License-Identifier: GPL-2.0

//! When the device is told of packets: at once, or of many small ones together.
//!
//! A kick costs an exit to the host, and what follows on both sides costs more: a device that keeps
//! up with its guest wakes its reader for each packet, and has the reader's credit update to
//! deliver. Nothing is put off for who waits for an answer. Who sends one small packet after the
//! other is not answered, though, and there are more packets in a while.

use crate::{device::DEVICE, link::Guest};
use kernel::{
    impl_has_hr_timer,
    prelude::*,
    sync::{Arc, ArcBorrow},
    time::{
        hrtimer::{
            ArcHrTimerHandle, HrTimer, HrTimerCallback, HrTimerCallbackContext, HrTimerPointer,
            HrTimerRestart, RelativeSoftMode,
        },
        Delta, Monotonic,
    },
};
use vsock_transport::Packet;

/// Bytes of payload that are worth a kick.
const LARGE: u32 = 1024;
/// Small packets in a row, with no answer between them, after which they are taken for a stream.
const STREAM: u32 = 32;
/// Packets of a stream that are worth a kick.
const HELD_MAX: u32 = 96;
/// So few of them are no stream.
const HELD_MIN: u32 = 4;
/// How long the device is not told of a packet, at most.
const HOLD: Delta = Delta::from_millis(2);

/// Decides about kicks. Behind the lock of the transmitter.
pub(crate) struct Kicks {
    /// Small packets in a row with no answer between them.
    streak: u32,
    /// Packets in the ring that the device was not told of.
    held: u32,
    alarm: Arc<Alarm>,
    is_set: bool,
    /// Of the last alarm that was set. Waits for it when dropped, so not in the alarm.
    handle: Option<Set>,
}

/// Cancels the alarm when dropped.
pub(crate) type Set = ArcHrTimerHandle<Alarm>;

/// Tells the device of packets when it is time.
#[pin_data]
pub(crate) struct Alarm {
    #[pin]
    timer: HrTimer<Self>,
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Alarm {
        mode: RelativeSoftMode<Monotonic>, field: self.timer
    }
}

impl HrTimerCallback for Alarm {
    type Pointer<'a> = Arc<Self>;

    fn run(
        _: ArcBorrow<'_, Self>,
        mut context: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        // Whoever is sending just now may have been interrupted by this.
        if DEVICE.with(|device| device.try_kick()) == Some(false) {
            context.forward_now(HOLD);
            return HrTimerRestart::Restart;
        }
        HrTimerRestart::NoRestart
    }
}

impl Kicks {
    pub(crate) fn new() -> Result<Self> {
        let alarm = pin_init!(Alarm {
            timer <- HrTimer::new(),
        });
        Ok(Self {
            streak: 0,
            held: 0,
            alarm: Arc::pin_init(alarm, GFP_KERNEL)?,
            is_set: false,
            handle: None,
        })
    }

    /// A packet is sent. Whether the device is to be told now; if not, there will be an alarm.
    pub(crate) fn add(&mut self, packet: &Packet<Guest>) -> bool {
        if packet.is_urgent() || packet.unsent() >= LARGE {
            return true;
        }
        self.streak = self.streak.saturating_add(1);
        if self.streak < STREAM {
            return true;
        }
        self.held = self.held.saturating_add(1);
        if self.held >= HELD_MAX {
            return true;
        }
        self.set_alarm();
        false
    }

    fn set_alarm(&mut self) {
        if !core::mem::replace(&mut self.is_set, true) {
            // That of before would cancel what is started now.
            drop(self.handle.take());
            self.handle = Some(self.alarm.clone().start(HOLD));
        }
    }

    /// Payload has come from the device.
    pub(crate) fn answered(&mut self) {
        self.streak = 0;
    }

    /// The device knows everything.
    pub(crate) fn told(&mut self) {
        self.held = 0;
    }

    /// The alarm has come.
    pub(crate) fn alarmed(&mut self) {
        self.is_set = false;
        if self.held < HELD_MIN {
            self.streak = 0;
        }
    }

    /// The device is about to be torn down.
    pub(crate) fn stop(&mut self) -> Option<Set> {
        self.handle.take()
    }
}
