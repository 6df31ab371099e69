//! The profile that follows a Postgres slot: one process reads, one stands by, the server restarts under a workload.

use super::{
    Clock, Settings,
    profile::Profile,
    schedule::Action,
    slot::{self, SlotWatch},
    stage::Stage,
    tally::Tally,
};
use crate::{
    comparison::Comparison,
    judge::{
        Invariant, Violation,
        liveness::{DRAINED_WITHIN, PROBE_WITHIN, Rest, comes_to_rest},
        records::Counted,
    },
    pipeline::{self, Pipeline, Source},
    postgres::Postgres,
    wait_until,
    workload::{self, TABLES, Workload},
};
use std::{
    thread,
    time::{Duration, Instant},
};
use tidemill_test_postgres::{Settings as ServerSettings, Stop};

/// One that reads, one that stands by.
const READERS: usize = 2;
/// Rows of each table before the writers begin.
const ROWS: u64 = 3_000;
/// What a writer rests between two transactions: the judge compares whole tables.
const PAUSE: Duration = Duration::from_millis(40);

/// How long a step waits for loads since the last one, before it is taken all the same.
const PROGRESS_WITHIN: Duration = Duration::from_secs(8);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Runs the profile.
///
/// # Panics
/// When Postgres cannot be had, or a writer is refused.
pub(super) fn run(settings: &Settings) -> Tally {
    let mut postgres = Postgres::own("chaos", &ServerSettings::default());
    let load = workload::Settings {
        seed: settings.seed,
        rows: ROWS,
        keys: 2 * ROWS,
        pause: PAUSE,
        ..Default::default()
    };
    workload::prepare(&postgres, &load);
    slot::prepare(&postgres);
    let mut stage = Stage::new();
    let pipeline = pipeline(&postgres, &stage);
    stage.begin(&[pipeline], READERS);
    let writers = Workload::start(&postgres, &load);
    let watch = SlotWatch::start(&postgres, &stage.warehouse);
    let clock = Clock::start(settings);
    let mut loaded = 0;
    let mut steps = Profile::Postgres.schedule(settings.seed).enumerate();
    while clock.goes_on(&stage.tally) {
        let Some((number, step)) = steps.next() else { break };
        stage.rest(Duration::from_millis(step.pause_ms));
        if step.action.wants_progress() {
            loaded = until_more(&mut stage, loaded);
        }
        println!("{:>5} s {number:>4} {step}", clock.seconds());
        if !stage.take(&step)
            && let Action::Postgres { way } = step.action
        {
            while_it_restarts(&mut postgres, way, &mut stage);
            stage.tally.fired("postgres restart");
        }
        stage.count_fired();
    }
    stage.await_faults();
    println!("{:>5} s the faults stop", clock.seconds());
    println!("        all processes are ready after {} s", stage.calm().as_secs());
    let counts = writers.stop();
    watch.rest();
    println!("        {counts}");
    let rest = come_to_rest(&mut stage, &postgres);
    stage.tally.violations.extend(comes_to_rest(&rest));
    stage.land(Profile::Postgres.late_ms_max(), false);
    stage.end();
    stage.tally.violations.extend(watch.stop());
    judge(&mut stage, &postgres);
    stage.finish()
}

pub(super) fn pipeline(postgres: &Postgres, stage: &Stage) -> Pipeline {
    Pipeline {
        name: postgres.database().to_owned(),
        source: Source::Postgres(pipeline::Postgres::of(postgres)),
        batch: "linger = \"200ms\"".to_owned(),
        fe: vec![stage.warehouse.fe()],
        query: stage.warehouse.query(),
        sink_more: format!("create_tables = true\npassword = {:?}", stage.canary),
        dead_letters: format!("directory = {:?}", stage.letters),
        ..Pipeline::default()
    }
}

/// Waits until there are more loads than `before`, or long enough; returns how many there are.
fn until_more(stage: &mut Stage, before: usize) -> usize {
    let begun = Instant::now();
    let mut found = stage.warehouse.loads().len();
    while found <= before && begun.elapsed() < PROGRESS_WITHIN {
        stage.rest(LOOK_AGAIN);
        found = stage.warehouse.loads().len();
    }
    found
}

/// Restarts the server, and does what is due meanwhile: it waits for a reader that is frozen.
fn while_it_restarts(postgres: &mut Postgres, way: u32, stage: &mut Stage) {
    thread::scope(|scope| {
        let restarting = scope.spawn(|| restart(postgres, way));
        while !restarting.is_finished() {
            stage.rest(LOOK_AGAIN);
        }
    });
}

fn restart(postgres: &mut Postgres, way: u32) {
    let server = postgres.server();
    let outcome = match way {
        0 => server.restart(Stop::Fast),
        1 => server.restart(Stop::Immediate),
        _ => server.kill().and_then(|()| server.start_again()),
    };
    outcome.unwrap_or_else(|fault| panic!("{fault}"));
}

/// All that are followed.
fn tables() -> Vec<&'static str> {
    TABLES.into_iter().chain([slot::TABLE]).collect()
}

/// Tables that differ from their source, as far as both can be read.
pub(super) fn differing(stage: &Stage, postgres: &Postgres, tables: &[&str]) -> Vec<String> {
    let differs = |table: &&str| -> Option<String> {
        let (source, loaded) = (format!("public.{table}"), format!("shop.{table}"));
        // The table may still be to be made, and a column of it to be added.
        stage.warehouse.attempt(&format!("SELECT COUNT(*) FROM {loaded}")).err().or_else(|| {
            let differences =
                Comparison::of(postgres, &source, &loaded).differences(postgres, &stage.warehouse);
            let first = differences.first()?;
            Some(format!("{} differences of {table}, such as {first}", differences.len()))
        })
    };
    tables.iter().filter_map(differs).collect()
}

/// Waits until all tables are equal, and changes a row then.
fn come_to_rest(stage: &mut Stage, postgres: &Postgres) -> Rest {
    let equal = |stage: &mut Stage, limit| {
        let begun = Instant::now();
        let done = wait_until(limit, || {
            stage.rest(Duration::ZERO);
            differing(stage, postgres, &tables()).is_empty().then_some(())
        });
        done.is_ok().then(|| begun.elapsed())
    };
    let drained = equal(stage, DRAINED_WITHIN);
    println!("        lag is gone: {drained:?}");
    postgres.run("UPDATE account SET note = 'probe' WHERE id % 7 = 0");
    let probe = equal(stage, PROBE_WITHIN);
    println!("        fresh changes are there: {probe:?}");
    Rest { drained, probe }
}

/// I1, I3 and I4 at once: each table equals its source.
fn judge(stage: &mut Stage, postgres: &Postgres) {
    for difference in differing(stage, postgres, &tables()) {
        stage.tally.violations.push(Violation::new(Invariant::FinalState, difference));
    }
    for table in tables() {
        let rows = postgres.number(&format!("SELECT count(*) FROM {table}"));
        let loaded = stage.warehouse.number(&format!("SELECT COUNT(*) FROM shop.{table}"));
        let counted = Counted {
            acknowledged: rows,
            loaded,
            missing: rows.saturating_sub(loaded),
            repeated: loaded.saturating_sub(rows),
            ..Counted::default()
        };
        stage.tally.records.insert(table.to_owned(), counted);
    }
}
