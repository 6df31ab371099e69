//! `delivery = "exactly_once"`: every record once in a Duplicate Key table, whatever is killed, frozen or lost.

use std::time::Duration;

use rand::RngExt as _;
use tidemill_sandbox::{AnswerFault, FaultKind, Hop, Options};
use tidemill_tests::{
    kafka::{self, Record},
    limit::within,
    oracle::Promise,
    pipeline::Pipeline,
    stand::{Model, Stand},
    wait_until,
};

/// Many small epochs need a compaction that keeps up.
fn stand(name: &str, partitions: i32) -> Stand {
    let options = Options { compaction: Some(Duration::from_secs(1)), ..Options::default() };
    Stand::on(kafka::shared(), name, partitions, Model::Duplicate, options)
}

fn pipeline(stand: &Stand, batch: &str) -> Pipeline {
    Pipeline { delivery: "exactly_once".to_owned(), batch: batch.to_owned(), ..stand.pipeline() }
}

#[test]
fn records_are_loaded_once_and_the_group_knows_it_when_all_is_drained() {
    within(90, || {
        let stand = stand("once", 3);
        stand.produce(0..30_000);
        let mut tidemill = stand.run(&pipeline(&stand, "max_rows = 2_000\nlinger = \"200ms\""));
        stand.until_released(60, 30_000);
        stand.produce(30_000..30_100);
        stand.until_released(30, 30_100);
        tidemill.drain(30);
        stand.judge(30_100).must_keep(Promise::Once);
        // The next one begins where this one ended.
        stand.produce(30_100..30_200);
        let mut next = stand.run(&pipeline(&stand, "linger = \"100ms\""));
        stand.until_released(30, 30_200);
        next.drain(30);
        stand.judge(30_200).must_keep(Promise::Once);
    });
}

#[test]
fn twenty_kills_lose_and_double_nothing() {
    const KILLS: u32 = 20;
    const RECORDS: u64 = 300_000;
    within(300, || {
        let stand = stand("once_kills", 4);
        stand.produce(0..RECORDS);
        let mut random = rand::rng();
        let pipeline = pipeline(&stand, "max_rows = 500\nlinger = \"200ms\"");
        stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 40 });
        let offsets = stand.offsets();
        let released_all = || (offsets.sum() >= RECORDS).then_some(());
        let mut busy = 0;
        for _ in 0..KILLS {
            let mut tidemill = stand.run(&pipeline);
            let before = offsets.sum();
            let life = Duration::from_millis(random.random_range(800..3_500));
            let done = wait_until(life, released_all);
            tidemill.kill();
            busy += u32::from(done.is_err() && offsets.sum() > before);
        }
        assert!(busy >= KILLS / 4, "only {busy} of {KILLS} kills hit a process that was loading");
        stand.warehouse.clear_faults();
        let mut last = stand.run(&pipeline);
        stand.until_released(120, RECORDS);
        last.drain(30);
        stand.judge(RECORDS).must_keep(Promise::Once);
    });
}

#[test]
fn lost_answers_lose_and_double_nothing() {
    within(180, || {
        let stand = stand("once_answers", 2);
        let mut tidemill = stand.run(&pipeline(&stand, "max_rows = 200\nlinger = \"100ms\""));
        let mut sent = 0;
        for how in [AnswerFault::Dropped, AnswerFault::Truncated, AnswerFault::Empty, AnswerFault::Http502] {
            for (at, committed) in
                [(Hop::Backend, true), (Hop::Backend, false), (Hop::Frontend, false), (Hop::State, false)]
            {
                stand.warehouse.fault_times(FaultKind::AnswerLost { at, how, committed }, 2);
                stand.produce(sent..sent + 500);
                sent += 500;
                stand.until_released(60, sent);
            }
        }
        assert!(stand.warehouse.faults_fired() >= 16, "{} faults fired", stand.warehouse.faults_fired());
        tidemill.drain(30);
        stand.judge(sent).must_keep(Promise::Once);
    });
}

#[test]
fn bad_rows_become_dead_letters_and_the_others_come_once() {
    within(120, || {
        let stand = stand("once_rejects", 2);
        let letters = tempfile::tempdir().expect("a folder");
        let mut with_letters = pipeline(&stand, "max_rows = 2_000\nlinger = \"500ms\"");
        with_letters.dead_letters = format!("directory = {:?}", letters.path());
        stand.produce(0..1_000);
        let bad = ["{\"id\": 7", "{\"id\":\"no number\",\"amount\":1,\"note\":\"x\"}", "[1]"];
        stand.kafka.produce(&stand.name, bad.map(|text| Record::of(text).on(0)));
        stand.produce(1_000..2_000);
        let mut tidemill = stand.run(&with_letters);
        stand.until_released(60, 2_003);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 3, "{metrics:?}");
        tidemill.drain(30);
        stand.judge(2_000).must_keep(Promise::Once);
    });
}

#[test]
fn members_that_come_go_and_freeze_lose_and_double_nothing() {
    within(300, || {
        const ROUNDS: u64 = 8;
        const EACH: u64 = 10_000;
        let stand = stand("once_members", 6);
        stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 60 });
        let pipeline = pipeline(&stand, "max_rows = 1_000\nlinger = \"100ms\"");
        let mut members: Vec<_> = (0..2).map(|_| stand.run(&pipeline)).collect();
        for round in 0..ROUNDS {
            stand.produce(round * EACH..(round + 1) * EACH);
            stand.until_released(90, round * EACH + EACH / 4);
            match round {
                1 | 4 => members.push(stand.run(&pipeline)),
                2 => members.remove(0).drain(60),
                // Past the session's time-out: another one has its partitions when it comes back.
                3 | 6 => {
                    let frozen = members.last().expect("a member");
                    frozen.freeze();
                    stand.until_released(90, (round + 1) * EACH);
                    frozen.thaw();
                }
                5 => members.remove(0).kill(),
                _ => {}
            }
        }
        stand.until_released(120, ROUNDS * EACH);
        members.iter_mut().for_each(|member| member.drain(60));
        stand.judge(ROUNDS * EACH).must_keep(Promise::Once);
    });
}
