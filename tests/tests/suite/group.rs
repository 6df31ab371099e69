//! Several processes of one group: partitions move, records do not get lost on the way.

use std::{collections::BTreeMap, time::Duration};
use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    kafka::Record,
    limit::within,
    metrics::Metrics,
    oracle::Promise,
    process::Tidemill,
    stand::{Model, Stand},
    wait_until,
};

/// How long a revoked partition waits for its sent batches (`REVOKE_DRAIN_MAX`).
const REVOKE_DRAIN_MAX_S: u64 = 60;

#[test]
fn a_million_records_while_members_come_and_go() {
    within(420, || {
        const RECORDS: u64 = 1_000_000;
        let stand = Stand::new("million", 12, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 20_000\nlinger = \"500ms\"".to_owned();
        let file = stand.write(&pipeline);
        let mut members: Vec<Tidemill> = (0..2).map(|_| Tidemill::run(&[&file])).collect();
        for (tenth, step) in (0..10).enumerate() {
            let first = RECORDS / 10 * step;
            stand.produce(first..first + RECORDS / 10);
            match tenth {
                // the third one comes
                1 | 5 | 8 => members.push(Tidemill::run(&[&file])),
                // the oldest one goes, in an orderly way
                3 | 6 => {
                    let mut leaver = members.remove(0);
                    leaver.drain(60);
                }
                _ => {}
            }
        }
        stand.until_released(180, RECORDS);
        assert_eq!(members.len(), 3);
        members.iter_mut().for_each(|member| member.drain(60));
        // Nobody crashed and every partition was given up in order: once, not merely at least once.
        stand.judge(RECORDS).must_keep(Promise::Once);
    });
}

#[test]
fn a_primary_key_table_ends_in_the_sources_state_while_members_come_and_go() {
    within(240, || {
        const ROUNDS: u64 = 8;
        const KEYS: u64 = 3_000;
        const RECORDS: u64 = ROUNDS * KEYS * 5;
        let stand = Stand::new("moving_keys", 6, Model::Primary);
        // Loads that take their time are still on their way when a partition has to be given up.
        stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 80 });
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 2_000\nlinger = \"100ms\"".to_owned();
        let file = stand.write(&pipeline);
        let mut members = vec![Tidemill::run(&[&file])];
        for round in 0..ROUNDS {
            let version = |id: u64| {
                let key = id % KEYS;
                let partition = i32::try_from(key % 6).expect("small");
                Record::of(format!(r#"{{"id":{key},"amount":{id}}}"#)).on(partition)
            };
            let first = round * RECORDS / ROUNDS;
            stand.kafka.produce(&stand.name, (first..first + RECORDS / ROUNDS).map(version));
            if round % 3 == 2 {
                members.remove(0).drain(60);
            } else {
                members.push(Tidemill::run(&[&file]));
                members.iter_mut().for_each(|member| member.until_ready(60));
            }
        }
        stand.until_released(120, RECORDS);
        let expected: BTreeMap<u64, u64> = (RECORDS - KEYS..RECORDS).map(|id| (id % KEYS, id)).collect();
        assert_eq!(stand.warehouse.amounts(&stand.table), expected, "each key has its last version");
    });
}

#[test]
fn a_killed_member_is_taken_over() {
    within(180, || {
        const RECORDS: u64 = 100_000;
        let stand = Stand::new("taken_over", 6, Model::Duplicate);
        let mut pipeline = stand.pipeline().soon_forgotten();
        pipeline.batch = "max_rows = 5_000\nlinger = \"300ms\"".to_owned();
        let file = stand.write(&pipeline);
        let mut members: Vec<Tidemill> = (0..3).map(|_| Tidemill::run(&[&file])).collect();
        for member in &mut members {
            member.until(60, "each of three members has partitions", |m| {
                m.count("tidemill_partitions", &[]) == 2
            });
        }
        stand.produce(0..RECORDS / 2);
        members[1].kill();
        stand.produce(RECORDS / 2..RECORDS);
        stand.until_released(90, RECORDS);
        stand.judge(RECORDS).must_keep(Promise::AtLeastOnce);
        let partitions =
            |member: &Tidemill| member.metrics().map_or(0, |m| m.count("tidemill_partitions", &[]));
        let own_all = || (partitions(&members[0]) + partitions(&members[2]) == 6).then_some(());
        wait_until(Duration::from_secs(30), own_all).expect("the living own all partitions");
    });
}

#[test]
fn an_idle_member_more_than_partitions_waits_and_takes_over() {
    within(120, || {
        let stand = Stand::new("spare_member", 1, Model::Duplicate);
        let file = stand.write(&stand.pipeline());
        let mut owner = Tidemill::run(&[&file]);
        owner.until(30, "the only partition is assigned", |m| m.count("tidemill_partitions", &[]) == 1);
        let mut spare = Tidemill::run(&[&file]);
        spare.until_ready(30);
        stand.produce(0..100);
        owner.until_settled(30, 100);
        owner.drain(30);
        spare.until(60, "the spare member has taken over", |m| m.count("tidemill_partitions", &[]) == 1);
        stand.produce(100..200);
        spare.until_settled(30, 100);
        spare.drain(30);
        stand.judge(200).must_keep(Promise::Once);
    });
}

fn partitions(metrics: &Metrics) -> u64 {
    metrics.count("tidemill_partitions", &[])
}

fn doubled(metrics: &Metrics) -> u64 {
    metrics.count("tidemill_possible_duplicate_partitions_total", &[])
}

/// A member of a group that loads `clicks` and `views`, the latter of which is refused while a second member comes and
/// takes over one of its two partitions.
struct Refused {
    stand: Stand,
    fault: u64,
    first: Tidemill,
    second: Tidemill,
}

impl Refused {
    const RECORDS: u64 = 4_000;

    /// `clicks` = half of the records go there, and are loaded.
    fn new(name: &str, clicks: bool) -> Refused {
        let stand = Stand::new(name, 2, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        stand.routed(&mut pipeline);
        let file = stand.write(&pipeline);
        let mut first = Tidemill::run(&[&file]);
        first.until(30, "it has both partitions", |metrics| partitions(metrics) == 2);
        let fault = stand.warehouse.fault_on("views", FaultKind::TooManyVersions);
        let record = |id: u64| {
            let kind = if clicks && id.is_multiple_of(2) { "click" } else { "view" };
            let partition = i32::from(id % 4 >= 2);
            Record::of(format!(r#"{{"id":{id},"kind":"{kind}","amount":1}}"#)).on(partition)
        };
        stand.kafka.produce(&stand.name, (0..Self::RECORDS).map(record));
        stand.warehouse.until_rows(30, "clicks", if clicks { Self::RECORDS / 2 } else { 0 });
        stand.warehouse.until_fired(fault, 1);
        let second = Tidemill::run(&[&file]);
        first.until_logged(30, "giving partitions up");
        Refused { stand, fault, first, second }
    }

    /// StarRocks takes everything again.
    fn is_over(&mut self) {
        self.stand.warehouse.clear_fault(self.fault);
        self.stand.until_released(120, Self::RECORDS);
        for member in [&mut self.first, &mut self.second] {
            member.until(60, "each has a partition", |metrics| partitions(metrics) == 1);
        }
        self.first.drain(60);
        self.second.drain(60);
    }

    fn may_come_twice(&self) -> bool {
        self.first.log().contains("their rows may come twice")
    }
}

/// What was loaded into the one table would come again, with what the other one refused.
#[test]
fn a_partition_that_moves_while_one_of_its_tables_is_refused_doubles_nothing() {
    within(180, || {
        let mut refused = Refused::new("moves_refused", true);
        refused.is_over();
        refused.stand.judge_routed(Refused::RECORDS).must_keep(Promise::Once);
        assert!(!refused.may_come_twice(), "{}", refused.first.log());
    });
}

#[test]
fn a_partition_of_which_nothing_could_be_loaded_moves_at_once() {
    within(180, || {
        let mut refused = Refused::new("moves_bare", false);
        // Well before a refused load would be tried in vain for the last time.
        let has_it = |metrics: &Metrics| partitions(metrics) == 1;
        refused.second.until(REVOKE_DRAIN_MAX_S / 2, "the other one has let it go", has_it);
        refused.is_over();
        refused.stand.judge_routed(Refused::RECORDS).must_keep(Promise::Once);
        assert!(!refused.may_come_twice(), "{}", refused.first.log());
    });
}

#[test]
fn a_partition_whose_table_is_refused_for_a_minute_moves_and_is_told_of() {
    within(300, || {
        let mut refused = Refused::new("moves_late", true);
        let told = |metrics: &Metrics| doubled(metrics) == 1;
        refused.first.until(REVOKE_DRAIN_MAX_S + 30, "its rows may come twice", told);
        assert!(refused.may_come_twice(), "{}", refused.first.log());
        refused.second.until(30, "it has the partition", |metrics| partitions(metrics) == 1);
        refused.is_over();
        let judgement = refused.stand.judge_routed(Refused::RECORDS);
        judgement.must_keep(Promise::AtLeastOnce);
        let clicks = usize::try_from(Refused::RECORDS / 4).expect("small");
        assert_eq!(judgement.repeated.len(), clicks, "the clicks of the partition that moved: {judgement}");
    });
}
