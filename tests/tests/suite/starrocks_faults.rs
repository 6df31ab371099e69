//! What StarRocks can do to a loader: refuse, forget, answer late, answer nothing. Each test says that its fault fired.

use std::collections::BTreeMap;
use tidemill_sandbox::{AnswerFault, ClientFate, ExistingLabel, FaultKind, Hop, LabelForm, Options};
use tidemill_tests::{
    kafka::{self, Record},
    limit::within,
    oracle::Promise,
    process::Tidemill,
    stand::{Model, Stand},
    warehouse::row,
};

const RECORDS: u64 = 10_000;

/// Loads through faults that pass, each of which meets so many loads.
fn through(name: &str, faults: &[FaultKind], times: u64, promise: Promise) -> (Stand, Tidemill) {
    let stand = Stand::new(name, 2, Model::Duplicate);
    let mut pipeline = stand.pipeline();
    // As many loads as there are faults to meet: none grows because of one.
    pipeline.batch = "max_rows = 2_500\nlinger = \"200ms\"\nstretch = { enabled = false }".to_owned();
    let mut tidemill = stand.run(&pipeline);
    // What is asked at the start has no patience with faults; what comes later must have.
    tidemill.until_ready(30);
    // Of this table alone: the row of `tidemill_runs` is written at about this time, and would take some of them.
    let set = |fault: &FaultKind| stand.warehouse.fault_times_on(&stand.table, fault.clone(), times);
    let set: Vec<u64> = faults.iter().map(set).collect();
    stand.produce(0..RECORDS);
    tidemill.until_settled(90, RECORDS);
    stand.until_released(30, RECORDS);
    for id in set {
        assert_eq!(stand.warehouse.fired(id), times, "{:?}: this shows nothing", stand.warehouse.faults());
    }
    // What is durable may be seen later.
    stand.warehouse.until_visible(30);
    stand.judge(RECORDS).must_keep(promise);
    (stand, tidemill)
}

#[test]
fn an_answer_lost_after_the_commit_loads_nothing_twice() {
    within(150, || {
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true };
        through("answer_lost", &[lost], 3, Promise::Once);
    });
}

#[test]
fn an_answer_cut_in_half_loads_nothing_twice() {
    within(150, || {
        let cut = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Truncated, committed: true };
        let page = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Http502, committed: true };
        through("answer_cut", &[cut, page], 2, Promise::Once);
    });
}

#[test]
fn an_aborted_load_is_sent_again() {
    within(150, || {
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Http500, committed: false };
        through("aborted", &[lost, FaultKind::DropMidBody { after_bytes: 1_000 }], 2, Promise::Once);
    });
}

#[test]
fn publish_timeout_is_durable_and_not_sent_again() {
    within(150, || {
        let (stand, _tidemill) = through(
            "publish_timeout",
            &[FaultKind::PublishTimeout { visible_after_ms: 500 }],
            4,
            Promise::Once,
        );
        let mut labels: Vec<String> = stand.warehouse.loads().into_iter().map(|load| load.label).collect();
        let all = labels.len();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), all, "no label came twice");
    });
}

#[test]
fn a_commit_with_unknown_outcome_is_asked_for() {
    within(150, || {
        through("unknown_yes", &[FaultKind::CommitUnknown { committed: true }], 2, Promise::Once);
        through("unknown_no", &[FaultKind::CommitUnknown { committed: false }], 2, Promise::Once);
    });
}

#[test]
fn a_load_that_commits_after_its_connection_died_is_waited_for() {
    within(150, || {
        let late = FaultKind::LateCommit { delay_ms: 2_000, client: ClientFate::Dropped };
        through("late_commit", &[late], 2, Promise::Once);
    });
}

#[test]
fn a_state_that_cannot_be_asked_for_is_asked_again() {
    within(150, || {
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Empty, committed: true };
        let silent = FaultKind::AnswerLost { at: Hop::State, how: AnswerFault::Http500, committed: false };
        let redirect =
            FaultKind::AnswerLost { at: Hop::Frontend, how: AnswerFault::Dropped, committed: false };
        through("state_lost", &[lost, silent, redirect], 2, Promise::Once);
    });
}

#[test]
fn a_forgotten_label_is_sent_again_and_counted() {
    within(150, || {
        let stand = Stand::new("forgotten", 1, Model::Duplicate);
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true };
        stand.warehouse.fault_times(lost, 1);
        stand.warehouse.fault(FaultKind::LabelForgotten);
        stand.produce(0..1_000);
        let mut tidemill = stand.run(&stand.pipeline());
        let metrics = tidemill.until_settled(60, 1_000);
        assert!(
            metrics.count("tidemill_possible_duplicate_batches_total", &[]) >= 1,
            "it says that rows may be twice"
        );
        stand.judge(1_000).must_keep(Promise::AtLeastOnce);
    });
}

