//! A member: what it sends in each phase, and what an answer makes of it.

use super::recovery::{Fate, Label, LabelState, Note, Plan, Read, fate, plan};
use super::servers::Reply;
use super::state::{Call, Mask, Member, PARTITIONS, Pending, Phase, State, Write};
use super::{ExactlyOnce, Rule};

impl ExactlyOnce {
    /// The request that member `m` has on its way.
    pub(super) fn call(&self, state: &State, m: usize) -> Option<Call> {
        let member = &state.members[m];
        let label = |table| Label { epoch: member.epoch, table };
        match member.phase {
            Phase::Out
            | Phase::Read
            | Phase::Plan
            | Phase::Gather
            | Phase::Decide
            | Phase::Settle
            | Phase::Halted => None,
            Phase::Recover(Plan::Commit(label)) => Some(Call::Commit(label)),
            Phase::Recover(Plan::RollBack(label)) => Some(Call::RollBack(label)),
            Phase::Recover(Plan::Wait | Plan::Claim | Plan::Gather | Plan::Reload(_) | Plan::Halt(_)) => None,
            Phase::Load => Some(Call::Load(member.epoch, self.rows(member))),
            Phase::Prepare => Some(Call::Prepare(member.epoch)),
            Phase::Send(write) if self.plain(write) => Some(Call::Plain(self.pending(member, write))),
            Phase::Send(write) => {
                let at_sending = write == Write::Decision
                    && !(self.rules.on(Rule::ExplicitGeneration) && self.rules.on(Rule::CheckUnderLock));
                let valid = if at_sending { state.in_group[m] } else { member.valid };
                Some(Call::Send(self.pending(member, write), valid))
            }
            Phase::End(_) => Some(Call::End),
            Phase::Init(_) => Some(Call::Init),
            Phase::Commit(table) => Some(Call::Commit(label(table))),
            Phase::RollBack => Some(Call::Abandon(member.epoch)),
        }
    }

    /// Whether `write` is a plain offset commit, in a mutation.
    pub(super) fn plain(&self, write: Write) -> bool {
        match write {
            Write::Claim => !self.rules.on(Rule::TransactionalClaim),
            Write::Decision => !self.rules.on(Rule::KafkaTransaction),
        }
    }

    /// The records of the epoch in hand.
    fn rows(&self, member: &Member) -> Mask {
        let mut rows = 0;
        for partition in 0..PARTITIONS {
            for record in member.at[partition]..member.upto[partition] {
                rows |= self.row(partition, record);
            }
        }
        rows
    }

    /// What a member writes to Kafka.
    fn pending(&self, member: &Member, write: Write) -> Pending {
        let (named, all, note) = match write {
            Write::Claim => (member.owns, member.at, Note::Claim { next: member.epoch }),
            Write::Decision => {
                let Member { epoch, prepared_at, decided_at, .. } = *member;
                (member.named, member.upto, Note::Decision { epoch, prepared_at, decided_at })
            }
        };
        let mut offsets = [0; PARTITIONS];
        for partition in 0..PARTITIONS {
            if named & (1 << partition) != 0 {
                offsets[partition] = all[partition];
            }
        }
        let mut before = [Default::default(); PARTITIONS];
        for partition in (0..PARTITIONS)
            .filter(|p| write == Write::Claim && named & (1 << p) != 0 && self.rules.on(Rule::NameBefore))
        {
            before[partition] = member.seen[partition].note.next().unwrap_or_default();
        }
        Pending { named, offsets, note, before }
    }

    /// Member `m` gets `reply` to its request.
    pub(super) fn resume(&self, state: &mut State, m: usize, reply: Reply) {
        let phase = state.members[m].phase;
        let next = match phase {
            Phase::Recover(_) => Phase::Plan,
            Phase::Load => match reply {
                Reply::Ok => {
                    state.members[m].prepared_at = state.now;
                    Phase::Prepare
                }
                Reply::Unknown if !self.rules.on(Rule::NoSecondBody) => phase,
                Reply::Refused | Reply::NotFound | Reply::Unknown => Phase::RollBack,
            },
            Phase::Prepare => match reply {
                Reply::Unknown if self.rules.on(Rule::SeenPrepared) => Phase::RollBack,
                Reply::Refused | Reply::NotFound => Phase::RollBack,
                Reply::Ok | Reply::Unknown if self.bounds.prepared_timeout > 0 => Phase::Decide,
                Reply::Ok | Reply::Unknown => return self.decide(state, m),
            },
            Phase::Send(write) => match self.sent(state, m, write, reply) {
                Phase::Prepare => return self.decide(state, m),
                next => next,
            },
            Phase::End(write) => match reply {
                Reply::Ok => self.written(state, m, write),
                Reply::Refused | Reply::NotFound | Reply::Unknown => self.unclean(write),
            },
            Phase::Init(write) => match (reply, write) {
                (Reply::Ok, Write::Claim) => Phase::Read,
                (Reply::Ok, Write::Decision) => Phase::Settle,
                (Reply::Refused | Reply::NotFound | Reply::Unknown, _) => phase,
            },
            Phase::Commit(table) => self.committed(state, m, table, reply),
            Phase::RollBack => self.rolled_back(state, m, reply),
            Phase::Out
            | Phase::Read
            | Phase::Plan
            | Phase::Gather
            | Phase::Decide
            | Phase::Settle
            | Phase::Halted => phase,
        };
        self.enter(state, m, next);
    }

