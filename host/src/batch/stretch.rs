//! How far a table's batches grow while StarRocks cannot keep up with its versions: a pure function of what was
//! seen of the table, and when. Whoever calls passes the clock in (reference/starrocks-load-protocol.md §6,
//! `docs/decisions/0030-batches-grow-under-version-pressure.md`).
//!
//! Each sign of pressure doubles the factor by which `linger`, `max_rows` and `max_bytes` grow, up to their bounds.
//! Without a sign for `calm` it returns, step by step, until batches are as configured again.

use std::time::{Duration, Instant};

use crate::config::model::{BatchLimits, StretchBounds};
use crate::retry::Pace;
use crate::sink::{Outcome, Receipt, Scarce};

/// Signs that come closer together than this count as one: several loads of a table are refused at once.
const STEP_EVERY: Duration = Duration::from_secs(1);
/// A load that takes less than this is not slow, however small it is.
const SLOW_LOAD: Duration = Duration::from_secs(5);
/// Beyond [`SLOW_LOAD`] a load may take so long for its bytes: a fifth of what one BE does with JSON on a bad day. So
/// a batch that takes longer because it was stretched is not itself a reason to stretch.
const SLOW_BYTES_PER_SECOND: u64 = 4 << 20;
/// So many slow loads in a row are a sign; one may be a pause of the cluster's.
const SLOW_LOADS_IN_A_ROW: u32 = 3;
/// Versions below this part of the threshold are no reason to stay stretched.
const VERSIONS_LOW_DIVISOR: u64 = 2;
/// A load that was refused is tried again after so long at most. Until then, or until one comes through, the pressure
/// has not ended, however quiet it is.
const TRIED_AGAIN_WITHIN: Duration = Pace::OVERLOADED.cap;
/// How often the versions of tables are read. The FE itself hears of them from the BEs about once a minute, and lists
/// every tablet of a table for the question.
pub const VERSIONS_EVERY: Duration = Duration::from_secs(30);
/// What was read of versions holds for so long: until the next time that they are read, also when that comes late. With a
/// `calm` that is shorter than [`VERSIONS_EVERY`] batches would return between the one and the other.
const VERSIONS_HOLD: Duration = VERSIONS_EVERY.saturating_add(Duration::from_secs(15));
/// Largest factor: what takes a linger of 1 ms past all bounds that make sense.
const FACTOR_MAX: u32 = 1 << 16;
/// From the largest factor all the way back takes no more steps than this. With `max_rows = 100` the bound of 5,000,000 is
/// sixteen doublings away, and all but four of them leave `linger`, which is what counts then, where its bound is.
const STEPS_BACK_MAX: u32 = 5;

/// What was seen of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A load was refused because a tablet has too many versions.
    Refused,
    /// A load was committed, and StarRocks did not make it visible in the time that it waits for that.
    PublishTimeout,
    /// A load was made in this time.
    Loaded {
        /// From the request to the answer, without pauses of our own.
        took: Duration,
        /// Bytes of its body.
        bytes: u64,
    },
    /// So many versions has the fullest replica of the table's tablets.
    Versions(u64),
}

impl Sign {
    /// What an answer to a load of `bytes` that took `took` says about versions, if anything.
    pub fn of(answer: &Outcome, took: Duration, bytes: u64) -> Option<Sign> {
        match answer {
            Outcome::Durable(Receipt { visible: true, .. }) => Some(Sign::Loaded { took, bytes }),
            // The state of the label, not a publish that took too long, if there is no transaction in the answer.
            Outcome::Durable(Receipt { visible: false, txn: Some(_), .. }) => Some(Sign::PublishTimeout),
            Outcome::Overloaded(_, Scarce::Versions) => Some(Sign::Refused),
            Outcome::Durable(_)
            | Outcome::Overloaded(_, Scarce::Other)
            | Outcome::Refused(_)
            | Outcome::Unsure(_)
            | Outcome::BadRows(_) => None,
        }
    }
}

