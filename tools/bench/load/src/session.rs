// SPDX-License-Identifier: GPL-2.0
//! A measurement over all connections of a session: bytes between two points in time.

use crate::request::{Report, Request};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that had come in at some time.
type Sample = (Instant, u64);

pub struct Session {
    warm_up: Duration,
    time: Duration,
    bytes: AtomicU64,
    begin: OnceLock<Instant>,
    first: OnceLock<Sample>,
    last: OnceLock<Sample>,
    /// Connections that are not at their end.
    open: Mutex<u32>,
    /// `last` was set, or `open` became 0.
    changed: Condvar,
}

impl Session {
    fn new(request: &Request) -> Self {
        Self {
            warm_up: request.warm_up,
            time: request.time,
            bytes: AtomicU64::new(0),
            begin: OnceLock::new(),
            first: OnceLock::new(),
            last: OnceLock::new(),
            open: Mutex::new(request.connections),
            changed: Condvar::new(),
        }
    }

    /// Counts bytes that came in, and looks at the clock.
    pub fn count(&self, bytes: usize, now: Instant) {
        let total = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let elapsed = now.saturating_duration_since(*self.begin.get_or_init(|| now));
        if elapsed < self.warm_up {
            return;
        }
        let first = *self.first.get_or_init(|| (now, total));
        if now.saturating_duration_since(first.0) >= self.time {
            self.end((now, total));
        }
    }

    /// The window ends here, unless it has ended.
    fn end(&self, sample: Sample) {
        if self.last.set(sample).is_ok() {
            // Under the lock, so that nobody misses it between a look and a wait.
            let _open = self.open();
            self.changed.notify_all();
        }
    }

    /// A connection is at its end. The last one ends the window, if time has not.
    pub fn leave(&self, now: Instant) {
        let mut open = self.open();
        *open = open.saturating_sub(1);
        if *open == 0 {
            let _ = self.last.set((now, self.bytes.load(Ordering::Relaxed)));
            self.changed.notify_all();
        }
    }

    pub fn wait_measured(&self) {
        let mut open = self.open();
        while self.last.get().is_none() {
            open = self
                .changed
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the end of all connections, then says what was measured.
    pub fn wait_report(&self) -> Report {
        let mut open = self.open();
        while *open > 0 {
            open = self
                .changed
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
        match (self.first.get(), self.last.get()) {
            (Some(first), Some(last)) => Report {
                bytes: last.1.saturating_sub(first.1),
                time: last.0.saturating_duration_since(first.0),
            },
            _ => Report {
                bytes: 0,
                time: Duration::ZERO,
            },
        }
    }

    fn open(&self) -> MutexGuard<'_, u32> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sessions that are going on.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<u32, (Arc<Session>, u32)>>);

impl Sessions {
    /// The session of a connection; it is forgotten when its last connection has joined.
    pub fn join(&self, request: &Request) -> Arc<Session> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = sessions
            .entry(request.session)
            .or_insert_with(|| (Arc::new(Session::new(request)), 0));
        entry.1 += 1;
        let session = Arc::clone(&entry.0);
        if entry.1 > request.connections {
            sessions.remove(&request.session);
        }
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Kind;

    fn request(connections: u32) -> Request {
        Request {
            kind: Kind::Sink,
            session: 1,
            connections,
            size: 64,
            warm_up: Duration::from_millis(100),
            time: Duration::from_millis(500),
        }
    }

    #[test]
    fn what_came_before_and_after_the_window_is_left_out() {
        let session = Session::new(&request(1));
        let begin = Instant::now();
        for (milliseconds, bytes) in [(0, 1000), (110, 10), (300, 20), (610, 30), (700, 4000)] {
            session.count(bytes, begin + Duration::from_millis(milliseconds));
        }
        session.wait_measured();
        session.leave(begin + Duration::from_millis(900));
        let report = session.wait_report();
        assert_eq!(report.bytes, 50);
        assert_eq!(report.time, Duration::from_millis(500));
    }

    #[test]
    fn a_late_warm_up_does_not_shorten_the_window() {
        let session = Session::new(&request(1));
        let begin = Instant::now();
        for milliseconds in [0, 400, 700, 1000] {
            session.count(10, begin + Duration::from_millis(milliseconds));
        }
        session.leave(begin + Duration::from_secs(2));
        let report = session.wait_report();
        assert_eq!(
            (report.bytes, report.time),
            (20, Duration::from_millis(600))
        );
    }

    #[test]
    fn the_last_end_ends_the_window() {
        let session = Session::new(&request(2));
        let begin = Instant::now();
        session.count(1000, begin);
        session.count(10, begin + Duration::from_millis(100));
        session.leave(begin + Duration::from_millis(200));
        session.count(20, begin + Duration::from_millis(250));
        session.leave(begin + Duration::from_millis(300));
        let report = session.wait_report();
        assert_eq!(
            (report.bytes, report.time),
            (20, Duration::from_millis(200))
        );
    }

    #[test]
    fn connections_of_a_session_meet_and_the_next_ones_do_not_meet_them() {
        let sessions = Sessions::default();
        // With one for control.
        let (first, second) = (sessions.join(&request(1)), sessions.join(&request(1)));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &sessions.join(&request(1))));
    }
}
