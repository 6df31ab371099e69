//! Membership: joining, being thought dead, dying, and what a member does when it is told.

use super::servers::{new_generation, rebalance, target};
use super::state::{Call, DEAD, Late, Mask, Member, PARTITIONS, Phase, State, Write};
use super::{ExactlyOnce, Rule, Step};

/// What a member is told by the rebalance callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// All partitions are gone already.
    Lost,
    /// One is to be given up.
    Revoked(usize),
    /// These are its own now.
    Assigned(Mask),
}

/// What becomes of a request whose sender stops waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It never arrives.
    Vanishes,
    /// It may arrive at any time.
    GoesOn,
}

impl State {
    /// What the callback has to tell member `m`, if anything.
    pub(super) fn told(&self, m: usize) -> Option<Told> {
        let member = &self.members[m];
        if !member.alive || !member.joined {
            return None;
        }
        if !self.in_group[m] {
            return Some(Told::Lost);
        }
        let owner = |p: &usize| self.owner[*p].map(usize::from) == Some(m);
        let owns = |p: &usize| member.owns & (1 << p) != 0;
        let away = |p: &usize| target(self, *p).map(usize::from) != Some(m);
        if let Some(partition) = (0..PARTITIONS).find(|p| owner(p) && owns(p) && away(p)) {
            return Some(Told::Revoked(partition));
        }
        let new = (0..PARTITIONS).filter(|p| owner(p) && !owns(p)).fold(0, |mask, p| mask | 1 << p);
        (new != 0).then_some(Told::Assigned(new))
    }

    /// Whether the callback waits.
    pub(super) fn told_to_change(&self, m: usize) -> bool {
        self.told(m).is_some()
    }
}

impl ExactlyOnce {
    /// Joining, and the end of sessions and processes.
    pub(super) fn membership(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let member = &state.members[m];
        if member.alive && !member.joined && !state.in_group[m] && member.phase == Phase::Out {
            let mut next = state.clone();
            next.members[m].joined = true;
            next.in_group[m] = true;
            rebalance(&mut next);
            out.push((Step::Joins(m), next));
        }
        if state.in_group[m] && (!member.alive || (member.joined && state.budget.kicks > 0)) {
            let mut next = state.clone();
            next.budget.kicks -= u8::from(member.alive);
            next.in_group[m] = false;
            rebalance(&mut next);
            out.push((Step::SessionEnds(m), next));
        }
        if !member.alive && !state.in_group[m] {
            let mut next = state.clone();
            next.members[m].alive = true;
            next.members[m].joined = true;
            next.in_group[m] = true;
            rebalance(&mut next);
            out.push((Step::Restarts(m), next));
        }
        if member.alive && state.budget.crashes > 0 && member.phase != Phase::Halted {
            self.crash(state, m, out);
        }
    }

    fn crash(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        for fate in [Fate::Vanishes, Fate::GoesOn] {
            let mut next = state.clone();
            next.budget.crashes -= 1;
            if !self.let_go(&mut next, m, fate) || !bury(&mut next, m) {
                continue;
            }
            next.members[m] = Member::default();
            let step = if fate == Fate::GoesOn { Step::DiesWhileSending(m) } else { Step::Dies(m) };
            out.push((step, next));
        }
    }

    /// The request of `m`, if any, is left to its fate; `false` if there is none, or no room.
    fn let_go(&self, state: &mut State, m: usize, fate: Fate) -> bool {
        if fate == Fate::Vanishes {
            return true;
        }
        let Some(call) = self.call(state, m) else { return false };
        self.leave_behind(state, m, call)
    }

