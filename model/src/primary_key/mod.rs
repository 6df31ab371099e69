//! Primary Key tables at least once, which do not go back in time: delivery.md §2.

pub mod state;
pub mod trials;

use crate::explore::Model;
use state::{
    Budget, Call, Label, Late, Load, LoadState, MEMBERS, Member, PARTITIONS, PerPartition, Phase, State,
};

/// A rule of delivery.md §2, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// The transaction exists before the validation. Off: body and begin follow the validation together.
    BeginFirst,
    /// One commit must succeed after the begin.
    Validate,
    /// ... in a generation of the group. Off: an empty group accepts a commit from anybody.
    GenerationChecked,
    /// What the predecessor may have open is cancelled.
    TakeOver,
    /// ... also what the member itself left open before it lost the partition (amended).
    OwnToo,
    /// ... and final, before the own claim is written.
    CancelBeforeClaim,
    /// A cancel without an answer is asked again.
    PollToFinal,
    /// A claim is extended before numbers beyond it are used.
    ExtendClaim,
    /// A partition is given up only when no load holds a row of it (§1 rule 4).
    SettleBeforeGiving,
    /// A body goes to the transaction that was begun for it (Stream Load). Off: to whatever has its label.
    BodyTied,
    /// A commit that its sender gave up does not arrive after a later one of the same sender (assumed).
    CommitsInOrder,
    /// Commits carry an explicit generation (amended). Off: an empty group takes a commit of anybody.
    FencedCommits,
}

/// Which rules are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(u16);

impl Rules {
    /// All of them.
    #[must_use]
    pub const fn all() -> Self {
        Self(u16::MAX)
    }

    /// All but `rules`.
    #[must_use]
    pub fn without(rules: &[Rule]) -> Self {
        Self(rules.iter().fold(u16::MAX, |on, rule| on & !(1 << *rule as u8)))
    }

    /// Whether `rule` is on.
    #[must_use]
    pub const fn on(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}

/// The protocol, within bounds.
#[derive(Debug, Clone, Copy)]
pub struct PrimaryKey {
    /// Records of each partition.
    pub records: PerPartition<u8>,
    /// Numbers that a claim covers.
    pub window: u8,
    /// Faults.
    pub faults: Budget,
    /// What the members keep to.
    pub rules: Rules,
}

/// What happens between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A process starts or joins again.
    Joins(usize),
    /// The group takes a member for dead; it may be.
    SessionEnds(usize),
    /// A process dies; its request never arrives.
    Dies(usize),
    /// A process dies; its request may arrive.
    DiesWhileSending(usize),
    /// The callback: everything is lost.
    Loses(usize),
    /// The callback: one partition is given up.
    Gives(usize, usize),
    /// The callback: partitions are assigned.
    Gains(usize, u8),
    /// A request arrives, and its answer.
    Gets(usize, Call, bool),
    /// A sender stops waiting; the request may still arrive.
    GivesUpWaiting(usize, Call),
    /// A request without a sender arrives.
    ArrivesLate(Call, bool),
    /// A step inside a member.
    Does(usize, Phase),
    /// Records of these partitions are taken.
    Takes(usize, u8),
    /// A load whose body has arrived commits, whoever lives.
    Commits(Label),
}

impl PrimaryKey {
    fn call(&self, member: &Member) -> Option<Call> {
        let mut rows = [0; PARTITIONS];
        for (partition, row) in rows.iter_mut().enumerate() {
            if member.upto[partition] > member.at[partition] {
                *row = member.upto[partition];
            }
        }
        let load =
            Load { label: member.label, state: LoadState::Begun, rows, term: member.term, orphan: false };
        match member.phase {
            Phase::Out | Phase::Read | Phase::Gather | Phase::Await => None,
            Phase::Cancel(label) => Some(Call::Cancel(label)),
            Phase::Claim => Some(Call::Commit(member.owns, member.at, member.label, true)),
            Phase::Begin => Some(Call::Begin(load)),
            Phase::Validate => Some(Call::Commit(member.owns, member.at, member.claim, false)),
            Phase::Body => Some(Call::Body(load)),
            Phase::Release => Some(Call::Commit(member.owns, member.upto, member.claim, false)),
        }
    }

