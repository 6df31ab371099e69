//! What the future of the model depends on, and the names that make equal futures equal.

use super::recovery::{Committed, Epoch, Label, LabelState, Note, Plan};

/// Members of the group.
pub const MEMBERS: usize = 2;
/// Partitions of the topic.
pub const PARTITIONS: usize = 2;
/// The most tables; how many there are is a bound.
pub const TABLES: usize = 2;
/// The most transactions that matter at one time.
const TRANSACTIONS: usize = 16;
/// The most requests that their senders gave up while they were on their way.
pub const LATE: usize = 2;
/// Where the Kafka transaction of a process that died is kept.
pub const DEAD: usize = MEMBERS;

/// A set of partitions, and the same for records.
pub type Mask = u8;

/// One value for each partition.
pub type PerPartition<T> = [T; PARTITIONS];

/// Which call of a Kafka transaction is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// For a claim, or for `done`.
    Claim,
    /// For a decision.
    Decision,
}

/// What a member is doing. In the phases with a call the request is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Phase {
    /// It has no partition.
    #[default]
    Out,
    /// About to read the committed offsets of its partitions.
    Read,
    /// About to ask for states of labels and to plan; a phase of its own only where time passes.
    Plan,
    /// Call: what the plan said.
    Recover(Plan),
    /// Nothing is open; records may be taken.
    Gather,
    /// Call: of all tables, begin and load.
    Load,
    /// Call: of all tables. The answer is followed by the check and the decision.
    Prepare,
    /// All are prepared; about to check and to decide; a phase of its own only where time passes.
    Decide,
    /// Call: `TxnOffsetCommit`.
    Send(Write),
    /// Call: `EndTxn`, commit.
    End(Write),
    /// Call: `init_transactions` of a new producer with the same id.
    Init(Write),
    /// About to read whether the decision was made.
    Settle,
    /// Call.
    Commit(u8),
    /// Call: of the own undecided epoch, all tables.
    RollBack,
    /// It ended with an error and will not start again by itself.
    Halted,
}

/// One process, and what it believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Member {
    /// Runs (perhaps frozen).
    pub alive: bool,
    /// Believes that it is in the group.
    pub joined: bool,
    /// Believes that it owns these.
    pub owns: Mask,
    /// What it does.
    pub phase: Phase,
    /// The stem of its labels, 0 = none, and the number of the epoch.
    pub epoch: Epoch,
    /// First number behind the last note that it wrote.
    pub base: u8,
    /// Next record to read.
    pub at: PerPartition<u8>,
    /// End of the epoch in hand.
    pub upto: PerPartition<u8>,
    /// Partitions that the decision in hand names.
    pub named: Mask,
    /// The generation in hand is the group's.
    pub valid: bool,
    /// When the first prepare was sent, and when it was decided.
    pub prepared_at: u8,
    /// Only with [`super::Rule::AgeFromPrepare`] off.
    pub decided_at: u8,
    /// What was read when recovery began.
    pub seen: PerPartition<Committed>,
    /// When.
    pub seen_at: u8,
    /// The claim over it was accepted.
    pub claimed: bool,
    /// A decision of its own has no `done` yet.
    pub undone: bool,
}

/// A transaction in StarRocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    /// Its label.
    pub label: Label,
    /// Its state; never `Unknown`.
    pub state: LabelState,
    /// Records whose rows it holds.
    pub rows: Mask,
    /// It holds them twice.
    pub twice: bool,
    /// When it was prepared.
    pub since: u8,
}

/// Offsets sent to a Kafka transaction that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Partitions concerned.
    pub named: Mask,
    /// Their new offsets; 0 for others.
    pub offsets: PerPartition<u8>,
    /// Their new metadata.
    pub note: Note,
    /// More of it: what the writer's predecessors may have open.
    pub before: PerPartition<Epoch>,
}

/// A request to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// StarRocks: begin and load; the records.
    Load(Epoch, Mask),
    /// StarRocks.
    Prepare(Epoch),
    /// StarRocks: all that the own epoch has open.
    Abandon(Epoch),
    /// StarRocks.
    Commit(Label),
    /// StarRocks.
    RollBack(Label),
    /// Kafka: what to write, and whether the generation in it is the group's.
    Send(Pending, bool),
    /// Kafka: offsets by a plain commit, whose generation is taken when it leaves the client.
    Plain(Pending),
    /// Kafka.
    End,
    /// Kafka.
    Init,
}

/// A request that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Late {
    /// Member, or [`DEAD`]: whose Kafka transaction it speaks of.
    pub producer: u8,
    /// The request.
    pub call: Call,
}

