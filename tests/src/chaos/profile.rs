//! What is run under faults: which pipelines, which faults, and what must have come of them.

use super::{
    Least, Settings, failpoints, replica,
    schedule::{Card, Plan, Schedule, lost_answers},
    stream,
    tally::Tally,
};
use tidemill_sandbox::FaultKind;

/// A kind of run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Profile {
    /// Three processes of one group into a Duplicate Key table, each record once.
    ExactlyOnce,
    /// Three processes, each with two pipelines: into a Duplicate Key table, nothing missing, and into a Primary Key
    /// table that ends exact and never goes back, with loads that commit up to 30 s after their client heard of nothing.
    AtLeastOnce,
    /// A reader of a Postgres slot and one that stands by: each table ends equal to its source.
    Postgres,
}

/// Processes of a group.
const MEMBERS: usize = 3;
/// The one that reads the slot, and one that stands by.
const READERS: usize = 2;
/// Longer than the group waits for a member of ours (1.5 s).
const FREEZE_MS_MIN: u64 = 2_000;

/// What is dealt, and how often: mostly kills, and each kind at least once.
const EXACTLY_ONCE: &[(Card, usize)] = &[
    (Card::Kill, 9),
    (Card::KillAt, 12),
    (Card::Freeze, 4),
    (Card::FreezeAt, 2),
    (Card::FreezeUndecided, 1),
    (Card::Leave, 3),
    (Card::Broker, 1),
    (Card::Lost, 8),
    (Card::Refused, 3),
    (Card::LateLoad, 1),
    (Card::BackendsAway, 1),
    (Card::Clock, 1),
    (Card::SlowDisk, 1),
];
const AT_LEAST_ONCE: &[(Card, usize)] = &[
    (Card::Kill, 8),
    (Card::KillAt, 10),
    (Card::Freeze, 4),
    (Card::FreezeAt, 2),
    (Card::Leave, 3),
    (Card::Broker, 1),
    (Card::Lost, 6),
    (Card::Refused, 6),
    (Card::LateLoad, 4),
    (Card::BackendsAway, 1),
    (Card::Clock, 1),
    (Card::SlowDisk, 1),
];
const POSTGRES: &[(Card, usize)] = &[
    (Card::Kill, 5),
    (Card::KillAt, 6),
    (Card::Freeze, 3),
    (Card::Leave, 2),
    (Card::Postgres, 2),
    (Card::Lost, 4),
    (Card::Refused, 6),
    (Card::LateLoad, 2),
    (Card::BackendsAway, 1),
    (Card::Clock, 1),
];

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ExactlyOnce, Self::AtLeastOnce, Self::Postgres];

    /// As it is called on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly-once",
            Self::AtLeastOnce => "at-least-once",
            Self::Postgres => "postgres",
        }
    }

    /// Its steps.
    ///
    /// # Panics
    /// When the binary under test has no failpoints.
    #[must_use]
    pub fn schedule(self, seed: u64) -> Schedule {
        Schedule::new(seed, self.plan())
    }

    /// Runs it.
    ///
    /// # Panics
    /// When something around the processes under test cannot be had.
    #[must_use]
    pub fn run(self, settings: &Settings) -> Tally {
        match self {
            Self::ExactlyOnce | Self::AtLeastOnce => stream::run(self, settings),
            Self::Postgres => replica::run(settings),
        }
    }

    fn plan(self) -> Plan {
        let points = failpoints().into_iter().filter(|point| self.passes(point)).collect();
        let lost = lost_answers();
        let (slots, deck, refusals) = match self {
            Self::ExactlyOnce => (MEMBERS, EXACTLY_ONCE, transaction_refusals()),
            Self::AtLeastOnce => (MEMBERS, AT_LEAST_ONCE, stream_refusals()),
            Self::Postgres => (READERS, POSTGRES, load_refusals()),
        };
        let late_ms_max = self.late_ms_max();
        Plan { slots, deck, points, lost, refusals, late_ms_max, freeze_ms_min: FREEZE_MS_MIN }
    }

    /// Longest time between the body of a late load and its commit, in milliseconds.
    #[must_use]
    pub fn late_ms_max(self) -> u64 {
        match self {
            Self::ExactlyOnce => 3_000,
            Self::AtLeastOnce => 30_000,
            Self::Postgres => 10_000,
        }
    }

    /// What can be reached of these numbers: who reads a slot is assigned nothing.
    #[must_use]
    pub fn least(self, least: Least) -> Least {
        match self {
            Self::ExactlyOnce | Self::AtLeastOnce => least,
            Self::Postgres => Least { rebalances: 0, ..least },
        }
    }

    /// Whether records of this kind of run pass a failpoint.
    #[must_use]
    pub fn passes(self, point: &str) -> bool {
        let way = point.split('.').next().unwrap_or_default();
        let body = ["load.mid_body", "load.body_sent"].contains(&point);
        let release = ["kafka.before_release", "kafka.released"].contains(&point);
        match self {
            Self::ExactlyOnce => {
                ["lane", "letters", "epoch"].contains(&way) || body || (way == "kafka" && !release)
            }
            Self::AtLeastOnce => ["lane", "letters", "load", "kafka"].contains(&way),
            Self::Postgres => ["lane", "load", "postgres"].contains(&way),
        }
    }

    /// Kinds of faults that must have fired in a run that is long enough to take all cards of its deck.
    #[must_use]
    pub fn faults(self) -> Vec<&'static str> {
        let mut names = vec!["kill", "kill at a failpoint", "freeze", "leave and join", "late commit"];
        names.extend(["backends away", "clock jump"]);
        names.extend(match self {
            Self::ExactlyOnce => {
                &["freeze at a failpoint", "freeze inside a decision", "broker restart", "slow disk"][..]
            }
            Self::AtLeastOnce => &["freeze at a failpoint", "broker restart", "slow disk"],
            Self::Postgres => &["postgres restart"],
        });
        let plan = self.plan();
        names.extend(plan.lost.iter().chain(&plan.refusals).map(|(name, _)| *name));
        names
    }

    /// Cards of its deck.
    #[must_use]
    pub fn cards(self) -> usize {
        self.plan().deck.iter().map(|(_, weight)| weight).sum()
    }

    /// Ways back that run in every run, however short.
    #[must_use]
    pub fn usual(self) -> Vec<&'static str> {
        match self {
            Self::ExactlyOnce => vec!["assignments", "epochs decided"],
            Self::AtLeastOnce => vec!["assignments"],
            Self::Postgres => Vec::new(),
        }
    }

    /// Ways back that must have run.
    #[must_use]
    pub fn recoveries(self) -> Vec<&'static str> {
        match self {
            Self::ExactlyOnce => vec![
                "assignments",
                "partitions given up",
                "partitions lost",
                "decided loads committed by a successor",
                "decisions of unknown outcome",
                "epochs rolled back",
                "loads tried again",
                "waits for Kafka",
            ],
            Self::AtLeastOnce => vec![
                "assignments",
                "partitions given up",
                "partitions lost",
                "loads of a predecessor cancelled",
                "loads refused by their fence",
                "loads tried again",
                "labels forgotten",
                "waits for StarRocks",
                "waits for Kafka",
            ],
            Self::Postgres => vec![
                "take-overs by a standby",
                "loads tried again",
                "waits for StarRocks",
                "waits for Postgres",
            ],
        }
    }
}