    /// `call` arrives; whether it did what it was for.
    fn arrive(&self, state: &mut State, call: Call, valid: bool) -> bool {
        match call {
            Call::Begin(load) => match state.load_state(load.label) {
                // Its own, or of a connection that was given up: that one is cancelled, and begun again.
                None | Some(LoadState::Aborted | LoadState::Begun) => {
                    state.begin(load);
                    let body =
                        |late: &Late| matches!(late.call, Call::Body(other) if other.label == load.label);
                    if self.rules.on(Rule::BodyTied) {
                        state.late = state.late.filter(|late| !body(late));
                    }
                    true
                }
                Some(LoadState::Loading | LoadState::Committed) => false,
            },
            Call::Body(load) => {
                if !self.rules.on(Rule::BeginFirst)
                    && matches!(state.load_state(load.label), None | Some(LoadState::Aborted))
                {
                    state.begin(load);
                }
                match state.load_mut(load.label) {
                    Some(known)
                        if known.state == LoadState::Begun
                            && !(known.orphan && self.rules.on(Rule::BodyTied)) =>
                    {
                        known.state = LoadState::Loading;
                        true
                    }
                    Some(_) | None => false,
                }
            }
            Call::Cancel(label) => {
                if let Some(load) = state.load_mut(label)
                    && load.state != LoadState::Committed
                {
                    load.state = LoadState::Aborted;
                }
                true
            }
            Call::Commit(named, offsets, claim, _) => {
                let empty = !self.rules.on(Rule::FencedCommits) && state.in_group == [false; MEMBERS];
                if valid || empty {
                    for partition in (0..PARTITIONS).filter(|p| named & (1 << p) != 0) {
                        state.committed[partition].offset = offsets[partition];
                        state.committed[partition].claim = claim;
                    }
                }
                valid || (empty && !self.rules.on(Rule::GenerationChecked))
            }
        }
    }

    /// Member `m` gets an answer, or none.
    fn resume(&self, state: &mut State, m: usize, reply: Option<bool>) {
        let member = &mut state.members[m];
        member.phase = match (member.phase, reply) {
            (Phase::Cancel(_), None) if self.rules.on(Rule::PollToFinal) => member.phase,
            (Phase::Cancel(label), None) => {
                for seen in member.seen.iter_mut().filter(|seen| seen.claim.stem == label.stem) {
                    seen.claim = Label::default();
                }
                return self.cancel_next(state, m);
            }
            (Phase::Cancel(_), Some(_)) => return self.cancel_next(state, m),
            (Phase::Claim, Some(true)) => {
                if member.term == 0 {
                    state.terms += 1;
                    member.term = state.terms;
                }
                member.claim = member.label;
                if !self.rules.on(Rule::CancelBeforeClaim) {
                    return self.cancel_next(state, m);
                }
                Phase::Gather
            }
            (Phase::Claim, Some(false) | None) => Phase::Read,
            (Phase::Begin, Some(true)) if self.rules.on(Rule::Validate) => Phase::Validate,
            (Phase::Begin, Some(true)) => Phase::Body,
            // Its body got there after all.
            (Phase::Begin, Some(false)) => Phase::Await,
            (Phase::Begin, None) => Phase::Begin,
            (Phase::Validate, Some(true)) => Phase::Body,
            (Phase::Validate, Some(false) | None) => Phase::Validate,
            (Phase::Body, _) => Phase::Await,
            (Phase::Release, Some(true)) => {
                member.at = member.upto;
                member.label.seq += 1;
                Phase::Gather
            }
            (Phase::Release, Some(false) | None) => Phase::Release,
            (phase @ (Phase::Out | Phase::Read | Phase::Gather | Phase::Await), _) => phase,
        };
        if matches!(member.phase, Phase::Gather | Phase::Read) {
            member.upto = [0; PARTITIONS];
        }
        if member.phase == Phase::Gather {
            member.seen = Default::default();
        }
    }

    /// The next open label of the predecessors' windows; then the claim.
    fn cancel_next(&self, state: &mut State, m: usize) {
        let own = state.members[m].label.stem;
        let mut labels = Vec::new();
        let own_too = self.rules.on(Rule::OwnToo);
        for seen in state.members[m]
            .seen
            .iter()
            .filter(|seen| seen.claim.stem != 0 && (own_too || seen.claim.stem != own))
        {
            labels.extend((0..self.window).map(|n| Label { stem: seen.claim.stem, seq: seen.claim.seq + n }));
        }
        labels.sort_unstable();
        let open =
            |label: &Label| matches!(state.load_state(*label), Some(LoadState::Begun | LoadState::Loading));
        let next = labels.into_iter().find(open).filter(|_| self.rules.on(Rule::TakeOver));
        let claimed = !self.rules.on(Rule::CancelBeforeClaim);
        state.members[m].phase = match next {
            Some(label) => Phase::Cancel(label),
            None if claimed => Phase::Gather,
            None => Phase::Claim,
        };
        if next.is_none() {
            state.members[m].seen = Default::default();
        }
    }

