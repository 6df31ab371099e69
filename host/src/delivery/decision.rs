//! What a member of an exactly-once group has decided, as it stands beside the offsets that it committed, and
//! what whoever comes next has to do about it (delivery.md §3). All pure.
//!
//! A decision names the loads of one epoch. It is written in one Kafka transaction with the offsets behind the
//! epoch's records, for every partition of the member, also those that had no record in it: so the newest
//! decision of a stem stands on all partitions that were read under it, and nobody can act on an older one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::first_sight::FirstSight;
use crate::sink::starrocks::state::LabelState;

/// The form of [`Decision::to_metadata`]; at_least_once claims are 1.
const VERSION: u32 = 2;
/// Sequences that a stem may use behind its last decision before it has to decide again: a successor rolls back
/// so many, and no more can be open.
pub const SEQUENCES_UNDECIDED_MAX: u64 = 4;
/// How much earlier than StarRocks forgets a prepared transaction it is taken for forgotten.
const FORGETTING_MARGIN: Duration = Duration::from_secs(3600);

/// A decision: the loads of sequence `seq` under `stem` are committed, whatever comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    #[serde(rename = "v")]
    version: u32,
    /// Begin of the labels: one assignment of one member. No stem outlives a change of the assignment, or a
    /// successor's rollback could meet a decision of a member that lives.
    pub stem: String,
    /// Sequence within the stem.
    pub seq: u64,
    /// Tables with rows in the epoch: labels `<stem>-<seq>-0` to `<stem>-<seq>-<tables - 1>`. 0 = nothing to
    /// commit: a claim, or all of it is done.
    #[serde(rename = "n")]
    pub tables: u32,
    /// Most tables that an epoch of the stem can have.
    #[serde(rename = "max")]
    pub tables_max: u32,
    /// Offset of this partition at which the epoch begins, for people.
    pub from: i64,
    /// When the first of the loads was prepared, in seconds since 1970: before the request was sent.
    #[serde(rename = "at")]
    pub prepared_at_s: u64,
    /// How long StarRocks keeps a prepared transaction, in seconds.
    #[serde(rename = "ttl")]
    pub prepared_timeout_s: u64,
    /// Database that the labels are of.
    #[serde(rename = "db")]
    pub database: String,
    /// [Digest](super::first_sight::digest) of the FEs that the labels were asked of. Older versions did not say.
    #[serde(rename = "fe", default, skip_serializing_if = "Option::is_none")]
    pub frontends: Option<u32>,
    /// How this partition's topic stood when the group began to read it. Older versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<FirstSight>,
}

/// What all decisions of a pipeline have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Most tables that an epoch can have.
    pub tables_max: u32,
    /// How long StarRocks keeps what is prepared.
    pub prepared_timeout: Duration,
    /// Database that is loaded.
    pub database: String,
}

impl Decision {
    /// Nothing to commit: the first of a stem, or the end of what stood there.
    pub fn empty(stem: &str, seq: u64, terms: &Terms) -> Decision {
        Decision {
            version: VERSION,
            stem: stem.to_owned(),
            seq,
            tables: 0,
            tables_max: terms.tables_max,
            from: 0,
            prepared_at_s: 0,
            prepared_timeout_s: terms.prepared_timeout.as_secs(),
            database: terms.database.clone(),
            frontends: None,
            first: None,
        }
    }

    /// The epoch `seq` with loads into `tables` tables.
    pub fn of_epoch(stem: &str, seq: u64, tables: u32, prepared_at_s: u64, terms: &Terms) -> Decision {
        Decision { tables, prepared_at_s, ..Decision::empty(stem, seq, terms) }
    }

    /// The same for a partition in which the epoch begins at `from`.
    pub fn beginning_at(&self, from: i64) -> Decision {
        Decision { from, ..self.clone() }
    }

    /// The same for a partition whose topic stood like that at first.
    pub fn first_seen(&self, first: Option<FirstSight>) -> Decision {
        Decision { first, ..self.clone() }
    }

    /// The same of a process whose file names these FEs.
    pub fn asked_of(&self, frontends: u32) -> Decision {
        Decision { frontends: Some(frontends), ..self.clone() }
    }

