//! Exactly once from Kafka: delivery.md §3.

pub mod group;
pub mod member;
pub mod recovery;
pub mod rules;
pub mod servers;
pub mod state;
pub mod trials;

pub use rules::{Rule, Rules};

use crate::explore::Model;
use group::Told;
use recovery::{Label, LabelState, Note, Terms};
use servers::Reply;
use state::{Budget, Call, DEAD, MEMBERS, Mask, Member, PARTITIONS, PerPartition, Phase, State};

/// How much happens at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Processes: 1 or 2.
    pub members: usize,
    /// Records of each partition; all partitions together at most 8.
    pub records: PerPartition<u8>,
    /// Tables; each record makes a row in each.
    pub tables: u8,
    /// Numbers that may be used after a note.
    pub window: u8,
    /// Faults.
    pub faults: Budget,
    /// In units of time; 0 = no time passes.
    pub prepared_timeout: u8,
    /// "Less an hour", in units of time.
    pub margin: u8,
    /// Members with nothing to read write that all is done.
    pub done: bool,
    /// Nothing may stay open that nobody looks for.
    pub tidy: bool,
}

/// The protocol, within bounds, with some rules perhaps off.
#[derive(Debug, Clone, Copy)]
pub struct ExactlyOnce {
    /// How much happens.
    pub bounds: Bounds,
    /// What the members keep to.
    pub rules: Rules,
}

/// What happens between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A process joins the group.
    Joins(usize),
    /// The group takes a member for dead; it may be.
    SessionEnds(usize),
    /// A process dies.
    Dies(usize),
    /// ... and its request may still arrive.
    DiesWhileSending(usize),
    /// Another begins in its place.
    Restarts(usize),
    /// The rebalance callback is served.
    Serves(usize, Told),
    /// ... and the request that was on its way may still arrive.
    ServesWhileSending(usize, Told),
    /// A request arrives, and its answer too.
    Gets(usize, Call, Reply),
    /// A request arrives; its answer is lost.
    LosesAnswer(usize, Call),
    /// A sender stops waiting; the request may still arrive.
    GivesUpWaiting(usize, Call),
    /// A request without a sender arrives.
    ArrivesLate(Call, Reply),
    /// A step inside a member, from this phase.
    Does(usize, Phase),
    /// Records are taken, of these partitions.
    Takes(usize, Mask),
    /// It has nothing to read and writes that all is done; or its numbers are used up and it begins anew.
    ClaimsAnew(usize),
    /// Kafka aborts a transaction that takes too long.
    KafkaAborts(usize),
    /// StarRocks aborts a transaction.
    StarRocksAborts(Label),
    /// StarRocks forgets a finished transaction.
    StarRocksForgets(Label),
    /// Time passes.
    Ticks,
}

impl ExactlyOnce {
    fn terms(&self) -> Terms {
        let on = |rule| self.rules.on(rule);
        Terms {
            tables: self.bounds.tables,
            window: if on(Rule::Window) { self.bounds.window } else { 1 },
            prepared_timeout: self.bounds.prepared_timeout.max(1),
            margin: self.bounds.margin,
            from_prepare: on(Rule::AgeFromPrepare),
            unknown_is_committed: on(Rule::UnknownIsCommitted),
            old_halts: on(Rule::OldHalts),
            commit_decided: on(Rule::CommitDecided),
            roll_back_next: on(Rule::RollBackNext),
            claim_first: on(Rule::ClaimBeforeRollBack),
        }
    }

    /// The bit of a record.
    fn row(&self, partition: usize, record: u8) -> Mask {
        let before: u8 = self.bounds.records[..partition].iter().sum();
        1 << (before + record)
    }

    /// Calls to servers: they arrive or not, answers come or not.
    fn calls(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let Some(call) = self.call(state, m) else { return };
        let producer = u8::try_from(m).unwrap_or(u8::MAX);
        let mut answered = state.clone();
        let reply = self.arrive(&mut answered, producer, call);
        if state.budget.lost > 0 && reply != Reply::Unknown {
            let mut next = answered.clone();
            next.budget.lost -= 1;
            self.resume(&mut next, m, Reply::Unknown);
            out.push((Step::LosesAnswer(m, call), next));
        }
        self.resume(&mut answered, m, reply);
        out.push((Step::Gets(m, call, reply), answered));
        let mut next = state.clone();
        if self.leave_behind(&mut next, m, call) {
            self.resume(&mut next, m, Reply::Unknown);
            out.push((Step::GivesUpWaiting(m, call), next));
        }
        self.partly_written(state, m, call, out);
    }

