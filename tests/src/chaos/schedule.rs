//! What goes wrong and when: a function of the seed, so that a run can be made again.
//!
//! Steps are dealt from a deck that holds each kind as often as its weight: each kind comes early and comes again.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use std::{collections::VecDeque, fmt};
use tidemill_sandbox::{AnswerFault, ClientFate, FaultKind, Hop};

/// Longest rest before a step, in milliseconds.
const PAUSE_MS_MAX: u64 = 900;
/// How often a failpoint is passed before it fires.
const PASSES_MAX: u32 = 4;

/// Longer than a transaction of a decision may stay open (10 s).
const UNDECIDED_MS: std::ops::Range<u64> = 11_500..13_000;

/// Something that is done to the run.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A process is killed at a random moment.
    Kill {
        /// Which.
        slot: usize,
    },
    /// A process is killed, and its successor kills itself at a failpoint.
    KillAt {
        /// Which.
        slot: usize,
        /// The failpoint.
        point: String,
        /// How often it is passed before.
        passes: u32,
    },
    /// A process is stopped, for longer than its group waits for it, and goes on.
    Freeze {
        /// Which.
        slot: usize,
        /// For how long.
        ms: u64,
    },
    /// A process is drained, and its successor stops itself at a failpoint.
    FreezeAt {
        /// Which.
        slot: usize,
        /// The failpoint.
        point: String,
        /// How often it is passed before.
        passes: u32,
        /// For how long.
        ms: u64,
    },
    /// As [`FreezeAt`](Self::FreezeAt), in the midst of a decision, for longer than the brokers keep its transaction open.
    FreezeUndecided {
        /// Which.
        slot: usize,
        /// The failpoint.
        point: String,
        /// How often it is passed before.
        passes: u32,
        /// For how long.
        ms: u64,
    },
    /// A process is drained and comes back later.
    Leave {
        /// Which.
        slot: usize,
        /// For how long.
        away_ms: u64,
    },
    /// The broker is killed and started again.
    Broker,
    /// StarRocks does something that it may do.
    StarRocks {
        /// Its name in the table.
        name: &'static str,
        /// What.
        fault: FaultKind,
        /// How often.
        times: u64,
    },
    /// The backends are away for a while.
    BackendsAway {
        /// For how long.
        ms: u64,
    },
    /// The wall clock of all processes jumps.
    Clock {
        /// From the true time.
        jump_s: i64,
    },
    /// A process is drained, and its successor waits for the disk before dead letters are synced.
    SlowDisk {
        /// Which.
        slot: usize,
        /// For how long.
        ms: u64,
    },
    /// Postgres is restarted: fast, immediately, or killed.
    Postgres {
        /// Which of the three.
        way: u32,
    },
}

impl Action {
    /// The kind's name in the table.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::KillAt { .. } => "kill at a failpoint",
            Self::Freeze { .. } => "freeze",
            Self::FreezeAt { .. } => "freeze at a failpoint",
            Self::FreezeUndecided { .. } => "freeze inside a decision",
            Self::Leave { .. } => "leave and join",
            Self::Broker => "broker restart",
            Self::StarRocks { name, .. } => name,
            Self::BackendsAway { .. } => "backends away",
            Self::Clock { .. } => "clock jump",
            Self::SlowDisk { .. } => "slow disk",
            Self::Postgres { .. } => "postgres restart",
        }
    }

    /// Whether what it does shows that the run was busy only if rows moved since the last such step.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        matches!(self, Self::Kill { .. } | Self::KillAt { .. } | Self::Freeze { .. } | Self::Broker)
    }
}