    /// The text beside an offset.
    pub fn to_metadata(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads the text beside an offset; none if there is no decision in it (an at_least_once claim, or somebody
    /// else's text).
    ///
    /// # Errors
    /// If it is a decision in a form that this version does not know: what it says must not be passed over.
    pub fn read(metadata: &str) -> Result<Option<Decision>, UnknownForm> {
        let Ok(Value::Object(fields)) = serde_json::from_str(metadata) else { return Ok(None) };
        let version = fields.get("v").and_then(Value::as_u64);
        match version.filter(|_| fields.contains_key("stem")) {
            Some(version) if version == u64::from(VERSION) => {
                serde_json::from_str(metadata).map(Some).map_err(|_| UnknownForm(metadata.to_owned()))
            }
            Some(version) if version > u64::from(VERSION) => Err(UnknownForm(metadata.to_owned())),
            Some(_) | None => Ok(None),
        }
    }

    /// Whether both are of the same epoch: they may differ in where a partition begins.
    pub fn is_same_epoch(&self, other: &Decision) -> bool {
        self.stem == other.stem && self.seq == other.seq && self.tables == other.tables
    }

    /// Labels of the decided loads.
    pub fn labels(&self) -> impl Iterator<Item = String> {
        (0..self.tables).map(|table| label(&self.stem, self.seq, table))
    }

    /// Labels that were never decided and may be prepared.
    pub fn undecided_labels(&self) -> impl Iterator<Item = String> {
        let tables = self.tables_max;
        let sequences = self.seq + 1..=self.seq + SEQUENCES_UNDECIDED_MAX;
        sequences.flat_map(move |seq| (0..tables).map(move |table| label(&self.stem, seq, table)))
    }
}

/// Which records an epoch is made of, for people who have to mend what became of it: offsets by topic and partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent(BTreeMap<(String, u32), (i64, i64)>);

impl Extent {
    /// Adds records of a partition: the first offset, and the one behind the last.
    pub fn add(&mut self, topic: &str, partition: u32, from: i64, behind: i64) {
        if behind > from {
            let known = self.0.entry((topic.to_owned(), partition)).or_insert((from, behind));
            *known = (known.0.min(from), known.1.max(behind));
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, ((topic, partition), (from, behind))) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{topic}[{partition}] offsets {from} to {}", behind - 1)?;
        }
        Ok(())
    }
}

/// A decision that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownForm(pub String);

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} with loads into {} tables", self.stem, self.seq, self.tables)
    }
}

/// The label of one table's load.
pub fn label(stem: &str, seq: u64, table: u32) -> String {
    format!("{stem}-{seq}-{table}")
}

/// What whoever takes partitions over does, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Has the loads of these decisions, by their places, committed. Safe whoever does it, and however late; if that does
    /// not succeed, no further step is made.
    Finish(Vec<usize>),
    /// Claims the partitions: from then on nobody decides anything under an earlier stem.
    Claim,
    /// Rolls back the loads under these labels, those that are prepared.
    GiveUp(Vec<String>),
}

/// The steps of a take-over of partitions beside which the decisions `before` stand.
///
/// What is decided is committed before the claim writes over it. What is undecided is given up only after the claim
/// stands: a member that was taken for dead may read the claim of its living successor, and what it would roll back then
/// may be decided by now (decision 0025). So are those under an earlier stem of this very life: an epoch that was left because
/// nobody learned whether it was decided has rolled nothing back.
pub fn plan<'a>(before: impl Iterator<Item = &'a Decision> + Clone) -> [Step; 3] {
    let decided = before.clone().enumerate().filter(|(_, decision)| decision.tables > 0);
    [
        Step::Finish(decided.map(|(place, _)| place).collect()),
        Step::Claim,
        Step::GiveUp(before.flat_map(Decision::undecided_labels).collect()),
    ]
}

/// What is to be done about a load that was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// It is in the table, or will be in a moment.
    Done,
    /// Commit it.
    Commit,
    /// Its rows are not in the table and never will be: a person is needed.
    Lost,
}

/// What a decided load in `state` needs, asked `age` after its first phase began.
///
/// A prepared transaction is never evicted and nobody rolls a decided one back, so before StarRocks itself gives
/// prepared ones up an unknown label can only have been committed and then forgotten. Unknown to all FEs, that is, and to
/// those of the cluster that prepared it.
pub fn recover(state: LabelState, age: Duration, prepared_timeout: Duration) -> Recovery {
    match state {
        LabelState::Committed | LabelState::Visible => Recovery::Done,
        LabelState::Prepared => Recovery::Commit,
        LabelState::Unknown if age + FORGETTING_MARGIN < prepared_timeout => Recovery::Done,
        // Decided are only loads that were seen prepared: from there no way leads back to `Prepare`.
        LabelState::Unknown | LabelState::Aborted | LabelState::Prepare => Recovery::Lost,
    }
}