    /// A plain commit of several partitions can be done for one of them only, and the client not know.
    fn partly_written(&self, state: &State, m: usize, call: Call, out: &mut Vec<(Step, State)>) {
        let Call::Plain(mut pending) = call else { return };
        if self.rules.on(Rule::AllOrNone) || state.budget.lost == 0 || pending.named.count_ones() < 2 {
            return;
        }
        pending.named &= 1;
        let mut next = state.clone();
        next.budget.lost -= 1;
        let reply = self.arrive(&mut next, u8::try_from(m).unwrap_or(u8::MAX), Call::Plain(pending));
        if reply == Reply::Ok {
            self.resume(&mut next, m, Reply::Unknown);
            out.push((Step::LosesAnswer(m, Call::Plain(pending)), next));
        }
    }

    /// Steps inside a member.
    fn local(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let phase = state.members[m].phase;
        let mut next = state.clone();
        let taken = match phase {
            Phase::Read => self.read(&mut next, m),
            Phase::Plan => {
                self.follow_plan(&mut next, m);
                true
            }
            Phase::Decide => {
                self.decide(&mut next, m);
                true
            }
            Phase::Settle => self.settle(&mut next, m),
            Phase::Gather => {
                self.gather(state, m, out);
                false
            }
            Phase::Commit(_) if !self.rules.on(Rule::CommitBeforeNext) && state.in_group[m] => {
                let member = &state.members[m];
                for partition in (0..PARTITIONS).filter(|p| member.named & (1 << p) != 0) {
                    next.committed[partition].note = Note::Claim { next: member.epoch.plus(1) };
                }
                true
            }
            _ => false,
        };
        if taken {
            out.push((Step::Does(m, phase), next));
        }
    }

    /// Takes the next record of some partitions, or says that all is done.
    fn gather(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let member = &state.members[m];
        if state.told_to_change(m) {
            return;
        }
        if self.rules.on(Rule::Window) && member.epoch.seq >= member.base + self.bounds.window {
            let mut next = state.clone();
            self.enter(&mut next, m, Phase::Read);
            out.push((Step::ClaimsAnew(m), next));
            return;
        }
        let ready = |p: usize| member.owns & (1 << p) != 0 && member.at[p] < self.bounds.records[p];
        let available = (0..PARTITIONS).filter(|p| ready(*p)).fold(0, |mask, p| mask | 1 << p);
        if available == 0 {
            if member.undone && self.bounds.done {
                let mut next = state.clone();
                let valid = state.in_group[m];
                self.enter(&mut next, m, Phase::Send(state::Write::Claim));
                next.members[m].valid = valid;
                out.push((Step::ClaimsAnew(m), next));
            }
            return;
        }
        for take in (1..=available).filter(|take| take & !available == 0) {
            let mut next = state.clone();
            let chosen = &mut next.members[m];
            chosen.upto = chosen.at;
            for partition in (0..PARTITIONS).filter(|p| take & (1 << p) != 0) {
                chosen.upto[partition] += 1;
            }
            chosen.named = if self.rules.on(Rule::NameAllOwned) { chosen.owns } else { take };
            self.enter(&mut next, m, Phase::Load);
            out.push((Step::Takes(m, take), next));
        }
    }