/// One step of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The rest before it.
    pub pause_ms: u64,
    /// What is done.
    pub action: Action,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "+{:4} ms  {}: ", self.pause_ms, self.action.name())?;
        match &self.action {
            Action::Kill { slot } => write!(out, "process {slot}"),
            Action::KillAt { slot, point, passes } => write!(out, "process {slot} at {point}, pass {passes}"),
            Action::Freeze { slot, ms } => write!(out, "process {slot} for {ms} ms"),
            Action::FreezeAt { slot, point, passes, ms }
            | Action::FreezeUndecided { slot, point, passes, ms } => {
                write!(out, "process {slot} at {point}, pass {passes}, for {ms} ms")
            }
            Action::Leave { slot, away_ms } => write!(out, "process {slot} for {away_ms} ms"),
            Action::Broker => write!(out, "the broker"),
            Action::StarRocks { fault, times, .. } => write!(out, "{times} times {fault:?}"),
            Action::BackendsAway { ms } => write!(out, "{ms} ms"),
            Action::Clock { jump_s } => write!(out, "{jump_s} s from the true time"),
            Action::SlowDisk { slot, ms } => write!(out, "process {slot}, {ms} ms"),
            Action::Postgres { way } => write!(out, "{}", ["fast", "immediate", "killed"][*way as usize % 3]),
        }
    }
}

/// A kind of step, and how often it is in the deck.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Card {
    /// [`Action::Kill`].
    Kill,
    /// [`Action::KillAt`].
    KillAt,
    /// [`Action::Freeze`].
    Freeze,
    /// [`Action::FreezeAt`].
    FreezeAt,
    /// [`Action::FreezeUndecided`].
    FreezeUndecided,
    /// [`Action::Leave`].
    Leave,
    /// [`Action::Broker`].
    Broker,
    /// [`Action::StarRocks`]: a load that commits long after its client has heard of nothing.
    LateLoad,
    /// [`Action::StarRocks`]: an answer that is lost.
    Lost,
    /// [`Action::StarRocks`]: anything else.
    Refused,
    /// [`Action::BackendsAway`].
    BackendsAway,
    /// [`Action::Clock`].
    Clock,
    /// [`Action::SlowDisk`].
    SlowDisk,
    /// [`Action::Postgres`].
    Postgres,
}