#[test]
fn a_load_that_was_cut_off_and_forgotten_is_sent_again() {
    within(150, || {
        let cut = FaultKind::DropMidBody { after_bytes: 1_000 };
        through("cut_forgotten", &[cut, FaultKind::LabelForgotten], 2, Promise::Once);
    });
}

#[test]
fn a_label_that_another_load_seems_to_have_is_not_taken_for_loaded() {
    within(150, || {
        let running = FaultKind::LabelExists { existing: ExistingLabel::Running, form: LabelForm::Status };
        through("label_seems_taken", &[running], 2, Promise::Once);
    });
}

#[test]
fn faults_do_not_reorder_the_rows_of_a_key() {
    within(150, || {
        const KEYS: u64 = 20;
        let stand = Stand::new("reorder", 1, Model::Primary);
        let faults = [
            FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true },
            FaultKind::CommitUnknown { committed: false },
            FaultKind::TooManyVersions,
            FaultKind::LateCommit { delay_ms: 1_000, client: ClientFate::Dropped },
        ]
        .map(|fault| stand.warehouse.fault_times_on(&stand.table, fault, 2));
        let version = |id: u64| Record::of(format!(r#"{{"id":{},"amount":{id}}}"#, id % KEYS)).on(0);
        stand.kafka.produce(&stand.name, (0..RECORDS).map(version));
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 777\nlinger = \"200ms\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(90, RECORDS);
        let fired = faults.map(|id| stand.warehouse.fired(id));
        assert_eq!(fired, [2; 4], "{:?}: this shows nothing", stand.warehouse.faults());
        let expected: BTreeMap<u64, u64> = (RECORDS - KEYS..RECORDS).map(|id| (id % KEYS, id)).collect();
        assert_eq!(stand.warehouse.amounts(&stand.table), expected, "each key has its last version");
    });
}

#[test]
fn an_unrelated_use_of_the_label_is_not_taken_for_ours() {
    within(90, || {
        let stand = Stand::new("label_taken", 1, Model::Duplicate);
        // Nothing was ever sent under this label, and yet StarRocks says that it is finished: somebody else's.
        stand
            .warehouse
            .fault(FaultKind::LabelExists { existing: ExistingLabel::Finished, form: LabelForm::Status });
        stand.produce(0..10);
        let mut tidemill = stand.run(&stand.pipeline());
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1), "it halts instead of believing that its rows are there");
        assert_eq!(stand.committed(), 0);
    });
}

#[test]
fn too_many_versions_backs_off_and_comes_through() {
    within(150, || {
        let (stand, tidemill) = through("too_many", &[FaultKind::TooManyVersions], 3, Promise::Once);
        let attempts =
            tidemill.metrics().map_or(0, |metrics| metrics.count("tidemill_load_retries_total", &[]));
        let stats = stand.warehouse.stats(&stand.table);
        assert_eq!(stats.refused_too_many_versions, 3);
        assert_eq!(attempts, 3, "the refusals are counted as retries");
        assert_eq!(stats.rows_loaded, RECORDS, "and not split: as many rows as records");
        assert!(tidemill.log().contains("too many versions"), "the log says what StarRocks said");
    });
}

#[test]
fn a_table_that_is_never_compacted_stops_loads_without_a_spin_and_turns_ready_red() {
    within(150, || {
        let options = Options { tablet_max_versions: 5, compaction: None, ..Options::default() };
        let stand = Stand::on(kafka::shared(), "never_compacted", 1, Model::Duplicate, options);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 10\nlinger = \"100ms\"".to_owned();
        pipeline.process = "stall_after = \"5s\"".to_owned();
        stand.produce(0..500);
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_ready(30);
        tidemill.until_answer(60, "/ready", 503);
        let refused = stand.warehouse.stats(&stand.table).refused_too_many_versions;
        assert!((1..30).contains(&refused), "it was refused {refused} times: it spins");
        stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
        let ended = tidemill.until_ended(90);
        assert_eq!(ended.code, Some(1), "a dropped table halts");
    });
}

#[test]
fn passing_refusals_are_waited_out() {
    within(150, || {
        let faults = [
            FaultKind::RunningTxnLimit,
            FaultKind::ShuttingDown,
            FaultKind::NoBackend,
            FaultKind::LoadFails { message: "Memory of process exceed limit.".to_owned() },
        ];
        through("refusals", &faults, 1, Promise::Once);
    });
}