    /// What servers do by themselves, and what arrives late.
    fn servers(&self, state: &State, out: &mut Vec<(Step, State)>) {
        for (slot, late) in state.late.iter().enumerate() {
            let Some(late) = late else { continue };
            let mut next = state.clone();
            next.late[slot] = None;
            let reply = self.arrive(&mut next, late.producer, late.call);
            out.push((Step::ArrivesLate(late.call, reply), next));
        }
        for producer in 0..=MEMBERS {
            if state.pending[producer].is_some() && (producer == DEAD || state.budget.aborts > 0) {
                let mut next = state.clone();
                next.pending[producer] = None;
                next.budget.aborts -= u8::from(producer != DEAD);
                out.push((Step::KafkaAborts(producer), next));
            }
        }
        if state.budget.ticks > 0 {
            let mut next = state.clone();
            next.budget.ticks -= 1;
            next.now += 1;
            out.push((Step::Ticks, next));
        }
        for transaction in state.transactions.iter().flatten() {
            let label = transaction.label;
            let timeout = self.bounds.prepared_timeout;
            let expired = timeout > 0 && state.now >= transaction.since + timeout;
            let abort = |paid: u8| {
                let mut next = state.clone();
                next.budget.aborts -= paid;
                if let Some(transaction) = next.transaction_mut(label) {
                    transaction.state = LabelState::Aborted;
                }
                (Step::StarRocksAborts(label), next)
            };
            match transaction.state {
                LabelState::Prepare if state.budget.aborts > 0 => out.push(abort(1)),
                LabelState::Prepared if expired => out.push(abort(0)),
                LabelState::Committed | LabelState::Aborted if state.budget.forgets > 0 => {
                    let mut next = state.clone();
                    next.budget.forgets -= 1;
                    next.forget(label);
                    out.push((Step::StarRocksForgets(label), next));
                }
                LabelState::Prepare | LabelState::Prepared => {}
                LabelState::Committed | LabelState::Aborted | LabelState::Unknown => {}
            }
        }
    }

    /// Whether record `record` of `partition` is behind the committed offset without being safe.
    fn missing(&self, state: &State, partition: usize, record: u8) -> bool {
        let row = self.row(partition, record);
        let note = state.committed[partition].note;
        (0..self.bounds.tables).any(|table| {
            if state.visible[usize::from(table)] & row != 0 {
                return false;
            }
            let Note::Decision { epoch, .. } = note else { return true };
            let transaction = state.transaction(Label { epoch, table });
            let prepared = transaction.is_some_and(|t| t.state == LabelState::Prepared && t.rows & row != 0);
            // Where time passes, a decision may time out; then whoever reads it must halt, and not write over it.
            !prepared && self.bounds.prepared_timeout == 0
        })
    }
}

impl Model for ExactlyOnce {
    type State = State;
    type Step = Step;

    fn starts(&self) -> Vec<State> {
        vec![State::new(self.bounds.faults)]
    }

    fn steps(&self, state: &State, out: &mut Vec<(Step, State)>) {
        for m in 0..self.bounds.members.min(MEMBERS) {
            if state.members[m].alive {
                self.calls(state, m, out);
                self.local(state, m, out);
                self.serve(state, m, out);
            }
            self.membership(state, m, out);
        }
        self.servers(state, out);
        for (_, next) in out.iter_mut() {
            next.normalize(self.bounds.window);
        }
        out.retain(|(_, next)| next != state);
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        if state.doubled {
            return Some("a row is visible twice");
        }
        for partition in 0..PARTITIONS {
            for record in 0..self.bounds.records[partition] {
                let row = self.row(partition, record);
                if record < state.committed[partition].offset {
                    if self.missing(state, partition, record) {
                        return Some(
                            "a record is behind the committed offset, and its rows will never be visible",
                        );
                    }
                } else if state.visible.iter().any(|table| table & row != 0) {
                    return Some("rows are visible of a record that will be read again");
                }
            }
        }
        let halted = |member: &Member| member.phase == Phase::Halted;
        if self.bounds.prepared_timeout == 0 && state.members.iter().any(halted) {
            return Some("a member halted without a cause");
        }
        if self.bounds.tidy && state.litter {
            return Some("a transaction stays open, and nobody will look for it");
        }
        None
    }

    fn ended(&self, state: &State) -> bool {
        let all = (1_u16 << self.bounds.records.iter().sum::<u8>()) - 1;
        let loaded = (0..usize::from(self.bounds.tables)).all(|table| u16::from(state.visible[table]) == all);
        let halted = state.members.iter().any(|member| member.phase == Phase::Halted);
        loaded || (halted && self.bounds.prepared_timeout > 0)
    }
}
