//! Kafka and StarRocks: what a request does when it arrives.

use super::recovery::{Epoch, Label, LabelState, Note};
use super::state::{Call, Mask, PARTITIONS, Pending, State};
use super::{ExactlyOnce, Rule};

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Done, now or before.
    Ok,
    /// Certainly not done.
    Refused,
    /// Commit only: nobody knows this label.
    NotFound,
    /// No answer came.
    Unknown,
}

impl ExactlyOnce {
    /// The request `call` of `producer` arrives.
    pub(super) fn arrive(&self, state: &mut State, producer: u8, call: Call) -> Reply {
        match call {
            Call::Load(epoch, rows) => self.each_table(epoch, |label| load(state, label, rows)),
            Call::Prepare(epoch) => self.each_table(epoch, |label| self.prepare(state, label)),
            Call::Abandon(epoch) => self.each_table(epoch, |label| roll_back(state, label)),
            Call::Commit(label) => self.commit(state, label),
            Call::RollBack(label) => roll_back(state, label),
            Call::Send(pending, valid) => {
                if valid {
                    state.pending[usize::from(producer)] = Some(pending);
                }
                if valid { Reply::Ok } else { Reply::Refused }
            }
            Call::Plain(pending) => {
                let member = usize::from(producer);
                let empty = !state.in_group.iter().any(|joined| *joined);
                let valid = state.in_group.get(member).copied().unwrap_or(false) || empty;
                if valid {
                    apply(state, pending);
                }
                if valid { Reply::Ok } else { Reply::Refused }
            }
            Call::End => match state.pending[usize::from(producer)].take() {
                Some(pending) => {
                    apply(state, pending);
                    Reply::Ok
                }
                // Timed out: the coordinator has fenced this producer.
                None => Reply::Unknown,
            },
            Call::Init => {
                state.pending[usize::from(producer)] = None;
                for slot in &mut state.late {
                    let fenced = |call| matches!(call, Call::Send(..) | Call::End | Call::Init);
                    if slot.is_some_and(|late| late.producer == producer && fenced(late.call)) {
                        *slot = None;
                    }
                }
                Reply::Ok
            }
        }
    }

    /// A request of every table; refused if it is for one.
    fn each_table(&self, epoch: Epoch, mut arrive: impl FnMut(Label) -> Reply) -> Reply {
        let mut all = Reply::Ok;
        for table in 0..self.bounds.tables {
            if arrive(Label { epoch, table }) != Reply::Ok {
                all = Reply::Refused;
            }
        }
        all
    }

    fn prepare(&self, state: &mut State, label: Label) -> Reply {
        let now = state.now;
        let count_matters = self.rules.on(Rule::RowCount);
        match state.transaction_mut(label) {
            Some(transaction) if transaction.state == LabelState::Prepare && transaction.rows != 0 => {
                transaction.state = LabelState::Prepared;
                transaction.since = now;
                if count_matters && transaction.twice { Reply::Refused } else { Reply::Ok }
            }
            Some(_) | None => Reply::Refused,
        }
    }

    fn commit(&self, state: &mut State, label: Label) -> Reply {
        let Some(transaction) = state.transaction_mut(label) else { return Reply::NotFound };
        match transaction.state {
            LabelState::Committed => Reply::Ok,
            LabelState::Aborted | LabelState::Unknown => Reply::Refused,
            // In PREPARE it prepares and commits in one phase.
            LabelState::Prepare | LabelState::Prepared => {
                transaction.state = LabelState::Committed;
                let (rows, twice) = (transaction.rows, transaction.twice);
                let table = &mut state.visible[usize::from(label.table)];
                state.doubled |= twice || *table & rows != 0;
                *table |= rows;
                Reply::Ok
            }
        }
    }
}

/// Begins where nothing is, and appends where something is: StarRocks does not know a body again.
fn load(state: &mut State, label: Label, rows: Mask) -> Reply {
    match state.label_state(label) {
        LabelState::Unknown | LabelState::Aborted => state.begin(label),
        LabelState::Prepare => {}
        LabelState::Prepared | LabelState::Committed => return Reply::Refused,
    }
    if let Some(transaction) = state.transaction_mut(label) {
        transaction.twice |= transaction.rows != 0;
        transaction.rows |= rows;
    }
    Reply::Ok
}

fn roll_back(state: &mut State, label: Label) -> Reply {
    if let Some(transaction) = state.transaction_mut(label)
        && transaction.state != LabelState::Committed
    {
        transaction.state = LabelState::Aborted;
    }
    Reply::Ok
}

/// The offsets become the committed ones. Kafka does not ask who owns the partition.
fn apply(state: &mut State, pending: Pending) {
    for partition in 0..PARTITIONS {
        if pending.named & (1 << partition) != 0 {
            let committed = &mut state.committed[partition];
            committed.from = match pending.note {
                Note::Decision { .. } => committed.offset,
                Note::None | Note::Claim { .. } => pending.offsets[partition],
            };
            committed.offset = pending.offsets[partition];
            committed.note = pending.note;
            committed.before = pending.before[partition];
        }
    }
}

/// A new generation: all that was captured before is of an old one.
pub(super) fn new_generation(state: &mut State) {
    for member in &mut state.members {
        member.valid = false;
    }
    for slot in &mut state.late {
        if slot.is_some_and(|late| matches!(late.call, Call::Send(..))) {
            *slot = None;
        }
    }
}

/// Who is to have `partition`, by the members that are in the group.
pub(super) fn target(state: &State, partition: usize) -> Option<u8> {
    match state.in_group {
        [true, true] => u8::try_from(partition).ok(),
        [true, false] => Some(0),
        [false, true] => Some(1),
        [false, false] => None,
    }
}

/// The group has changed: partitions without an owner get one, in a new generation.
pub(super) fn rebalance(state: &mut State) {
    for partition in 0..PARTITIONS {
        let gone = state.owner[partition].is_some_and(|owner| !state.in_group[usize::from(owner)]);
        if gone || state.owner[partition].is_none() {
            state.owner[partition] = target(state, partition);
        }
    }
    new_generation(state);
}
