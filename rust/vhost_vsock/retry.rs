// SPDX-License-Identifier: GPL-2.0

//! Comes back to a guest's packets after a pause.

use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::Delta,
};
use rvsock_bindings::{Alarm, Alarmed};
use vhost::Bell;

/// How long a guest's packet waits for memory.
const PAUSE: Delta = Delta::from_millis(100);

/// Rings a bell after a pause, unless it is told not to.
#[pin_data]
pub(crate) struct Retry {
    /// Taken with the lock of a queue held, or of the device.
    #[pin]
    alarm: Mutex<Alarm<Ring>>,
}

struct Ring(Arc<Bell>);

impl Alarmed for Ring {
    fn alarmed(&self) -> Option<Delta> {
        self.0.ring();
        None
    }
}

impl Retry {
    pub(crate) fn new(bell: Arc<Bell>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            alarm <- new_mutex!(Alarm::new(Ring(bell))?, "Retry::alarm"),
        }? Error)
    }

    /// Rings the bell after a pause. Sleeps.
    pub(crate) fn start(&self) {
        self.alarm.lock().set(PAUSE);
    }

    /// The bell is not rung any more when this returns. Sleeps.
    pub(crate) fn cancel(&self) {
        self.alarm.lock().cancel();
    }
}
