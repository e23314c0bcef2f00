// SPDX-License-Identifier: GPL-2.0

//! Everything that can happen in a model: all orders of all steps, breadth first.

use std::{
    collections::{HashSet, VecDeque},
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    panic::{catch_unwind, resume_unwind, AssertUnwindSafe},
    time::Instant,
};

/// Something whose steps can be tried one by one.
///
/// Its functions panic where a property does not hold.
pub trait Model: Clone + Hash {
    type Step: Copy + Debug;

    /// Everything that may be tried next.
    fn steps(&self) -> Vec<Self::Step>;

    /// Tries a step; false if it cannot be taken now, and then nothing may have changed.
    fn perform(&mut self, step: Self::Step) -> bool;

    /// Whether things come to an end by steps like this one. Others are up to a user, or a clock.
    fn is_progress(&self, step: Self::Step) -> bool;

    /// What always holds.
    fn check(&self);

    /// What holds where no step of progress can be taken.
    fn check_end(&self);
}

/// Takes steps of progress until none is left.
pub fn finish<M: Model>(model: &mut M) {
    loop {
        let mut steps = model.steps();
        steps.retain(|step| model.is_progress(*step));
        if !steps.into_iter().any(|step| model.perform(step)) {
            return model.check_end();
        }
        model.check();
    }
}

/// How much was seen.
#[derive(Default)]
pub struct Seen {
    states: usize,
    steps: usize,
    depth: usize,
}

impl Seen {
    /// Says so past the harness, which keeps what passing tests print: `make check` shows it.
    pub fn report(&self, name: &str, started: Instant) {
        let Self {
            states,
            steps,
            depth,
        } = self;
        let seconds = started.elapsed().as_secs_f64();
        let line = format!(
            "model: {name}: {states} states, {steps} steps, depth {depth}, {seconds:.1} s\n"
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Visits every state that can be reached from `initial`.
    ///
    /// States are told apart by 64 bits of hash: among a million, two are taken for one with a
    /// probability of 1 in 30 million.
    pub fn explore<M: Model>(&mut self, initial: M) {
        let mut known = HashSet::from([fingerprint(&initial)]);
        // How each state was reached first.
        let mut origins: Vec<Option<(usize, M::Step)>> = vec![None];
        let mut front = VecDeque::from([(0, 0, initial)]);
        while let Some((number, depth, model)) = front.pop_front() {
            self.depth = self.depth.max(depth);
            let mut ended = true;
            for step in model.steps() {
                let mut next = model.clone();
                let result = catch_unwind(AssertUnwindSafe(|| {
                    let taken = next.perform(step);
                    next.check();
                    taken
                }));
                let taken = result.unwrap_or_else(|panic| {
                    show_path(&origins, number, Some(step));
                    resume_unwind(panic)
                });
                if !taken {
                    continue;
                }
                ended &= !model.is_progress(step);
                self.steps += 1;
                if known.insert(fingerprint(&next)) {
                    front.push_back((origins.len(), depth + 1, next));
                    origins.push(Some((number, step)));
                }
            }
            if ended {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| model.check_end())) {
                    show_path(&origins, number, None);
                    resume_unwind(panic)
                }
            }
        }
        self.states += known.len();
    }
}

fn fingerprint(model: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    model.hash(&mut hasher);
    hasher.finish()
}

/// Prints the steps that lead to a state.
fn show_path<S: Debug>(origins: &[Option<(usize, S)>], mut number: usize, last: Option<S>) {
    let mut path: Vec<String> = last.iter().map(|step| format!("{step:?}")).collect();
    while let Some(Some((origin, step))) = origins.get(number) {
        path.push(format!("{step:?}"));
        number = *origin;
    }
    path.reverse();
    eprintln!("reached by: {}", path.join(", "));
}