/// Why batches grow: the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Loads are refused with "too many versions".
    TooManyVersions,
    /// Loads are not visible in time.
    PublishTimeout,
    /// Loads take long, one after the other.
    SlowLoads,
    /// The table has so many versions that loads will be refused soon.
    Versions,
}

impl Cause {
    /// All of them, in the order in which metrics show them.
    pub const ALL: [Cause; 4] =
        [Cause::TooManyVersions, Cause::PublishTimeout, Cause::SlowLoads, Cause::Versions];

    /// The metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Cause::TooManyVersions => "too_many_versions",
            Cause::PublishTimeout => "publish_timeout",
            Cause::SlowLoads => "slow_loads",
            Cause::Versions => "versions",
        }
    }
}

/// A change of the factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The factor before.
    pub from: u32,
    /// The factor now.
    pub to: u32,
}

impl Step {
    /// Whether pressure began with it.
    pub fn begins(self) -> bool {
        self.from == 1
    }

    /// Whether pressure ended with it.
    pub fn ends(self) -> bool {
        self.to == 1
    }
}

/// The state of one table. A power of two, the factor, says all that matters outside.
#[derive(Debug, Clone)]
pub struct Stretch {
    limits: BatchLimits,
    factor: u32,
    factor_max: u32,
    /// So many times a step back halves the factor.
    halvings: u32,
    slow_in_a_row: u32,
    /// When the factor was last raised.
    raised: Option<Instant>,
    /// Since when nothing has asked for the factor as it is; moves on with each step back. Lies ahead while a load
    /// that was refused waits.
    calm_since: Option<Instant>,
    /// No step back before: the versions that were read last forbid it.
    held_until: Option<Instant>,
}

impl Stretch {
    /// A table under no pressure, with batches of `limits`.
    pub fn new(limits: BatchLimits) -> Stretch {
        let factor_max = limits.stretch.map_or(1, |bounds| factor_max(&limits, &bounds));
        let halvings = factor_max.ilog2().div_ceil(STEPS_BACK_MAX).max(1);
        Stretch {
            limits,
            factor: 1,
            factor_max,
            halvings,
            slow_in_a_row: 0,
            raised: None,
            calm_since: None,
            held_until: None,
        }
    }

    /// How many times as large as configured batches may become; 1 without pressure.
    pub fn factor(&self) -> u32 {
        self.factor
    }

    /// The limits of a batch now: those of the file, grown by the factor as far as their bounds allow.
    pub fn limits(&self) -> BatchLimits {
        let Some(bounds) = self.limits.stretch.filter(|_| self.factor > 1) else { return self.limits };
        let grown =
            |limit: u64, bound: u64| limit.saturating_mul(u64::from(self.factor)).min(bound).max(limit);
        let linger = self.limits.linger;
        BatchLimits {
            max_rows: grown(self.limits.max_rows, bounds.max_rows),
            max_bytes: grown(self.limits.max_bytes, bounds.max_bytes),
            linger: linger.saturating_mul(self.factor).min(bounds.linger).max(linger),
            stretch: self.limits.stretch,
        }
    }