/// What StarRocks may refuse of plain loads from a stream: also to remember them.
fn stream_refusals() -> Vec<(&'static str, FaultKind)> {
    let mut refusals = load_refusals();
    refusals.push(("all labels forgotten", FaultKind::LabelsForgotten));
    refusals
}

/// What StarRocks may refuse or hold back of a Stream Load, and let pass later.
fn load_refusals() -> Vec<(&'static str, FaultKind)> {
    vec![
        ("body cut", FaultKind::DropMidBody { after_bytes: 2_000 }),
        ("publish timeout", FaultKind::PublishTimeout { visible_after_ms: 1_500 }),
        ("commit unknown, done", FaultKind::CommitUnknown { committed: true }),
        ("commit unknown, not done", FaultKind::CommitUnknown { committed: false }),
        ("begin late", FaultKind::LateBegin { delay_ms: 1_500 }),
        ("too many versions", FaultKind::TooManyVersions),
        ("too many transactions", FaultKind::RunningTxnLimit),
        ("backend shuts down", FaultKind::ShuttingDown),
        ("no backend", FaultKind::NoBackend),
        ("memory limit", FaultKind::LoadFails { message: "Memory of process exceed limit.".to_owned() }),
        ("redirect slow", FaultKind::SlowRedirect { delay_ms: 700 }),
        ("continue withheld", FaultKind::ContinueWithheld { delay_ms: 1_500 }),
    ]
}

/// What StarRocks may refuse or hold back of a transaction, and let pass later.
fn transaction_refusals() -> Vec<(&'static str, FaultKind)> {
    vec![
        ("publish timeout", FaultKind::PublishTimeout { visible_after_ms: 1_500 }),
        ("too many versions", FaultKind::TooManyVersions),
        ("too many transactions", FaultKind::RunningTxnLimit),
        ("transaction in process", FaultKind::TxnInProcessing),
        ("redirect slow", FaultKind::SlowRedirect { delay_ms: 700 }),
    ]
}
