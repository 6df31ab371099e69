//! What the future of the model depends on.

/// Members of the group.
pub const MEMBERS: usize = 2;
/// Partitions; each has one key, and record `n` sets it to `n + 1`.
pub const PARTITIONS: usize = 2;
/// The most loads that matter at one time.
const LOADS: usize = 8;

/// One value for each partition.
pub type PerPartition<T> = [T; PARTITIONS];

/// Stem of a process and number of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Label {
    /// The process; 0 = none.
    pub stem: u8,
    /// The load.
    pub seq: u8,
}

/// A committed offset and its metadata: the label from which on loads may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Committed {
    /// First record that is not durable.
    pub offset: u8,
    /// First label of the claim's window.
    pub claim: Label,
}

/// What StarRocks knows of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoadState {
    /// Begun; the body is held back.
    Begun,
    /// The body is there; it commits by itself, whenever.
    Loading,
    /// Committed.
    Committed,
    /// Cancelled.
    Aborted,
}

/// A load in StarRocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Load {
    /// Its label.
    pub label: Label,
    /// Its state.
    pub state: LoadState,
    /// The value for each partition's key; 0 = no row.
    pub rows: PerPartition<u8>,
    /// Its owner's place among all owners.
    pub term: u8,
    /// Begun by a connection that nobody uses any more.
    pub orphan: bool,
}

/// What a member is doing. In phases with a call the request is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// It has no partition.
    #[default]
    Out,
    /// About to read the committed offsets.
    Read,
    /// Call: cancel what the predecessor has open.
    Cancel(Label),
    /// Call: commit the claim.
    Claim,
    /// Nothing is open.
    Gather,
    /// Call.
    Begin,
    /// Call: commit the watermark.
    Validate,
    /// Call.
    Body,
    /// Until the load is final.
    Await,
    /// Call: commit the watermark.
    Release,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Member {
    /// Runs.
    pub alive: bool,
    /// Believes that it is in the group.
    pub joined: bool,
    /// Partitions that it believes to own, as bits.
    pub owns: u8,
    /// What it does.
    pub phase: Phase,
    /// Its label in hand.
    pub label: Label,
    /// First label of its own claim's window.
    pub claim: Label,
    /// Its place among owners, from its last accepted claim.
    pub term: u8,
    /// Next record.
    pub at: PerPartition<u8>,
    /// End of the load in hand.
    pub upto: PerPartition<u8>,
    /// What was read.
    pub seen: PerPartition<Committed>,
}

impl Member {
    /// Whether a load of its label is in hand.
    #[must_use]
    pub fn at_work(&self) -> bool {
        matches!(self.phase, Phase::Begin | Phase::Validate | Phase::Body | Phase::Await | Phase::Release)
    }
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// StarRocks: a label, its rows, the owner's place.
    Begin(Load),
    /// StarRocks.
    Body(Load),
    /// StarRocks.
    Cancel(Label),
    /// Kafka: partitions, offsets, claim; whether it makes its sender the owner.
    Commit(u8, PerPartition<u8>, Label, bool),
}

/// A request that nobody waits for any more; a commit was sent in the group's generation or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Late {
    /// Whose it is; of a dead process: the number of members.
    pub by: u8,
    /// The request.
    pub call: Call,
    /// Of the group's generation.
    pub valid: bool,
}

/// Faults that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Processes that die.
    pub crashes: u8,
    /// Members that live and are thought dead.
    pub kicks: u8,
    /// Requests that outlive their senders' patience.
    pub late: u8,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The processes.
    pub members: [Member; MEMBERS],
    /// Who is in the group.
    pub in_group: [bool; MEMBERS],
    /// Whose partition it is.
    pub owner: PerPartition<Option<u8>>,
    /// Offsets.
    pub committed: PerPartition<Committed>,
    /// Sorted.
    pub loads: [Option<Load>; LOADS],
    /// The value of each partition's key in the table.
    pub value: PerPartition<u8>,
    /// The place of the owner who wrote it.
    pub written_by: PerPartition<u8>,
    /// Places given out.
    pub terms: u8,
    /// Stems given out.
    pub stems: u8,
    /// A request without a sender.
    pub late: Option<Late>,
    /// What may still go wrong.
    pub budget: Budget,
    /// An older owner's load, or an older value of the same owner, took effect.
    pub went_back: bool,
}

