// SPDX-License-Identifier: GPL-2.0

//! Two endpoints and the links between them.
//!
//! Whatever is written, read, delivered and resized in which order: no receiver ever sees an
//! overrun, every byte arrives once and in order, and as long as there is data and a reader who
//! wants it, something moves.

use crate::{
    endpoint::{Endpoint, Step},
    search::Model,
};
use vsock_proto::Kind;

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    A,
    B,
}

/// A connection between two endpoints that have been told of each other's windows.
#[derive(Clone, Hash)]
pub struct Pair {
    a: Endpoint,
    b: Endpoint,
    /// Bytes that there were to send.
    totals: [usize; 2],
    /// Sizes in which is written and read.
    sizes: Vec<usize>,
    /// What may happen besides, each of it once.
    events: Vec<(Side, Step)>,
}

impl Pair {
    /// Windows of the two, and the messages that each has to send; a stream is one.
    pub fn new(kind: Kind, windows: [u32; 2], unsent: [Vec<usize>; 2]) -> Self {
        let [unsent_a, unsent_b] = unsent;
        let mut a = Endpoint::new(kind, 3, windows[0], unsent_a);
        let mut b = Endpoint::new(kind, 2, windows[1], unsent_b);
        a.announce(&mut b);
        b.announce(&mut a);
        Self {
            totals: [a.left(), b.left()],
            a,
            b,
            sizes: vec![1000],
            events: Vec::new(),
        }
    }

    /// The same, written and read in these sizes, with something that may happen at any time.
    pub fn with(self, sizes: &[usize], events: &[(Side, Step)]) -> Self {
        Self {
            sizes: sizes.to_vec(),
            events: events.to_vec(),
            ..self
        }
    }
}

impl Model for Pair {
    type Step = (Side, Step);

    fn steps(&self) -> Vec<Self::Step> {
        let mut steps = self.events.clone();
        for side in [Side::A, Side::B] {
            steps.push((side, Step::Deliver));
            for &size in &self.sizes {
                steps.extend([(side, Step::Read(size)), (side, Step::Write(size))]);
            }
        }
        steps
    }

    fn perform(&mut self, step: Self::Step) -> bool {
        if let Some(at) = self.events.iter().position(|event| *event == step) {
            self.events.remove(at);
        }
        match step {
            (Side::A, step) => self.a.perform(&mut self.b, step),
            (Side::B, step) => self.b.perform(&mut self.a, step),
        }
    }

    fn is_progress(&self, (_, step): Self::Step) -> bool {
        matches!(step, Step::Deliver | Step::Read(_) | Step::Write(_))
    }

    fn check(&self) {
        self.a.check(&self.b);
        self.b.check(&self.a);
    }

    fn check_end(&self) {
        self.a.check_end();
        self.b.check_end();
        let read = [self.b.bytes_read(), self.a.bytes_read()];
        assert_eq!(read, self.totals, "bytes out are not bytes in");
    }
}