    /// Enters a phase; what the phase does not need is forgotten, so that equal futures are equal states.
    pub(super) fn enter(&self, state: &mut State, m: usize, phase: Phase) {
        if phase == Phase::Plan && state.members[m].phase != Phase::Read && self.bounds.prepared_timeout == 0
        {
            return self.follow_plan(state, m);
        }
        let member = &mut state.members[m];
        let out = phase == Phase::Gather && member.owns == 0;
        member.phase = if out { Phase::Out } else { phase };
        if !matches!(
            member.phase,
            Phase::Plan | Phase::Recover(_) | Phase::Send(Write::Claim) | Phase::End(Write::Claim)
        ) {
            member.seen = Default::default();
            member.seen_at = 0;
            member.claimed = false;
        }
        if matches!(member.phase, Phase::Out | Phase::Read | Phase::Gather) {
            member.upto = [0; PARTITIONS];
            member.named = 0;
            member.prepared_at = 0;
            member.decided_at = 0;
        }
        if !matches!(member.phase, Phase::Send(_)) {
            member.valid = false;
        }
        if matches!(member.phase, Phase::Out | Phase::Read) {
            member.at = [0; PARTITIONS];
            member.undone = false;
            if self.rules.on(Rule::StemPerAssignment) {
                member.epoch = Default::default();
                member.base = 0;
            }
        }
    }

    fn sent(&self, state: &mut State, m: usize, write: Write, reply: Reply) -> Phase {
        match (reply, write) {
            (Reply::Ok, _) if self.plain(write) => self.written(state, m, write),
            (Reply::Ok, _) => Phase::End(write),
            (Reply::Refused | Reply::NotFound, Write::Claim) => Phase::Read,
            (Reply::Refused | Reply::NotFound, Write::Decision) => {
                let unchanged = state.in_group[m] && !state.told_to_change(m);
                if unchanged && self.rules.on(Rule::RetryGeneration) {
                    Phase::Prepare
                } else {
                    Phase::RollBack
                }
            }
            (Reply::Unknown, Write::Claim) if self.plain(write) => Phase::Read,
            (Reply::Unknown, _) => self.unclean(write),
        }
    }

    /// The answer leaves open whether the offsets were written.
    fn unclean(&self, write: Write) -> Phase {
        let looked_into = write == Write::Claim || self.rules.on(Rule::UncleanIsUnknown);
        let by_init = self.rules.on(Rule::InitBeforeReading) && !self.plain(write);
        match (looked_into, by_init, write) {
            (false, _, _) => Phase::RollBack,
            (true, true, _) => Phase::Init(write),
            (true, false, Write::Claim) => Phase::Read,
            (true, false, Write::Decision) => Phase::Settle,
        }
    }

    fn written(&self, state: &mut State, m: usize, write: Write) -> Phase {
        let member = &mut state.members[m];
        match write {
            Write::Decision => Phase::Commit(0),
            Write::Claim => {
                member.undone = false;
                member.base = member.epoch.seq;
                member.claimed = true;
                Phase::Plan
            }
        }
    }

    fn committed(&self, state: &mut State, m: usize, table: u8, reply: Reply) -> Phase {
        let member = &mut state.members[m];
        let done = match reply {
            Reply::Ok => true,
            Reply::Unknown => return member.phase,
            Reply::Refused => return Phase::Halted,
            Reply::NotFound => {
                let known = fate(
                    LabelState::Unknown,
                    member.prepared_at,
                    member.decided_at,
                    state.now,
                    &self.terms(),
                );
                known == Fate::Done
            }
        };
        if !done {
            return Phase::Halted;
        }
        if table + 1 < self.bounds.tables {
            return Phase::Commit(table + 1);
        }
        for partition in 0..PARTITIONS {
            member.at[partition] = member.at[partition].max(member.upto[partition]);
        }
        member.epoch.seq += 1;
        member.base = member.epoch.seq;
        member.undone = true;
        after(member)
    }