#[test]
fn a_dead_frontend_is_passed_over() {
    within(90, || {
        let stand = Stand::new("dead_fe", 1, Model::Duplicate);
        let dead = format!("http://127.0.0.1:{}", tidemill_test_kafka::free_port().expect("a port"));
        let mut pipeline = stand.pipeline();
        pipeline.fe.insert(0, dead);
        stand.produce(0..1_000);
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(60, 1_000);
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

#[test]
fn a_backend_that_is_down_is_waited_for() {
    within(150, || {
        let stand = Stand::new("be_down", 1, Model::Duplicate);
        stand.warehouse.fault(FaultKind::BackendRefuses);
        stand.produce(0..1_000);
        let mut pipeline = stand.pipeline();
        pipeline.process = "stall_after = \"5s\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        // Red it is also before it has begun.
        tidemill.until_ready(30);
        let why = tidemill.until_answer(60, "/ready", 503);
        assert!(!why.is_empty(), "it says what it waits for");
        assert_eq!(stand.committed(), 0, "nothing is released that is not loaded");
        stand.warehouse.clear_faults();
        tidemill.until_settled(90, 1_000);
        tidemill.until_ready(30);
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

#[test]
fn a_slow_redirect_and_a_late_continue_are_waited_for() {
    within(150, || {
        let slow = FaultKind::SlowRedirect { delay_ms: 800 };
        let late = FaultKind::ContinueWithheld { delay_ms: 2_000 };
        through("slow", &[slow, late], 2, Promise::Once);
    });
}

#[test]
fn credentials_go_to_no_foreign_host() {
    within(90, || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it can be polled");
        let authority = format!("localhost:{}", listener.local_addr().expect("an address").port());
        let stand = Stand::new("foreign", 1, Model::Duplicate);
        stand.warehouse.fault(FaultKind::RedirectTo { authority });
        stand.produce(0..10);
        let mut pipeline = stand.pipeline();
        pipeline.sink_more = "redirect_hosts = [\"127.0.0.1\"]".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("redirect_hosts"), "the hint names the key: {}", ended.log);
        assert!(listener.accept().is_err(), "nobody connected to the foreign host");
    });
}

#[test]
fn a_missing_table_halts_with_the_statement_that_would_create_it() {
    within(90, || {
        let stand = Stand::new("missing_table", 1, Model::Duplicate);
        stand.produce(0..10);
        let mut pipeline = stand.pipeline();
        pipeline.table = "nobody_made_me".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1));
        for what in ["CREATE TABLE", "nobody_made_me", "amount", "note"] {
            assert!(ended.log.contains(what), "{what} is not in {}", ended.log);
        }
        assert_eq!(stand.committed(), 0);
    });
}

#[test]
fn a_table_dropped_while_running_halts_and_moves_nothing() {
    within(90, || {
        let stand = Stand::new("dropped_table", 1, Model::Duplicate);
        stand.produce(0..100);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_settled(30, 100);
        stand.until_released(30, 100);
        stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
        stand.produce(100..200);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1));
        assert_eq!(stand.committed(), 100, "the offset did not move");
        assert!(ended.log.contains(&stand.table), "{}", ended.log);
    });
}

#[test]
fn revoked_grants_halt_with_a_hint() {
    within(90, || {
        let stand = Stand::new("revoked", 1, Model::Duplicate);
        stand.produce(0..100);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_settled(30, 100);
        stand.until_released(30, 100);
        stand.warehouse.fault(FaultKind::AccessDenied { at: Hop::Backend });
        stand.produce(100..200);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("INSERT"), "the hint names the privilege: {}", ended.log);
        assert_eq!(stand.committed(), 100);
    });
}

#[test]
fn wrong_credentials_are_clear_at_start() {
    within(60, || {
        let options = Options { password: Some("right-password".to_owned()), ..Options::default() };
        let stand = Stand::on(kafka::shared(), "wrong_password", 1, Model::Duplicate, options);
        stand.produce(0..10);
        let mut pipeline = stand.pipeline();
        pipeline.sink_more = "password = \"a-wrong-canary\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(15);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("password"), "{}", ended.log);
        assert!(!ended.log.contains("a-wrong-canary"), "secrets are not logged");

        pipeline.sink_more = "password = \"right-password\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 10);
    });
}

#[test]
fn an_unreachable_frontend_is_clear_within_ten_seconds() {
    within(60, || {
        let stand = Stand::new("no_fe", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        let dead = format!("127.0.0.1:{}", tidemill_test_kafka::free_port().expect("a port"));
        pipeline.fe = vec![format!("http://{dead}")];
        stand.kafka.produce(&stand.name, [Record::of(row(0))]);
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(12);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains(&dead), "it names the address: {}", ended.log);
    });
}

#[test]
fn the_query_port_given_by_mistake_is_recognised() {
    within(60, || {
        let stand = Stand::new("query_port", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.fe = vec![format!("http://{}", stand.warehouse.query())];
        stand.produce(0..1);
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(15);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("query port"), "{}", ended.log);
    });
}
