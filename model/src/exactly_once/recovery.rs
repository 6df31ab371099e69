//! What a member must do before it reads: a pure function of the committed offsets and their
//! metadata, the states of the transactions named there, and the time (delivery.md §3 rule 1).
//!
//! The host's function has this shape, and can be tested against this one.

/// One attempt at loading all tables: the stem of a member's stay, and a number under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// Stands for the random part of a label. Equal stems: one member, one assignment.
    pub stem: u8,
    /// Counts attempts, not successes: a number is never used again.
    pub seq: u8,
}

impl Epoch {
    /// The epoch `n` numbers on.
    #[must_use]
    pub fn plus(self, n: u8) -> Self {
        Self { stem: self.stem, seq: self.seq + n }
    }
}

/// The label of one table's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// What it belongs to.
    pub epoch: Epoch,
    /// Number of the table.
    pub table: u8,
}

/// The metadata of a committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Note {
    /// Nobody has written one yet.
    #[default]
    None,
    /// Nothing is undecided before `next`; `next` and a window behind it may be open.
    Claim {
        /// The first number that may be in use.
        next: Epoch,
    },
    /// All labels of `epoch` are to be committed, whoever does it.
    Decision {
        /// What was decided.
        epoch: Epoch,
        /// Taken before the first prepare was sent.
        prepared_at: u8,
        /// Taken before the decision was sent.
        decided_at: u8,
    },
}

impl Note {
    /// The first number that the writer may have begun after this note.
    #[must_use]
    pub fn next(self) -> Option<Epoch> {
        match self {
            Self::None => None,
            Self::Claim { next } => Some(next),
            Self::Decision { epoch, .. } => Some(epoch.plus(1)),
        }
    }
}

/// A partition's committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Committed {
    /// The first record that is not loaded.
    pub offset: u8,
    /// Where the decision began.
    pub from: u8,
    /// Its metadata.
    pub note: Note,
    /// More metadata: the first number that the writer's predecessor may have open. Its stem is dead
    /// for certain, because the writer's claim was accepted. Stem 0: there is none.
    pub before: Epoch,
}

/// What Kafka answered for one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// `UNSTABLE_OFFSET_COMMIT`: a transaction on it is not over.
    Unstable,
    /// The committed offset.
    Stable(Committed),
}

/// What StarRocks knows of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelState {
    /// Never begun, or forgotten.
    Unknown,
    /// Begun.
    Prepare,
    /// Loaded; commits when told to.
    Prepared,
    /// COMMITTED or VISIBLE.
    Committed,
    /// Rolled back or timed out.
    Aborted,
}

/// The numbers that a plan needs, and what mutations change.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Tables of the pipeline.
    pub tables: u8,
    /// How many numbers after a note its writer may use before it writes another.
    pub window: u8,
    /// Time after which StarRocks rolls a prepared transaction back.
    pub prepared_timeout: u8,
    /// By how much less a forgotten label is trusted ("less an hour").
    pub margin: u8,
    /// Age is counted from the first prepare (else: from the decision).
    pub from_prepare: bool,
    /// A forgotten label of a decision was committed (else: it is loaded again).
    pub unknown_is_committed: bool,
    /// ... unless it is too old to tell (else: always).
    pub old_halts: bool,
    /// Decided labels are committed.
    pub commit_decided: bool,
    /// What the predecessor may have open is rolled back.
    pub roll_back_next: bool,
    /// ... after the claim was accepted.
    pub claim_first: bool,
}

/// The next thing to do. The caller does it, asks again, and calls [`plan`] again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plan {
    /// Ask Kafka again.
    Wait,
    /// Commit a decided transaction.
    Commit(Label),
    /// Roll an undecided transaction of the predecessor back.
    RollBack(Label),
    /// Claim the partitions, naming what the predecessors may have open.
    Claim,
    /// Nothing is left to do: read from the committed offsets.
    Gather,
    /// Only in mutations: read the partitions again from before the decision.
    Reload(Epoch),
    /// Rows are missing, or may be: a human must decide.
    Halt(Label),
}

/// What is known of one label of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its rows are visible, or will be without our doing.
    Done,
    /// To be committed.
    Ready,
    /// Only in mutations.
    Again,
    /// Its rows are gone, or may be.
    Lost,
}

/// What became of a label that was decided at `note`.
#[must_use]
pub fn fate(state: LabelState, prepared_at: u8, decided_at: u8, now: u8, terms: &Terms) -> Fate {
    match state {
        LabelState::Prepared => Fate::Ready,
        LabelState::Committed => Fate::Done,
        LabelState::Unknown if !terms.unknown_is_committed => Fate::Again,
        LabelState::Unknown => {
            let since = if terms.from_prepare { prepared_at } else { decided_at };
            let young = now.saturating_sub(since) < terms.prepared_timeout - terms.margin;
            if young || !terms.old_halts { Fate::Done } else { Fate::Lost }
        }
        // PREPARE: a decision comes after all prepares, so this cannot be. ABORTED: it timed out.
        LabelState::Prepare | LabelState::Aborted => Fate::Lost,
    }
}

/// What to do next, for the partitions of one assignment.
///
/// `claimed`: the claim over what was read has been accepted. Until then the reader may have lost
/// the partitions without knowing, and what it read may be the note of a living successor: then only
/// what is safe for anybody may be done, which is to commit what was decided and to roll back what a
/// claim names as `before`.
pub fn plan(
    reads: &[Read],
    claimed: bool,
    state_of: impl Fn(Label) -> LabelState,
    now: u8,
    terms: &Terms,
) -> Plan {
    let mut known = Vec::with_capacity(reads.len());
    for read in reads {
        match read {
            Read::Unstable => return Plan::Wait,
            Read::Stable(committed) => known.push(committed),
        }
    }
    for committed in &known {
        if let Note::Decision { epoch, prepared_at, decided_at } = committed.note
            && terms.commit_decided
        {
            for table in 0..terms.tables {
                let label = Label { epoch, table };
                match fate(state_of(label), prepared_at, decided_at, now, terms) {
                    Fate::Done => {}
                    Fate::Ready => return Plan::Commit(label),
                    Fate::Again => return Plan::Reload(epoch),
                    Fate::Lost => return Plan::Halt(label),
                }
            }
        }
    }
    let dead = known.iter().map(|committed| committed.before).filter(|before| before.stem != 0);
    let predecessors = known.iter().filter_map(|committed| committed.note.next());
    let open = match (terms.roll_back_next, claimed || !terms.claim_first) {
        (false, _) => None,
        (true, true) => dead.chain(predecessors).find_map(|next| first_open(next, &state_of, terms)),
        (true, false) => dead.into_iter().find_map(|next| first_open(next, &state_of, terms)),
    };
    match (open, claimed) {
        (Some(label), _) => Plan::RollBack(label),
        (None, false) => Plan::Claim,
        (None, true) => Plan::Gather,
    }
}

/// The first label that is open, of the window that begins at `next`.
fn first_open(next: Epoch, state_of: &impl Fn(Label) -> LabelState, terms: &Terms) -> Option<Label> {
    let labels = (0..terms.window).flat_map(|ahead| (0..terms.tables).map(move |table| (ahead, table)));
    labels.map(|(ahead, table)| Label { epoch: next.plus(ahead), table }).find(|label| {
        match state_of(*label) {
            LabelState::Prepare | LabelState::Prepared => true,
            LabelState::Unknown | LabelState::Committed | LabelState::Aborted => false,
        }
    })
}