/// Faults that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Processes that die.
    pub crashes: u8,
    /// Members that live and are thought dead.
    pub kicks: u8,
    /// Answers that are lost.
    pub lost: u8,
    /// Requests that outlive their senders' patience.
    pub late: u8,
    /// Transactions that StarRocks or Kafka aborts by itself.
    pub aborts: u8,
    /// Finished labels that are forgotten.
    pub forgets: u8,
    /// Units of time that pass.
    pub ticks: u8,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The processes.
    pub members: [Member; MEMBERS],
    /// The group's view: who is in it.
    pub in_group: [bool; MEMBERS],
    /// The group's view: whose partition it is.
    pub owner: PerPartition<Option<u8>>,
    /// Stable offsets.
    pub committed: PerPartition<Committed>,
    /// By producer; the last is that of a process that died.
    pub pending: [Option<Pending>; MEMBERS + 1],
    /// Sorted by label.
    pub transactions: [Option<Transaction>; TRANSACTIONS],
    /// Records visible, by table.
    pub visible: [Mask; TABLES],
    /// Requests without a sender.
    pub late: [Option<Late>; LATE],
    /// What may still go wrong.
    pub budget: Budget,
    /// The time.
    pub now: u8,
    /// A row is visible twice.
    pub doubled: bool,
    /// A transaction stays open that nobody will look for.
    pub litter: bool,
}

