//! Several processes of one group: partitions move, records do not get lost on the way.

use std::{collections::BTreeMap, time::Duration};
use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    kafka::Record,
    limit::within,
    oracle::Promise,
    process::Tidemill,
    stand::{Model, Stand},
    wait_until,
};

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