/// What a schedule is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Processes.
    pub slots: usize,
    /// Cards with their weights.
    pub deck: &'static [(Card, usize)],
    /// Failpoints at which processes are killed.
    pub points: Vec<String>,
    /// Answers that are lost.
    pub lost: Vec<(&'static str, FaultKind)>,
    /// What else StarRocks does.
    pub refusals: Vec<(&'static str, FaultKind)>,
    /// Longest time between the body and the commit of a late load.
    pub late_ms_max: u64,
    /// Shortest freeze: longer than the group waits.
    pub freeze_ms_min: u64,
}

/// The steps of one seed, without end.
#[derive(Debug)]
pub struct Schedule {
    random: StdRng,
    plan: Plan,
    hand: VecDeque<Card>,
    points: VecDeque<String>,
    lost: VecDeque<(&'static str, FaultKind)>,
    refusals: VecDeque<(&'static str, FaultKind)>,
}

/// The next of a pile that is shuffled anew when it has run out.
fn dealt<T: Clone>(pile: &mut VecDeque<T>, all: &[T], random: &mut StdRng) -> Option<T> {
    if pile.is_empty() {
        let mut cards = all.to_vec();
        cards.shuffle(random);
        pile.extend(cards);
    }
    pile.pop_front()
}

impl Schedule {
    /// The schedule of a seed.
    #[must_use]
    pub fn new(seed: u64, plan: Plan) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let (hand, points) = (VecDeque::new(), VecDeque::new());
        Self { random, plan, hand, points, lost: VecDeque::new(), refusals: VecDeque::new() }
    }

    fn action(&mut self, card: Card) -> Action {
        let random = &mut self.random;
        let slot = random.random_range(0..self.plan.slots);
        let passes = random.random_range(1..=PASSES_MAX);
        match card {
            Card::Kill => Action::Kill { slot },
            Card::KillAt | Card::FreezeAt => {
                let Some(point) = dealt(&mut self.points, &self.plan.points, random) else {
                    return Action::Kill { slot };
                };
                // What is passed once an assignment is not passed often.
                let passes = if is_rare(&point) { 1 } else { passes };
                match card {
                    Card::KillAt => Action::KillAt { slot, point, passes },
                    _ => Action::FreezeAt { slot, point, passes, ms: self.freeze_ms() },
                }
            }
            Card::FreezeUndecided => {
                let ms = random.random_range(UNDECIDED_MS);
                Action::FreezeUndecided { slot, point: "epoch.offsets_sent".to_owned(), passes, ms }
            }
            Card::Freeze => Action::Freeze { slot, ms: self.freeze_ms() },
            Card::Leave => Action::Leave { slot, away_ms: random.random_range(0..1_500) },
            Card::Broker => Action::Broker,
            Card::LateLoad => {
                let delay_ms = random.random_range(self.plan.late_ms_max / 6..=self.plan.late_ms_max);
                let fault = FaultKind::LateCommit { delay_ms, client: ClientFate::Dropped };
                Action::StarRocks { name: "late commit", fault, times: 1 }
            }
            Card::Lost => match dealt(&mut self.lost, &self.plan.lost, random) {
                Some((name, fault)) => Action::StarRocks { name, fault, times: random.random_range(1..=3) },
                None => Action::Kill { slot },
            },
            Card::Refused => match dealt(&mut self.refusals, &self.plan.refusals, random) {
                Some((name, fault)) => Action::StarRocks { name, fault, times: random.random_range(1..=3) },
                None => Action::Kill { slot },
            },
            Card::BackendsAway => Action::BackendsAway { ms: random.random_range(300..2_000) },
            Card::Clock => {
                let jump_s: i64 = random.random_range(60..3_000);
                Action::Clock { jump_s: if random.random() { jump_s } else { -jump_s } }
            }
            Card::SlowDisk => Action::SlowDisk { slot, ms: random.random_range(200..1_500) },
            Card::Postgres => Action::Postgres { way: random.random_range(0..3) },
        }
    }

    fn freeze_ms(&mut self) -> u64 {
        let shortest = self.plan.freeze_ms_min;
        self.random.random_range(shortest..shortest * 2)
    }
}

/// Whether a process passes it a few times in its life, and not many times a second.
fn is_rare(point: &str) -> bool {
    point.starts_with("kafka.")
        || point.starts_with("letters.")
        || ["rollback", "rolled_back", "recover", "done"].iter().any(|word| point.contains(word))
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let deck: Vec<Card> =
            self.plan.deck.iter().flat_map(|(card, weight)| std::iter::repeat_n(*card, *weight)).collect();
        let card = dealt(&mut self.hand, &deck, &mut self.random)?;
        let pause_ms = self.random.random_range(0..PAUSE_MS_MAX);
        Some(Step { pause_ms, action: self.action(card) })
    }
}

/// Answers that a load or a step of a transaction can lose, before and after it was done.
#[must_use]
pub fn lost_answers() -> Vec<(&'static str, FaultKind)> {
    let lost = |at, how, committed| FaultKind::AnswerLost { at, how, committed };
    vec![
        ("answer lost after it was done", lost(Hop::Backend, AnswerFault::Dropped, true)),
        ("answer lost before it was done", lost(Hop::Backend, AnswerFault::Dropped, false)),
        ("answer cut", lost(Hop::Backend, AnswerFault::Truncated, true)),
        ("answer empty", lost(Hop::Backend, AnswerFault::Empty, true)),
        ("answer HTTP 500", lost(Hop::Backend, AnswerFault::Http500, false)),
        ("answer HTTP 502", lost(Hop::Backend, AnswerFault::Http502, true)),
        ("redirect lost", lost(Hop::Frontend, AnswerFault::Dropped, false)),
        ("state not told", lost(Hop::State, AnswerFault::Http500, false)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            slots: 3,
            deck: &[(Card::Kill, 3), (Card::KillAt, 2), (Card::Lost, 2), (Card::Broker, 1)],
            points: vec!["a.b".to_owned(), "c.d".to_owned()],
            lost: lost_answers(),
            refusals: Vec::new(),
            late_ms_max: 30_000,
            freeze_ms_min: 2_000,
        }
    }

    #[test]
    fn a_schedule_follows_from_its_seed() {
        let steps = |seed| Schedule::new(seed, plan()).take(200).collect::<Vec<_>>();
        assert!(steps(1) == steps(1));
        assert!(steps(1) != steps(2));
    }

    #[test]
    fn each_card_of_the_deck_comes_in_each_round() {
        let steps: Vec<Step> = Schedule::new(5, plan()).take(8).collect();
        let count = |wanted: &str| steps.iter().filter(|step| step.action.name() == wanted).count();
        assert_eq!((count("kill"), count("kill at a failpoint"), count("broker restart")), (3, 2, 1));
    }
}
