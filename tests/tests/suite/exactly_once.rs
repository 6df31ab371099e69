//! `delivery = "exactly_once"`: every record once in a Duplicate Key table, whatever is killed, frozen or lost.

use tidemill_sandbox::{AnswerFault, FaultKind, Hop, Options};
use tidemill_tests::{
    kafka::{self, Kafka, Record},
    limit::within,
    oracle::Promise,
    pipeline::Pipeline,
    process::tidemill_output,
    proxy::Proxy,
    stand::{Model, Stand},
};

/// Many small epochs need a compaction that keeps up.
fn stand(name: &str, partitions: i32) -> Stand {
    Stand::compacting(kafka::shared(), name, partitions, Model::Duplicate)
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
fn ten_kills_in_the_midst_of_epochs_lose_and_double_nothing() {
    const KILLS: u32 = 10;
    const EACH: u64 = 80_000;
    within(420, || {
        let stand = stand("once_kills", 4);
        let pipeline = pipeline(&stand, "max_rows = 500\nlinger = \"200ms\"").soon_forgotten();
        // Each step of an epoch takes a while, so that kills come between them.
        stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: 30 });
        let sent = stand.killed_in_epochs(&pipeline, KILLS, EACH, |ids| stand.produce(ids));
        stand.warehouse.clear_faults();
        let mut last = stand.run(&pipeline);
        stand.until_released(120, sent);
        last.drain(30);
        stand.judge(sent).must_keep(Promise::Once);
    });
}

/// Each answer is lost twice: that to the first try, and to the one after it.
#[test]
fn lost_answers_lose_and_double_nothing() {
    const LOST: u64 = 2;
    within(240, || {
        let stand = stand("once_answers", 2);
        let mut tidemill = stand.run(&pipeline(&stand, "max_rows = 200\nlinger = \"100ms\""));
        tidemill.until(60, "a partition", |metrics| metrics.count("tidemill_partitions", &[]) == 2);
        let mut sent = 0;
        for how in [AnswerFault::Dropped, AnswerFault::Truncated, AnswerFault::Empty, AnswerFault::Http502] {
            for (at, committed) in
                [(Hop::Backend, true), (Hop::Backend, false), (Hop::Frontend, false), (Hop::State, false)]
            {
                let lost = FaultKind::AnswerLost { at, how, committed };
                let fault = stand.warehouse.fault_times_on(&stand.table, lost, LOST);
                stand.produce(sent..sent + 500);
                sent += 500;
                // Of one kind after the other: no fault is left for the next one's epochs, and no epoch for its faults.
                stand.warehouse.until_fired(fault, LOST);
                stand.until_released(60, sent);
                stand.warehouse.until_rows(60, &stand.table, sent);
            }
        }
        tidemill.drain(30);
        stand.judge(sent).must_keep(Promise::Once);
    });
}

/// Cut off from FE and BE when a load has begun and nothing of its body has left: what was begun is never filled.
#[test]
fn a_process_cut_from_starrocks_between_begin_and_body_loads_once() {
    const RECORDS: u64 = 1_000;
    /// The time to cut in.
    const REDIRECT_TAKES_MS: u64 = 3_000;
    within(120, || {
        let stand = stand("once_cut", 1);
        let proxy = Proxy::to(stand.warehouse.fe_address());
        let mut cut_off = pipeline(&stand, "linger = \"200ms\"");
        cut_off.fe = vec![format!("http://{}", proxy.address())];
        let mut tidemill = stand.run(&cut_off);
        tidemill.until(60, "a partition", |metrics| metrics.count("tidemill_partitions", &[]) == 1);
        let slow = stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: REDIRECT_TAKES_MS });
        stand.produce(0..RECORDS);
        // The first redirect is that of the begin, which was answered before the body is on its way to the second.
        stand.warehouse.until_fired(slow, 2);
        proxy.refuse();
        assert!(proxy.cut() > 0, "the body waits for its redirect");
        stand.warehouse.fault(FaultKind::BackendRefuses);
        tidemill.until(60, "the epoch is given up", |metrics| {
            metrics.count("tidemill_epochs_rolled_back_total", &[]) > 0
        });
        assert_eq!(stand.committed(), 0, "nothing is decided");
        assert_eq!(stand.warehouse.stats(&stand.table).rows_loaded, 0);
        stand.warehouse.clear_faults();
        proxy.accept();
        stand.until_released(90, RECORDS);
        tidemill.drain(30);
        stand.judge(RECORDS).must_keep(Promise::Once);
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
        stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: 20 });
        let pipeline = pipeline(&stand, "max_rows = 1_000\nlinger = \"100ms\"").soon_forgotten();
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

#[test]
fn a_broker_that_dies_while_epochs_are_decided_loses_and_doubles_nothing() {
    within(240, || {
        const EACH: u64 = 4_000;
        let mut broker = kafka::own_broker(&[]);
        let stand = Stand::compacting(Kafka::of(&broker), "once_broker", 3, Model::Duplicate);
        stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: 20 });
        let mut tidemill = stand.run(&pipeline(&stand, "max_rows = 100\nlinger = \"50ms\""));
        for round in 0..4 {
            stand.produce(round * EACH..(round + 1) * EACH);
            // In the midst of its epochs.
            stand.until_released(60, round * EACH + EACH / 8);
            broker.kill();
            broker.start_again().expect("the broker starts again");
            stand.until_released(120, (round + 1) * EACH);
        }
        tidemill.drain(60);
        stand.judge(4 * EACH).must_keep(Promise::Once);
    });
}

#[test]
fn the_tables_of_an_epoch_are_loaded_once_each_whenever_the_process_is_killed() {
    within(180, || {
        const RECORDS: u64 = 40_000;
        let stand = stand("once_tables", 2);
        let kinds = ["click", "view", "view"];
        let record = |id: u64| {
            let kind = kinds[usize::try_from(id % 3).expect("small")];
            Record::of(format!(r#"{{"id":{id},"amount":1,"note":"n","kind":"{kind}"}}"#))
        };
        stand.kafka.produce(&stand.name, (0..RECORDS).map(record));
        let mut pipeline = pipeline(&stand, "max_rows = 300\nlinger = \"100ms\"").soon_forgotten();
        stand.routed(&mut pipeline);
        pipeline.pipeline_more = "verify = true".to_owned();
        stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: 20 });
        for kill in 1..6 {
            let mut tidemill = stand.run(&pipeline);
            stand.until_released(60, kill * RECORDS / 10);
            tidemill.kill();
        }
        stand.warehouse.clear_faults();
        let mut last = stand.run(&pipeline);
        stand.until_released(90, RECORDS);
        let metrics = last.metrics().expect("metrics");
        assert!(metrics.count("tidemill_chunks_verified_total", &[]) > 0, "{metrics:?}");
        last.drain(30);
        stand.judge_routed(RECORDS).must_keep(Promise::Once);
    });
}

#[test]
fn check_online_finds_brokers_that_keep_too_little_text_beside_offsets() {
    within(120, || {
        let broker = kafka::own_broker(&[("offset.metadata.max.bytes", "200")]);
        let stand = Stand::on(Kafka::of(&broker), "once_text", 1, Model::Duplicate, Options::default());
        let file = stand.write(&pipeline(&stand, ""));
        let output = tidemill_output(&["check", "--online", file.to_str().expect("a path of text")]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("raise the brokers' offset.metadata.max.bytes"), "{told}");
    });
}