impl State {
    /// Nothing has happened.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            members: [Member::default(); MEMBERS],
            in_group: [false; MEMBERS],
            owner: [None; PARTITIONS],
            committed: [Committed::default(); PARTITIONS],
            loads: [None; LOADS],
            value: [0; PARTITIONS],
            written_by: [0; PARTITIONS],
            terms: 0,
            stems: 0,
            late: None,
            budget,
            went_back: false,
        }
    }

    /// The load with this label.
    pub fn load_mut(&mut self, label: Label) -> Option<&mut Load> {
        self.loads.iter_mut().flatten().find(|load| load.label == label)
    }

    /// The state of a label; none = UNKNOWN.
    #[must_use]
    pub fn load_state(&self, label: Label) -> Option<LoadState> {
        self.loads.iter().flatten().find(|load| load.label == label).map(|load| load.state)
    }

    /// Puts `load` in the place of one with the same label.
    pub fn begin(&mut self, load: Load) {
        if let Some(known) = self.load_mut(load.label) {
            *known = load;
            return;
        }
        let free = self.loads.iter_mut().find(|slot| slot.is_none());
        assert!(free.is_some(), "the model's bounds allow more loads than it has room for");
        if let Some(slot) = free {
            *slot = Some(load);
        }
    }

    /// `load` takes effect.
    pub fn apply(&mut self, load: Load) {
        for partition in 0..PARTITIONS {
            let value = load.rows[partition];
            if value == 0 {
                continue;
            }
            let by = self.written_by[partition];
            self.went_back |= load.term < by || (load.term == by && value < self.value[partition]);
            self.value[partition] = value;
            self.written_by[partition] = by.max(load.term);
        }
    }

    /// Who is to have `partition`, by the members that are in the group.
    #[must_use]
    pub fn target(&self, partition: usize) -> Option<u8> {
        match self.in_group {
            [true, true] => u8::try_from(partition).ok(),
            [true, false] => Some(0),
            [false, true] => Some(1),
            [false, false] => None,
        }
    }

    /// The group has changed; what was sent before is of an old generation.
    pub fn rebalance(&mut self) {
        for partition in 0..PARTITIONS {
            let gone = self.owner[partition].is_none_or(|owner| !self.in_group[usize::from(owner)]);
            if gone {
                self.owner[partition] = self.target(partition);
            }
        }
        if let Some(late) = &mut self.late {
            late.valid = false;
        }
    }

    /// Loads that nothing can come of are dropped, stems are renamed in the order in which they are met
    /// and places are numbered without gaps, so that states with the same future are the same state.
    pub fn normalize(&mut self) {
        for at in 0..LOADS {
            let Some(load) = self.loads[at] else { continue };
            let held = self.members.iter().any(|member| member.at_work() && member.label == load.label);
            let late = self.late.is_some_and(|late| match late.call {
                Call::Begin(other) | Call::Body(other) => other.label == load.label,
                Call::Cancel(_) | Call::Commit(..) => false,
            });
            // A begun load without a body is as good as none.
            if !held && !late && load.state != LoadState::Loading {
                self.loads[at] = None;
            }
        }
        let (mut names, mut count) = ([0_u8; 64], 0);
        let mut places = [false; 64];
        self.each(
            |label| {
                if label.stem != 0 && names[usize::from(label.stem)] == 0 {
                    count += 1;
                    names[usize::from(label.stem)] = count;
                }
            },
            |term| places[usize::from(*term)] = true,
        );
        let mut ranks = [0_u8; 64];
        for term in 1..64 {
            ranks[term] = ranks[term - 1] + u8::from(places[term]);
        }
        self.each(
            |label| label.stem = names[usize::from(label.stem)],
            |term| *term = ranks[usize::from(*term)],
        );
        self.stems = count;
        self.terms = ranks[63];
        self.loads.sort_unstable_by_key(|slot| (slot.is_none(), *slot));
    }

    /// Calls `label` with every label and `term` with every owner's place.
    fn each(&mut self, mut label: impl FnMut(&mut Label), mut term: impl FnMut(&mut u8)) {
        for member in &mut self.members {
            label(&mut member.label);
            label(&mut member.claim);
            term(&mut member.term);
            member.seen.iter_mut().for_each(|seen| label(&mut seen.claim));
            if let Phase::Cancel(open) = &mut member.phase {
                label(open);
            }
        }
        self.committed.iter_mut().for_each(|committed| label(&mut committed.claim));
        self.written_by.iter_mut().for_each(&mut term);
        match self.late.as_mut().map(|late| &mut late.call) {
            Some(Call::Begin(load) | Call::Body(load)) => {
                label(&mut load.label);
                term(&mut load.term);
            }
            Some(Call::Cancel(named) | Call::Commit(_, _, named, _)) => label(named),
            None => {}
        }
        for load in self.loads.iter_mut().flatten() {
            label(&mut load.label);
            term(&mut load.term);
        }
    }
}
