//! Breadth-first search over all states of a finite model, with traces.
//!
//! Two questions are answered: can a state be reached in which something is wrong, and is there a
//! state from which the end can no longer be reached? The second covers deadlock and, in a finite
//! model, says that every run that is fair to all steps ends well.

use std::fmt::Debug;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

/// A finite transition system.
pub trait Model {
    /// Everything that the future depends on.
    type State: Clone + Eq + Hash;
    /// What happens between two states; printed in traces.
    type Step: Debug;

    /// The states in which a run may begin.
    fn starts(&self) -> Vec<Self::State>;
    /// All that can happen next.
    fn steps(&self, state: &Self::State, out: &mut Vec<(Self::Step, Self::State)>);
    /// What is wrong with this state, if anything.
    fn violation(&self, state: &Self::State) -> Option<&'static str>;
    /// Whether a run may rest here: all the work is done.
    fn ended(&self, state: &Self::State) -> bool;
}

/// How far to search.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Steps from the start.
    pub depth: u32,
    /// Distinct states.
    pub states: usize,
}

impl Limits {
    /// As far as the model's own bounds reach.
    pub const ALL: Self = Self { depth: u32::MAX, states: 60_000_000 };
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every reachable state is right, and the end can be reached from each.
    Holds,
    /// Every state within the limits is right; nothing is said of the end.
    HoldsWithinLimits,
    /// A state that is wrong, and the shortest way there.
    Violated {
        /// What is wrong.
        what: &'static str,
        /// The steps from a start.
        trace: Vec<String>,
    },
    /// A state from which the end cannot be reached, and the shortest way there.
    Stuck {
        /// The steps from a start.
        trace: Vec<String>,
    },
}

/// A verdict, and how much was searched for it.
#[derive(Debug, Clone)]
pub struct Report {
    /// Distinct states.
    pub states: usize,
    /// Steps between them.
    pub edges: usize,
    /// Longest of the shortest ways from a start.
    pub depth: u32,
    /// What was found.
    pub verdict: Verdict,
}

/// Searches all states of `model`, or as many as `limits` allows.
pub fn explore<M: Model>(model: &M, limits: Limits) -> Report {
    let mut found = Found::default();
    for state in model.starts() {
        found.insert(state, u32::MAX);
    }
    let mut successors = Successors::default();
    let mut next = Vec::new();
    let (mut depth, mut level_end, mut at) = (0, found.states.len(), 0);
    while at < found.states.len() {
        if at == level_end {
            depth += 1;
            level_end = found.states.len();
        }
        if let Some(what) = model.violation(&found.states[at]) {
            let verdict = Verdict::Violated { what, trace: trace(model, &found, at) };
            return Report { states: found.states.len(), edges: successors.targets.len(), depth, verdict };
        }
        if depth >= limits.depth || found.states.len() > limits.states {
            let verdict = Verdict::HoldsWithinLimits;
            return Report { states: found.states.len(), edges: successors.targets.len(), depth, verdict };
        }
        model.steps(&found.states[at], &mut next);
        for (_, state) in next.drain(..) {
            let target = found.insert(state, index(at));
            successors.targets.push(target);
        }
        successors.ends.push(successors.targets.len());
        at += 1;
    }
    let verdict = match first_stuck(model, &found, &successors) {
        Some(at) => Verdict::Stuck { trace: trace(model, &found, at) },
        None => Verdict::Holds,
    };
    Report { states: found.states.len(), edges: successors.targets.len(), depth, verdict }
}

/// States in the order of their discovery, and the state from which each was found.
struct Found<S> {
    states: Vec<S>,
    parents: Vec<u32>,
    /// Open addressing: index + 1 of a state, or 0. The states are stored once, and compared in full.
    slots: Vec<u32>,
    hasher: BuildHasherDefault<Mix>,
}

impl<S> Default for Found<S> {
    fn default() -> Self {
        Self {
            states: Vec::new(),
            parents: Vec::new(),
            slots: vec![0; 1 << 10],
            hasher: BuildHasherDefault::default(),
        }
    }
}

