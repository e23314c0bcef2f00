// SPDX-License-Identifier: GPL-2.0

//! Comes back to a guest's packets after a pause.

use kernel::{
    impl_has_hr_timer, new_mutex,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    time::{
        hrtimer::{
            ArcHrTimerHandle, HrTimer, HrTimerCallback, HrTimerCallbackContext, HrTimerPointer,
            HrTimerRestart, RelativeSoftMode,
        },
        Delta, Monotonic,
    },
};
use vhost::Bell;

/// How long a guest's packet waits for memory.
const PAUSE: Delta = Delta::from_millis(100);

/// Rings a bell after a pause, unless it is told not to.
#[pin_data]
pub(crate) struct Retry {
    alarm: Arc<Alarm>,
    /// There while the alarm may be set. Taken with the lock of a queue held, or of the device.
    #[pin]
    set: Mutex<Option<ArcHrTimerHandle<Alarm>>>,
}

#[pin_data]
struct Alarm {
    bell: Arc<Bell>,
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

    fn run(this: ArcBorrow<'_, Self>, _: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        this.bell.ring();
        HrTimerRestart::NoRestart
    }
}

impl Retry {
    pub(crate) fn new(bell: Arc<Bell>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            alarm: Arc::pin_init(
                pin_init!(Alarm {
                    bell,
                    timer <- HrTimer::new(),
                }),
                GFP_KERNEL,
            )?,
            set <- new_mutex!(None, "Retry::set"),
        }? Error)
    }

    /// Rings the bell after a pause. Sleeps.
    pub(crate) fn start(&self) {
        let mut set = self.set.lock();
        // The handle of before would cancel what is started now.
        drop(set.take());
        *set = Some(self.alarm.clone().start(PAUSE));
    }

    /// The bell is not rung any more when this returns. Sleeps.
    pub(crate) fn cancel(&self) {
        drop(self.set.lock().take());
    }
}