    fn read(&self, state: &mut State, m: usize) {
        let committed = state.committed;
        let member = &mut state.members[m];
        for (partition, committed) in committed.into_iter().enumerate() {
            let owned = member.owns & (1 << partition) != 0;
            member.seen[partition] = if owned { committed } else { Default::default() };
            member.at[partition] = member.seen[partition].offset;
        }
        if self.rules.on(Rule::CancelBeforeClaim) {
            self.cancel_next(state, m);
        } else {
            member.phase = Phase::Claim;
        }
    }

    fn local(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let member = &state.members[m];
        match member.phase {
            Phase::Read => {
                let mut next = state.clone();
                self.read(&mut next, m);
                out.push((Step::Does(m, Phase::Read), next));
            }
            Phase::Gather => self.gather(state, m, out),
            Phase::Await => {
                let after = match state.load_state(member.label) {
                    Some(LoadState::Committed) => Phase::Release,
                    // Cancelled, or its body never came: the same bytes under the same label, from the begin on.
                    Some(LoadState::Aborted | LoadState::Begun) | None => Phase::Begin,
                    Some(LoadState::Loading) => return,
                };
                let mut next = state.clone();
                next.members[m].phase = after;
                out.push((Step::Does(m, Phase::Await), next));
            }
            Phase::Out
            | Phase::Cancel(_)
            | Phase::Claim
            | Phase::Begin
            | Phase::Validate
            | Phase::Body
            | Phase::Release => {}
        }
    }

    fn gather(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let member = &state.members[m];
        if self.rules.on(Rule::ExtendClaim) && member.label.seq >= member.claim.seq + self.window {
            let mut next = state.clone();
            next.members[m].phase = Phase::Claim;
            out.push((Step::Does(m, Phase::Gather), next));
            return;
        }
        let ready = |p: usize| member.owns & (1 << p) != 0 && member.at[p] < self.records[p];
        let available = (0..PARTITIONS).filter(|p| ready(*p)).fold(0_u8, |mask, p| mask | 1 << p);
        for take in (1..=available).filter(|take| take & !available == 0) {
            let mut next = state.clone();
            let chosen = &mut next.members[m];
            chosen.upto = chosen.at;
            for partition in (0..PARTITIONS).filter(|p| take & (1 << p) != 0) {
                chosen.upto[partition] += 1;
            }
            let begin = self.rules.on(Rule::BeginFirst);
            chosen.phase = if begin { Phase::Begin } else { Phase::Validate };
            out.push((Step::Takes(m, take), next));
        }
    }

    fn calls(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let Some(call) = self.call(&state.members[m]) else { return };
        let valid = state.in_group[m];
        let mut next = state.clone();
        let done = self.arrive(&mut next, call, valid);
        let older = |late: &Late| usize::from(late.by) == m && matches!(late.call, Call::Commit(..));
        if self.rules.on(Rule::CommitsInOrder) && matches!(call, Call::Commit(..)) {
            next.late = next.late.filter(|late| !older(late));
        }
        self.resume(&mut next, m, Some(done));
        out.push((Step::Gets(m, call, done), next));
        let mut next = state.clone();
        if leave(&mut next, m, call, valid) {
            self.resume(&mut next, m, None);
            out.push((Step::GivesUpWaiting(m, call), next));
        }
    }

    fn membership(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let member = &state.members[m];
        let mut push = |step, change: &dyn Fn(&mut State) -> bool| {
            let mut next = state.clone();
            if change(&mut next) {
                out.push((step, next));
            }
        };
        if !member.joined && !state.in_group[m] {
            push(Step::Joins(m), &|next| {
                if !member.alive {
                    next.stems += 1;
                    next.members[m] = Member {
                        alive: true,
                        label: Label { stem: next.stems, seq: 0 },
                        ..Member::default()
                    };
                }
                next.members[m].joined = true;
                next.in_group[m] = true;
                next.rebalance();
                true
            });
        }
        if state.in_group[m] && (!member.alive || (member.joined && state.budget.kicks > 0)) {
            push(Step::SessionEnds(m), &|next| {
                next.budget.kicks -= u8::from(member.alive);
                next.in_group[m] = false;
                next.rebalance();
                true
            });
        }
        if member.alive && state.budget.crashes > 0 {
            let die = |next: &mut State| {
                next.budget.crashes -= 1;
                if let Some(late) = next.late.as_mut().filter(|late| usize::from(late.by) == m) {
                    late.by = MEMBERS as u8;
                }
                next.members[m] = Member::default();
                true
            };
            push(Step::Dies(m), &die);
            push(Step::DiesWhileSending(m), &|next| {
                self.call(member).is_some_and(|call| leave(next, MEMBERS, call, state.in_group[m]))
                    && die(next)
            });
        }
    }