impl<S: Eq + Hash> Found<S> {
    /// The index of `state`, which is new or known.
    fn insert(&mut self, state: S, parent: u32) -> u32 {
        if (self.states.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut slot = self.home(&state);
        while self.slots[slot] != 0 {
            let at = self.slots[slot] - 1;
            if self.states[at as usize] == state {
                return at;
            }
            slot = (slot + 1) & mask;
        }
        let at = index(self.states.len());
        self.slots[slot] = at + 1;
        self.states.push(state);
        self.parents.push(parent);
        at
    }

    fn grow(&mut self) {
        let size = self.slots.len() * 2;
        self.slots = vec![0; size];
        for at in 0..self.states.len() {
            let mut slot = self.home(&self.states[at]);
            while self.slots[slot] != 0 {
                slot = (slot + 1) & (size - 1);
            }
            self.slots[slot] = index(at) + 1;
        }
    }

    fn home(&self, state: &S) -> usize {
        let hash = self.hasher.hash_one(state);
        (hash ^ (hash >> 32)) as usize & (self.slots.len() - 1)
    }
}

/// The successors of state `i` are `targets[ends[i - 1]..ends[i]]`.
#[derive(Default)]
struct Successors {
    targets: Vec<u32>,
    ends: Vec<usize>,
}

impl Successors {
    fn of(&self, at: usize) -> &[u32] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.targets[start..self.ends[at]]
    }
}

/// The first state, in order of discovery, from which no state that has ended can be reached.
fn first_stuck<M: Model>(model: &M, found: &Found<M::State>, successors: &Successors) -> Option<usize> {
    let count = found.states.len();
    let mut starts = vec![0_usize; count + 1];
    for &target in &successors.targets {
        starts[target as usize + 1] += 1;
    }
    for at in 0..count {
        starts[at + 1] += starts[at];
    }
    let mut fill = starts.clone();
    let mut predecessors = vec![0_u32; successors.targets.len()];
    for at in 0..count {
        for &target in successors.of(at) {
            predecessors[fill[target as usize]] = index(at);
            fill[target as usize] += 1;
        }
    }
    let mut good = vec![false; count];
    let mut open: Vec<usize> = (0..count).filter(|&at| model.ended(&found.states[at])).collect();
    for &at in &open {
        good[at] = true;
    }
    while let Some(at) = open.pop() {
        for &from in &predecessors[starts[at]..starts[at + 1]] {
            if !good[from as usize] {
                good[from as usize] = true;
                open.push(from as usize);
            }
        }
    }
    good.iter().position(|good| !good)
}

/// The steps that lead from a start to state `at`.
fn trace<M: Model>(model: &M, found: &Found<M::State>, at: usize) -> Vec<String> {
    let mut path = vec![at];
    let mut here = at;
    while found.parents[here] != u32::MAX {
        here = found.parents[here] as usize;
        path.push(here);
    }
    path.reverse();
    let mut next = Vec::new();
    let mut steps = Vec::new();
    for pair in path.windows(2) {
        next.clear();
        model.steps(&found.states[pair[0]], &mut next);
        let taken = next.iter().find(|(_, state)| *state == found.states[pair[1]]);
        steps.push(taken.map_or_else(|| "?".to_owned(), |(step, _)| format!("{step:?}")));
    }
    steps
}

/// States are numbered in 32 bits; [`Limits`] stay far below.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// A fast, unkeyed hash: states are small, and nobody chooses them to collide. Fields are mostly single
/// bytes, so eight are gathered before they are mixed.
#[derive(Default)]
struct Mix {
    mixed: u64,
    gathered: u64,
    bits: u32,
}

impl Mix {
    fn mix(&mut self, word: u64) {
        self.mixed = (self.mixed.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let mut last = Self { mixed: self.mixed, ..Self::default() };
        last.mix(self.gathered);
        last.mixed
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.gathered |= u64::from(value) << self.bits;
        self.bits += 8;
        if self.bits == u64::BITS {
            let word = std::mem::take(&mut self.gathered);
            self.bits = 0;
            self.mix(word);
        }
    }

    /// Discriminants of enums, which are small.
    fn write_isize(&mut self, value: isize) {
        self.write_u8(value as u8);
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }
}