impl State {
    /// Nothing has happened.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            members: [Member { alive: true, ..Member::default() }; MEMBERS],
            in_group: [false; MEMBERS],
            owner: [None; PARTITIONS],
            committed: [Committed::default(); PARTITIONS],
            pending: [None; MEMBERS + 1],
            transactions: [None; TRANSACTIONS],
            visible: [0; TABLES],
            late: [None; LATE],
            budget,
            now: 0,
            doubled: false,
            litter: false,
        }
    }

    /// The transaction with this label, if it is known.
    #[must_use]
    pub fn transaction(&self, label: Label) -> Option<&Transaction> {
        self.transactions.iter().flatten().find(|transaction| transaction.label == label)
    }

    /// What StarRocks says of a label.
    #[must_use]
    pub fn label_state(&self, label: Label) -> LabelState {
        self.transaction(label).map_or(LabelState::Unknown, |transaction| transaction.state)
    }

    /// The transaction with this label, to be changed.
    pub fn transaction_mut(&mut self, label: Label) -> Option<&mut Transaction> {
        self.transactions.iter_mut().flatten().find(|transaction| transaction.label == label)
    }

    /// Puts a transaction where none of this label is.
    pub fn begin(&mut self, label: Label) {
        self.forget(label);
        let fresh = Transaction { label, state: LabelState::Prepare, rows: 0, twice: false, since: 0 };
        let free = self.transactions.iter_mut().find(|slot| slot.is_none());
        assert!(free.is_some(), "the model's bounds allow more transactions than it has room for");
        if let Some(slot) = free {
            *slot = Some(fresh);
        }
    }

    /// The label becomes unknown.
    pub fn forget(&mut self, label: Label) {
        for slot in &mut self.transactions {
            if slot.is_some_and(|transaction| transaction.label == label) {
                *slot = None;
            }
        }
    }

    /// A stem that nothing names yet.
    #[must_use]
    pub fn fresh_stem(&self) -> u8 {
        let mut used = [false; 64];
        self.each_epoch(|epoch| used[usize::from(epoch.stem)] = true);
        (1..64).find(|stem| !used[usize::from(*stem)]).unwrap_or(63)
    }

    /// Calls `see` with every epoch that is named anywhere, in an order that does not depend on stems
    /// but through the transactions, which come last.
    fn each_epoch(&self, mut see: impl FnMut(Epoch)) {
        let note = |note: Note, see: &mut dyn FnMut(Epoch)| match note {
            Note::None => {}
            Note::Claim { next: epoch } | Note::Decision { epoch, .. } => see(epoch),
        };
        for member in &self.members {
            see(member.epoch);
            for seen in member.seen {
                note(seen.note, &mut see);
                see(seen.before);
            }
            if let Phase::Recover(Plan::Commit(label) | Plan::RollBack(label) | Plan::Halt(label)) =
                member.phase
            {
                see(label.epoch);
            }
        }
        for committed in self.committed {
            note(committed.note, &mut see);
            see(committed.before);
        }
        for pending in self.pending.iter().flatten() {
            note(pending.note, &mut see);
            pending.before.into_iter().for_each(&mut see);
        }
        for late in self.late.iter().flatten() {
            match late.call {
                Call::Load(epoch, _) | Call::Prepare(epoch) | Call::Abandon(epoch) => see(epoch),
                Call::Commit(label) | Call::RollBack(label) => see(label.epoch),
                Call::Send(pending, _) | Call::Plain(pending) => {
                    note(pending.note, &mut see);
                    pending.before.into_iter().for_each(&mut see);
                }
                Call::End | Call::Init => {}
            }
        }
        for transaction in self.transactions.iter().flatten() {
            see(transaction.label.epoch);
        }
    }

    /// Drops what nobody can ask for any more and renames stems in the order in which they are met,
    /// so that states with the same future are the same state.
    pub fn normalize(&mut self, window: u8) {
        self.drop_unreachable(window);
        let mut names = [0_u8; 64];
        let mut count = 0;
        self.each_epoch(|epoch| {
            if epoch.stem != 0 && names[usize::from(epoch.stem)] == 0 {
                count += 1;
                names[usize::from(epoch.stem)] = count;
            }
        });
        self.rename(&names);
        self.transactions.sort_unstable_by_key(|slot| (slot.is_none(), *slot));
    }

    /// Whether a member, a note or a request can still speak of this label.
    fn reachable(&self, label: Label, window: u8) -> bool {
        let Epoch { stem, seq } = label.epoch;
        let from = |first: Epoch| first.stem == stem && (first.seq..=first.seq + window).contains(&seq);
        let noted = |note: Note, before: Epoch| match note {
            Note::None => from(before),
            Note::Claim { next: first } | Note::Decision { epoch: first, .. } => from(first) || from(before),
        };
        let pending = |pending: &Pending| pending.before.iter().any(|before| noted(pending.note, *before));
        let of_member = |member: &Member| {
            (member.epoch.stem == stem && seq >= member.epoch.seq)
                || member.seen.iter().any(|seen| noted(seen.note, seen.before))
                || matches!(member.phase, Phase::Recover(Plan::Commit(other) | Plan::RollBack(other)) if other == label)
        };
        let of_late = |late: &Late| match late.call {
            Call::Load(other, _) | Call::Prepare(other) | Call::Abandon(other) => other == label.epoch,
            Call::Commit(other) | Call::RollBack(other) => other == label,
            Call::Send(named, _) | Call::Plain(named) => pending(&named),
            Call::End | Call::Init => false,
        };
        self.members.iter().any(of_member)
            || self.committed.iter().any(|committed| noted(committed.note, committed.before))
            || self.pending.iter().flatten().any(pending)
            || self.late.iter().flatten().any(of_late)
    }

    fn drop_unreachable(&mut self, window: u8) {
        for at in 0..TRANSACTIONS {
            let Some(transaction) = self.transactions[at] else { continue };
            if self.reachable(transaction.label, window) {
                continue;
            }
            self.litter |= matches!(transaction.state, LabelState::Prepare | LabelState::Prepared);
            self.transactions[at] = None;
        }
    }

    fn rename(&mut self, names: &[u8; 64]) {
        let epoch = |epoch: &mut Epoch| epoch.stem = names[usize::from(epoch.stem)];
        let note = |note: &mut Note| match note {
            Note::None => {}
            Note::Claim { next: named } | Note::Decision { epoch: named, .. } => epoch(named),
        };
        for member in &mut self.members {
            epoch(&mut member.epoch);
            for seen in &mut member.seen {
                note(&mut seen.note);
                epoch(&mut seen.before);
            }
            if let Phase::Recover(Plan::Commit(label) | Plan::RollBack(label) | Plan::Halt(label)) =
                &mut member.phase
            {
                epoch(&mut label.epoch);
            }
        }
        for committed in &mut self.committed {
            note(&mut committed.note);
            epoch(&mut committed.before);
        }
        let offsets = |pending: &mut Pending| {
            note(&mut pending.note);
            pending.before.iter_mut().for_each(epoch);
        };
        self.pending.iter_mut().flatten().for_each(offsets);
        for late in self.late.iter_mut().flatten() {
            match &mut late.call {
                Call::Load(named, _) | Call::Prepare(named) | Call::Abandon(named) => epoch(named),
                Call::Commit(label) | Call::RollBack(label) => epoch(&mut label.epoch),
                Call::Send(pending, _) | Call::Plain(pending) => offsets(pending),
                Call::End | Call::Init => {}
            }
        }
        self.transactions.iter_mut().flatten().for_each(|transaction| epoch(&mut transaction.label.epoch));
    }
}
