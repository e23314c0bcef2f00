// SPDX-License-Identifier: GPL-2.0

//! Something that happens after a while, unless it is cancelled.

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

/// What happens then.
pub trait Alarmed: Send + Sync + 'static {
    /// Called in a soft interrupt. Returns how long until it is to be called again, if it is.
    fn alarmed(&self) -> Option<Delta>;
}

/// An alarm that can be set and cancelled; dropping it cancels it.
pub struct Alarm<T: Alarmed> {
    clock: Arc<Clock<T>>,
    /// Cancels the alarm when dropped.
    set: Option<ArcHrTimerHandle<Clock<T>>>,
}

#[pin_data]
struct Clock<T: Alarmed> {
    content: T,
    #[pin]
    timer: HrTimer<Self>,
}

impl_has_hr_timer! {
    impl{T: Alarmed} HasHrTimer<Self> for Clock<T> {
        mode: RelativeSoftMode<Monotonic>, field: self.timer
    }
}

impl<T: Alarmed> HrTimerCallback for Clock<T> {
    type Pointer<'a> = Arc<Self>;

    fn run(
        this: ArcBorrow<'_, Self>,
        mut context: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        let Some(delay) = this.content.alarmed() else {
            return HrTimerRestart::NoRestart;
        };
        context.forward_now(delay);
        HrTimerRestart::Restart
    }
}

impl<T: Alarmed> Alarm<T> {
    /// An alarm that is not set. May sleep.
    pub fn new(content: T) -> Result<Self> {
        let clock = pin_init!(Clock {
            content,
            timer <- HrTimer::new(),
        });
        Ok(Self {
            clock: Arc::pin_init(clock, GFP_KERNEL)?,
            set: None,
        })
    }

    /// Sets it to come after `delay`, and not when it was set to come before. Waits as
    /// [`Alarm::cancel`].
    pub fn set(&mut self, delay: Delta) {
        // The handle of before would cancel what is started now.
        self.cancel();
        self.set = Some(self.clock.clone().start(delay));
    }

    /// It does not come any more when this returns. Waits for [`Alarmed::alarmed`] if that is
    /// running, which must not wait for the caller.
    pub fn cancel(&mut self) {
        drop(self.set.take());
    }
}