    /// Takes a sign in. Returns why it speaks of pressure, if it does, and what changed.
    pub fn see(&mut self, sign: Sign, now: Instant) -> (Option<Cause>, Option<Step>) {
        let Some(bounds) = self.limits.stretch else { return (None, None) };
        let rested = self.rest(now);
        if let Sign::Loaded { .. } = sign {
            self.calm_since = self.calm_since.map(|since| since.min(now));
        }
        let cause = match sign {
            Sign::Refused => Some(Cause::TooManyVersions),
            Sign::PublishTimeout => Some(Cause::PublishTimeout),
            Sign::Loaded { took, bytes } => self.slow(took, bytes).then_some(Cause::SlowLoads),
            Sign::Versions(versions) if versions >= bounds.versions => Some(Cause::Versions),
            // Between the two thresholds nothing grows, and nothing returns.
            Sign::Versions(versions) if versions >= bounds.versions / VERSIONS_LOW_DIVISOR => {
                if self.factor > 1 {
                    self.hold(now);
                }
                None
            }
            Sign::Versions(_few) => {
                self.held_until = None;
                None
            }
        };
        if cause.is_none() {
            return (None, rested);
        }
        let raised = self.raise(now);
        if self.factor > 1 {
            match sign {
                Sign::Refused => self.calm_since = Some(now + TRIED_AGAIN_WITHIN),
                // A load came through.
                Sign::PublishTimeout | Sign::Loaded { .. } => self.calm_since = Some(now),
                Sign::Versions(_) => self.hold(now),
            }
        }
        // A step back that was due and one up at the same moment come to nothing or to one change.
        let step = match (rested, raised) {
            (Some(down), Some(up)) => {
                Some(Step { from: down.from, to: up.to }).filter(|step| step.from != step.to)
            }
            (one, other) => one.or(other),
        };
        (cause, step)
    }

    /// Steps back as often as it has been calm for long enough by `now`: the same, however often it is called.
    pub fn rest(&mut self, now: Instant) -> Option<Step> {
        let from = self.factor;
        while let Some(due) = self.rests_at()
            && due <= now
        {
            self.factor = (self.factor >> self.halvings).max(1);
            self.calm_since = Some(due);
        }
        if self.factor == 1 {
            (self.calm_since, self.held_until) = (None, None);
        }
        (self.factor != from).then_some(Step { from, to: self.factor })
    }

    /// When the next step back is due; none without pressure.
    pub fn rests_at(&self) -> Option<Instant> {
        let calm = self.limits.stretch?.calm;
        let due = self.calm_since.filter(|_| self.factor > 1).map(|since| since + calm);
        due.map(|due| self.held_until.map_or(due, |held| due.max(held)))
    }

    /// Versions were read that do not let the factor return. They say nothing of a load that was refused and waits.
    fn hold(&mut self, now: Instant) {
        self.calm_since = self.calm_since.max(Some(now));
        self.held_until = Some(now + VERSIONS_HOLD);
    }

    fn raise(&mut self, now: Instant) -> Option<Step> {
        let from = self.factor;
        let is_new = self.raised.is_none_or(|raised| now.saturating_duration_since(raised) >= STEP_EVERY);
        if is_new && from < self.factor_max {
            self.factor = from * 2;
            self.raised = Some(now);
        }
        (self.factor != from).then_some(Step { from, to: self.factor })
    }

    /// Whether this load is one of several slow ones in a row.
    fn slow(&mut self, took: Duration, bytes: u64) -> bool {
        let allowed = SLOW_LOAD.max(Duration::from_secs(bytes / SLOW_BYTES_PER_SECOND));
        self.slow_in_a_row = if took > allowed { self.slow_in_a_row + 1 } else { 0 };
        let slow = self.slow_in_a_row >= SLOW_LOADS_IN_A_ROW;
        if slow {
            self.slow_in_a_row = 0;
        }
        slow
    }
}

/// The smallest power of two that takes every limit to its bound.
fn factor_max(limits: &BatchLimits, bounds: &StretchBounds) -> u32 {
    let ratio = |limit: u128, bound: u128| bound.div_ceil(limit.max(1));
    let linger = ratio(limits.linger.as_micros(), bounds.linger.as_micros());
    let rows = ratio(u128::from(limits.max_rows), u128::from(bounds.max_rows));
    let bytes = ratio(u128::from(limits.max_bytes), u128::from(bounds.max_bytes));
    let most = linger.max(rows).max(bytes).min(u128::from(FACTOR_MAX));
    u32::try_from(most).unwrap_or(FACTOR_MAX).max(1).next_power_of_two()
}

#[cfg(test)]
mod tests;