    /// The rebalance callback. A member with rows on their way gives nothing up, unless it has lost it.
    fn serve(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let member = &state.members[m];
        if !member.joined {
            return;
        }
        let stop = |next: &mut State| {
            let member = &mut next.members[m];
            // A number whose load is open or done is not used again for other rows.
            member.label.seq += u8::from(member.at_work());
            member.phase = if member.owns == 0 { Phase::Out } else { Phase::Read };
            (member.at, member.upto, member.seen) = Default::default();
            (member.claim, member.term) = Default::default();
        };
        if !state.in_group[m] {
            let mut next = state.clone();
            next.members[m].owns = 0;
            next.members[m].joined = false;
            stop(&mut next);
            out.push((Step::Loses(m), next));
            return;
        }
        let open = matches!(member.phase, Phase::Body | Phase::Await | Phase::Release);
        for partition in 0..PARTITIONS {
            let bit = 1 << partition;
            let own = state.owner[partition].map(usize::from) == Some(m);
            let away = state.target(partition).map(usize::from) != Some(m);
            let settled = !open || !self.rules.on(Rule::SettleBeforeGiving);
            if own && away && member.owns & bit != 0 && settled {
                let mut next = state.clone();
                next.members[m].owns &= !bit;
                next.owner[partition] = next.target(partition);
                next.rebalance();
                stop(&mut next);
                out.push((Step::Gives(m, partition), next));
            }
        }
        let new = |p: &usize| state.owner[*p].map(usize::from) == Some(m) && member.owns & (1 << p) == 0;
        let gained = (0..PARTITIONS).filter(new).fold(0, |mask, p| mask | 1 << p);
        if gained != 0 && !open {
            let mut next = state.clone();
            next.members[m].owns |= gained;
            stop(&mut next);
            out.push((Step::Gains(m, gained), next));
        }
    }
}

/// `call` may arrive at any time from now on; `false` if there is no room.
fn leave(state: &mut State, by: usize, call: Call, valid: bool) -> bool {
    if state.late.is_some() || state.budget.late == 0 {
        return false;
    }
    state.budget.late -= 1;
    state.late = Some(Late { by: u8::try_from(by).unwrap_or(u8::MAX), call, valid });
    true
}

impl Model for PrimaryKey {
    type State = State;
    type Step = Step;

    fn starts(&self) -> Vec<State> {
        vec![State::new(self.faults)]
    }

    fn steps(&self, state: &State, out: &mut Vec<(Step, State)>) {
        for m in 0..MEMBERS {
            if state.members[m].alive {
                self.calls(state, m, out);
                self.local(state, m, out);
                self.serve(state, m, out);
            }
            self.membership(state, m, out);
        }
        if let Some(late) = state.late {
            let mut next = state.clone();
            next.late = None;
            let call = match late.call {
                Call::Begin(load) => Call::Begin(Load { orphan: true, ..load }),
                other => other,
            };
            let done = self.arrive(&mut next, call, late.valid);
            out.push((Step::ArrivesLate(late.call, done), next));
        }
        for load in state.loads.iter().flatten().filter(|load| load.state == LoadState::Loading) {
            let mut next = state.clone();
            if let Some(known) = next.load_mut(load.label) {
                known.state = LoadState::Committed;
            }
            next.apply(*load);
            out.push((Step::Commits(load.label), next));
        }
        for (_, next) in out.iter_mut() {
            next.normalize();
        }
        out.retain(|(_, next)| next != state);
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        if state.went_back {
            return Some("an older value overwrote a newer one after the take-over");
        }
        if (0..PARTITIONS).any(|p| state.value[p] < state.committed[p].offset) {
            return Some("a record is behind the committed offset, and its value is not in the table");
        }
        None
    }

    fn ended(&self, state: &State) -> bool {
        state.value == self.records && (0..PARTITIONS).all(|p| state.committed[p].offset == self.records[p])
    }
}
