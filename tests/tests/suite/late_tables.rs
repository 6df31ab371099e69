//! Tables that are made after their pipeline has started: what hangs on their key model could not be set up.

use tidemill_tests::{
    limit::within,
    process::Tidemill,
    stand::{Model, Stand},
};

/// A pipeline that has started, without its table.
fn without_its_table(name: &str) -> (Stand, Tidemill) {
    let stand = Stand::new(name, 1, Model::Duplicate);
    stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
    let mut tidemill = stand.run(&stand.pipeline());
    tidemill.until_logged(30, "the table is not there yet");
    tidemill.until_ready(30);
    (stand, tidemill)
}

#[test]
fn a_primary_key_table_halts_before_its_first_row_and_has_its_fence_from_the_next_start_on() {
    within(120, || {
        let (stand, mut first) = without_its_table("late_primary");
        stand.warehouse.primary_table(&stand.table);
        stand.produce(0..10);
        let ended = first.until_ended(60);
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        for words in
            ["was made with a Primary Key after the pipeline had started", "start the pipeline again"]
        {
            assert!(ended.log.contains(words), "{words:?} is not in {}", ended.log);
        }
        assert_eq!(stand.warehouse.stats(&stand.table).rows_loaded, 0);
        assert_eq!(stand.committed(), 0, "nothing is released that is not loaded");
        let mut second = stand.run(&stand.pipeline());
        let metrics = second.until_settled(60, 10);
        assert!(metrics.count("tidemill_fence_wait_seconds_count", &[]) > 0, "no load has met a fence");
        stand.warehouse.until_rows(30, &stand.table, 10);
        second.drain(30);
    });
}

#[test]
fn a_table_that_only_takes_rows_is_loaded() {
    within(90, || {
        let (stand, mut tidemill) = without_its_table("late_plain");
        stand.warehouse.duplicate_table(&stand.table);
        stand.produce(0..10);
        tidemill.until_settled(60, 10);
        let log = tidemill.log();
        assert_eq!(log.matches("the table is there by now").count(), 1, "{log}");
        stand.produce(10..20);
        tidemill.until_settled(60, 20);
        let log = tidemill.log();
        assert_eq!(log.matches("the table is there by now").count(), 1, "it was asked for again: {log}");
        stand.warehouse.until_rows(30, &stand.table, 20);
        tidemill.drain(30);
    });
}

#[test]
fn a_table_that_is_still_missing_halts_with_the_statement_that_makes_it() {
    within(90, || {
        let (stand, mut tidemill) = without_its_table("never_made");
        stand.produce(0..10);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(ended.log.contains(&stand.table), "{}", ended.log);
    });
}