    fn rolled_back(&self, state: &mut State, m: usize, reply: Reply) -> Phase {
        let member = &mut state.members[m];
        if reply == Reply::Unknown {
            return member.phase;
        }
        if self.rules.on(Rule::FreshAfterRollback) {
            member.epoch.seq += 1;
        }
        if !self.rules.on(Rule::ReadAgain) {
            for partition in 0..PARTITIONS {
                member.at[partition] = member.at[partition].max(member.upto[partition]);
            }
        }
        after(member)
    }

    /// Reads the committed offsets, if Kafka gives them out. The first act under a new stem.
    pub(super) fn read(&self, state: &mut State, m: usize) -> bool {
        let owns = state.members[m].owns;
        if self.rules.on(Rule::StableRead) && state.unstable(owns) {
            return false;
        }
        if state.members[m].epoch.stem == 0 {
            state.members[m].epoch.stem = state.fresh_stem();
        }
        self.enter(state, m, Phase::Plan);
        let (committed, now) = (state.committed, state.now);
        let member = &mut state.members[m];
        for (partition, committed) in committed.into_iter().enumerate().filter(|(p, _)| owns & (1 << p) != 0)
        {
            member.seen[partition] = committed;
        }
        member.seen_at = if self.rules.on(Rule::ClockAfterStates) { 0 } else { now };
        if !self.rules.on(Rule::CommitBeforeClaim) {
            self.claim(state, m, None);
        } else if self.bounds.prepared_timeout == 0 {
            self.follow_plan(state, m);
        }
        true
    }

    /// Does what [`plan`] says.
    pub(super) fn follow_plan(&self, state: &mut State, m: usize) {
        let member = &state.members[m];
        let owned = |partition: &usize| member.owns & (1 << partition) != 0;
        let reads: Vec<Read> = (0..PARTITIONS).filter(owned).map(|p| Read::Stable(member.seen[p])).collect();
        let now = if self.rules.on(Rule::ClockAfterStates) { state.now } else { member.seen_at };
        match plan(&reads, member.claimed, |label| state.label_state(label), now, &self.terms()) {
            Plan::Wait => {}
            Plan::Gather => self.enter(state, m, Phase::Gather),
            Plan::Claim => self.claim(state, m, None),
            Plan::Reload(epoch) => self.claim(state, m, Some(epoch)),
            Plan::Halt(_) => self.enter(state, m, Phase::Halted),
            order @ (Plan::Commit(_) | Plan::RollBack(_)) => self.enter(state, m, Phase::Recover(order)),
        }
    }

    /// Begins to write the claim, at the committed offsets, or where the decision `again` began.
    fn claim(&self, state: &mut State, m: usize, again: Option<super::recovery::Epoch>) {
        let valid = state.in_group[m];
        let member = &mut state.members[m];
        for partition in 0..PARTITIONS {
            let seen = member.seen[partition];
            let reload = matches!(seen.note, Note::Decision { epoch, .. } if Some(epoch) == again);
            member.at[partition] = if reload { seen.from } else { seen.offset };
        }
        member.phase = Phase::Send(Write::Claim);
        member.valid = valid;
    }

    /// The last check, and the first call of the decision.
    pub(super) fn decide(&self, state: &mut State, m: usize) {
        let valid = state.in_group[m];
        let now = state.now;
        let member = &mut state.members[m];
        let changed = member.named & !member.owns != 0;
        let late = now > member.prepared_at + self.bounds.prepared_timeout / 2;
        if (changed && self.rules.on(Rule::CheckUnderLock)) || (late && self.rules.on(Rule::HalfTimeout)) {
            self.enter(state, m, Phase::RollBack);
            return;
        }
        member.decided_at = now;
        self.enter(state, m, Phase::Send(Write::Decision));
        state.members[m].valid = valid;
    }

    /// Asks Kafka whether the decision in hand was made.
    pub(super) fn settle(&self, state: &mut State, m: usize) -> bool {
        let member = &state.members[m];
        if self.rules.on(Rule::StableRead) && state.unstable(member.named) {
            return false;
        }
        let named = |partition: usize| {
            member.named & (1 << partition) != 0
                && matches!(state.committed[partition].note, Note::Decision { epoch, .. } if epoch == member.epoch)
        };
        let next = if (0..PARTITIONS).any(named) { Phase::Commit(0) } else { Phase::RollBack };
        self.enter(state, m, next);
        true
    }
}

/// Where an epoch has ended: a partition that went in its midst ends the stem, in mutations.
fn after(member: &Member) -> Phase {
    if member.owns != 0 && member.named & !member.owns != 0 { Phase::Read } else { Phase::Gather }
}

impl State {
    /// Whether a Kafka transaction on one of these partitions is not over.
    pub(super) fn unstable(&self, partitions: Mask) -> bool {
        self.pending.iter().flatten().any(|pending| pending.named & partitions != 0)
    }
}