    /// `call` of `m` may arrive at any time; `false` if there is no room.
    pub(super) fn leave_behind(&self, state: &mut State, m: usize, call: Call) -> bool {
        if state.budget.late == 0 || matches!(call, Call::Send(_, false)) {
            return false;
        }
        state.budget.late -= 1;
        let producer = u8::try_from(m).unwrap_or(u8::MAX);
        match state.late.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(Late { producer, call }),
            None => return false,
        }
        true
    }

    /// The rebalance callback of `m` is served, in every way in which it can be.
    pub(super) fn serve(&self, state: &State, m: usize, out: &mut Vec<(Step, State)>) {
        let Some(told) = state.told(m) else { return };
        let phase = state.members[m].phase;
        match phase {
            Phase::Halted | Phase::RollBack => {}
            Phase::Out | Phase::Read | Phase::Plan | Phase::Gather => {
                let mut next = state.clone();
                self.change(&mut next, m, told);
                out.push((Step::Serves(m, told), next));
            }
            Phase::Recover(_) | Phase::Commit(_) => {
                if matches!(phase, Phase::Commit(_)) && matches!(told, Told::Assigned(_)) {
                    return;
                }
                self.serve_leaving(state, m, told, out, |next| self.change(next, m, told));
            }
            Phase::Load | Phase::Prepare | Phase::Decide => {
                let keep = !self.rules.on(Rule::RevokeRollsBack) && !matches!(told, Told::Assigned(_));
                if keep {
                    let mut next = state.clone();
                    release(&mut next, m, told);
                    out.push((Step::Serves(m, told), next));
                    return;
                }
                self.serve_leaving(state, m, told, out, |next| {
                    if told == Told::Lost {
                        release(next, m, told);
                    }
                    self.enter(next, m, Phase::RollBack);
                });
            }
            Phase::Send(_) | Phase::End(_) | Phase::Init(_) | Phase::Settle => {
                self.serve_deciding(state, m, told, out)
            }
        }
    }

    /// Under the lock nothing is served; without it a partition can go in the middle of a decision.
    fn serve_deciding(&self, state: &State, m: usize, told: Told, out: &mut Vec<(Step, State)>) {
        let phase = state.members[m].phase;
        let claim =
            matches!(phase, Phase::Send(Write::Claim) | Phase::End(Write::Claim) | Phase::Init(Write::Claim));
        if claim {
            if phase == Phase::Send(Write::Claim) && self.plain(Write::Claim) {
                self.serve_leaving(state, m, told, out, |next| self.change(next, m, told));
            }
            return;
        }
        let unlocked = !self.rules.on(Rule::CheckUnderLock) && phase == Phase::Send(Write::Decision);
        if (unlocked || !self.rules.on(Rule::RevokeWaits)) && !matches!(told, Told::Assigned(_)) {
            let mut next = state.clone();
            release(&mut next, m, told);
            out.push((Step::Serves(m, told), next));
        }
    }

    fn serve_leaving(
        &self,
        state: &State,
        m: usize,
        told: Told,
        out: &mut Vec<(Step, State)>,
        act: impl Fn(&mut State),
    ) {
        for fate in [Fate::Vanishes, Fate::GoesOn] {
            let mut next = state.clone();
            if self.let_go(&mut next, m, fate) {
                act(&mut next);
                let step = if fate == Fate::GoesOn {
                    Step::ServesWhileSending(m, told)
                } else {
                    Step::Serves(m, told)
                };
                out.push((step, next));
            }
        }
    }

    /// The assignment of `m` changes, and its stem with it.
    fn change(&self, state: &mut State, m: usize, told: Told) {
        let member = &mut state.members[m];
        if matches!(member.phase, Phase::Commit(_)) {
            // The number is used; with a stem for each assignment the stem ends anyway.
            member.epoch.seq += 1;
        }
        match told {
            Told::Assigned(partitions) => member.owns |= partitions,
            Told::Lost | Told::Revoked(_) => release(state, m, told),
        }
        let next = if state.members[m].owns == 0 { Phase::Out } else { Phase::Read };
        self.enter(state, m, next);
    }
}

/// The client gives partitions up.
fn release(state: &mut State, m: usize, told: Told) {
    match told {
        Told::Assigned(_) => {}
        Told::Lost => {
            state.members[m].owns = 0;
            state.members[m].joined = false;
        }
        Told::Revoked(partition) => {
            state.members[m].owns &= !(1 << partition);
            state.owner[partition] = target(state, partition);
            new_generation(state);
        }
    }
}

/// What the dead process left with Kafka; `false` if another dead process left something too.
fn bury(state: &mut State, m: usize) -> bool {
    let of_dead = |slot: &Option<Late>| slot.is_some_and(|late| usize::from(late.producer) == DEAD);
    let occupied = state.pending[DEAD].is_some() || state.late.iter().any(of_dead);
    let of_m = |slot: &Option<Late>| {
        slot.is_some_and(|late| {
            usize::from(late.producer) == m && matches!(late.call, Call::Send(..) | Call::End | Call::Init)
        })
    };
    let leaves = state.pending[m].is_some() || state.late.iter().any(of_m);
    if occupied && leaves {
        return false;
    }
    if let Some(pending) = state.pending[m].take() {
        state.pending[DEAD] = Some(pending);
    }
    for slot in state.late.iter_mut().flatten() {
        if usize::from(slot.producer) == m {
            slot.producer = DEAD as u8;
        }
    }
    true
}