/// Whether an epoch whose first phase began `age` ago may still be decided: its commits must come long before
/// StarRocks gives it up.
pub fn may_decide(age: Duration, prepared_timeout: Duration) -> bool {
    age < prepared_timeout / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn terms() -> Terms {
        Terms { tables_max: 5, prepared_timeout: DAY, database: "shop".into() }
    }
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_decision_is_read_as_it_was_written() {
        let decision = Decision::of_epoch("orders-00ff-3", 7, 2, 1_700_000_000, &terms()).beginning_at(42);
        let text = decision.to_metadata();
        assert_eq!(Decision::read(&text), Ok(Some(decision.clone())), "{text}");
        assert!(text.len() < 220, "{text}");
        assert!(decision.labels().eq(["orders-00ff-3-7-0".to_owned(), "orders-00ff-3-7-1".to_owned()]));
        let first = FirstSight { at_ms: 1_700_000_000_123, partitions: 96, topics: Some(u32::MAX) };
        let more = decision.first_seen(Some(first)).asked_of(u32::MAX);
        let longer = more.to_metadata();
        assert_eq!(Decision::read(&longer), Ok(Some(more)), "{longer}");
        assert!(longer.len() <= text.len() + 80, "{longer}");
        assert_eq!(FirstSight::read(&longer), Some(first));
        let undecided: Vec<String> = decision.undecided_labels().collect();
        assert_eq!(undecided.len(), 4 * 5);
        assert_eq!(undecided.first().map(String::as_str), Some("orders-00ff-3-8-0"));
        assert_eq!(undecided.last().map(String::as_str), Some("orders-00ff-3-11-4"));
    }

    #[test]
    fn what_others_write_beside_an_offset_is_no_decision() {
        for text in ["", "{}", r#"{"v":1,"stem":"orders-00ff","from":0}"#, "consumer-1", "[2]"] {
            assert_eq!(Decision::read(text), Ok(None), "{text}");
        }
        let newer = Decision::empty("s", 1, &terms()).to_metadata().replace("\"v\":2", "\"v\":3");
        assert!(
            Decision::read(&newer).is_err(),
            "a form of a later version is neither guessed at nor passed over"
        );
        let cut = Decision::empty("s", 1, &terms()).to_metadata().replace(",\"db\":\"shop\"", "");
        assert!(Decision::read(&cut).is_err(), "{cut}");
    }

    #[test]
    fn a_decided_load_is_committed_or_known_to_be() {
        let check =
            |state, age, expected| assert_eq!(recover(state, age, DAY), expected, "{state:?} {age:?}");
        check(LabelState::Prepared, HOUR, Recovery::Commit);
        check(LabelState::Prepared, 3 * DAY, Recovery::Commit);
        check(LabelState::Committed, HOUR, Recovery::Done);
        check(LabelState::Visible, 30 * DAY, Recovery::Done);
        check(LabelState::Aborted, HOUR, Recovery::Lost);
        check(LabelState::Prepare, HOUR, Recovery::Lost);
        check(LabelState::Unknown, 22 * HOUR, Recovery::Done);
        check(LabelState::Unknown, 23 * HOUR, Recovery::Lost);
        check(LabelState::Unknown, 30 * DAY, Recovery::Lost);
    }

    #[test]
    fn what_is_decided_is_finished_before_the_claim_and_what_is_not_is_given_up_after() {
        let claimed = Decision::empty("orders-0a-1", 4, &terms());
        let decided = Decision::of_epoch("orders-0b-1", 7, 2, 0, &terms());
        let [finish, claim, give_up] = plan([&claimed, &decided].into_iter());
        assert_eq!((finish, claim), (Step::Finish(vec![1]), Step::Claim));
        let undecided = claimed.undecided_labels().chain(decided.undecided_labels());
        assert_eq!(give_up, Step::GiveUp(undecided.collect()));
    }

    #[test]
    fn an_extent_names_each_partition_that_has_records() {
        let mut extent = Extent::default();
        extent.add("orders", 1, 5, 5);
        extent.add("orders", 0, 12, 20);
        extent.add("orders", 0, 18, 41);
        extent.add("clicks", 3, 7, 8);
        assert_eq!(extent.to_string(), "clicks[3] offsets 7 to 7, orders[0] offsets 12 to 40");
    }

    #[test]
    fn an_epoch_is_decided_within_half_of_the_time_that_starrocks_keeps_it() {
        assert!(may_decide(11 * HOUR, DAY));
        assert!(!may_decide(12 * HOUR, DAY));
    }
}
