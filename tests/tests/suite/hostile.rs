//! Hostile plugins in a whole process: nothing of what they return is taken for data, nothing of what they take is taken from
//! the pipeline beside them, and their positions move only over what is loaded or kept.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    metrics::Metrics,
    pipeline::{Pipeline, transform},
    process::{Ended, Tidemill, tidemill_output},
    stand::{Model, Stand},
    wait_until,
    warehouse::{amount, row},
};

const RECORDS: u64 = 2_000;
const MEBIBYTE: u64 = 1 << 20;

/// The hostile plugin between a topic and its table, with dead letters in a folder.
fn hostile(stand: &Stand, config: &str, more: &str) -> Pipeline {
    let mut pipeline = stand.pipeline();
    pipeline.transforms = transform(&machine::plugin("hostile"), config) + more;
    // Where a plugin spoils whole chunks it would halt the pipeline otherwise, which other tests show.
    pipeline.dead_letters =
        format!("directory = {:?}\nmax_rejects = false", stand.folder.path().join("letters"));
    pipeline
}

/// A record that asks for a misdeed, and is a good row otherwise.
fn asking(id: u64, misdeed: &str, padding: usize) -> Record {
    let padding = "x".repeat(padding);
    Record::of(format!(r##"{{"id":{id},"amount":{},"note":"#hostile:{misdeed} {padding}"}}"##, amount(id)))
}

/// Identifiers of the records that were kept as dead letters: there is one partition, and each is its own offset.
fn kept(folder: &Path) -> BTreeSet<u64> {
    let files = fs::read_dir(folder).expect("a folder");
    let text: String =
        files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text")).collect();
    let id = |line: &str| {
        let letter: serde_json::Value = serde_json::from_str(line).expect("JSON");
        letter["offset"].as_u64().expect("an offset")
    };
    text.lines().map(id).collect()
}

/// What a plugin returns may be refused with its whole chunk, where nobody can know which rows are meant. What is loaded
/// is what was sent, everything else is kept, nothing is both, and only then the position moves.
fn loads_no_garbage(misdeed: &str) {
    let stand = Stand::new(&format!("garbage_{misdeed}"), 1, Model::Duplicate);
    let bad = [0, 777, RECORDS - 1];
    let record = |id: u64| if bad.contains(&id) { asking(id, misdeed, 0) } else { Record::of(row(id)) };
    stand.kafka.produce(&stand.name, (0..RECORDS).map(record));
    let mut tidemill = stand.run(&hostile(&stand, "{}", ""));
    tidemill.until_settled(90, RECORDS);
    stand.produce(RECORDS..RECORDS + 100);
    tidemill.until_settled(30, RECORDS + 100);
    tidemill.drain(30);
    assert_eq!(stand.committed(), RECORDS + 100, "{misdeed}");
    let rows = stand.warehouse.execute(&format!("SELECT id, amount, note FROM shop.{}", stand.table));
    let mut loaded = BTreeSet::new();
    for cells in rows {
        let [Some(id), Some(sum), Some(note)] = cells.as_slice() else {
            panic!("{misdeed}: {cells:?} is loaded")
        };
        let id: u64 = id.parse().expect("a number");
        assert_eq!((sum, note), (&amount(id).to_string(), &format!("order {id}")), "{misdeed}");
        assert!(loaded.insert(id), "{misdeed}: {id} is loaded twice");
    }
    let kept = kept(&stand.folder.path().join("letters"));
    assert!(bad.iter().all(|id| kept.contains(id)), "{misdeed}: {bad:?} are not all in {kept:?}");
    assert!(loaded.is_disjoint(&kept), "{misdeed}: loaded and kept");
    assert_eq!((loaded.len() + kept.len()) as u64, RECORDS + 100, "{misdeed}: lost");
    assert!(loaded.is_superset(&(RECORDS..RECORDS + 100).collect()), "{misdeed}: it goes on");
}

#[test]
fn rows_that_are_no_json_are_never_loaded() {
    within(180, || loads_no_garbage("values_text"));
}

#[test]
fn rows_that_are_no_text_are_never_loaded() {
    within(180, || loads_no_garbage("values_bytes"));
}

#[test]
fn rows_a_hundred_thousand_arrays_deep_are_never_loaded() {
    within(180, || loads_no_garbage("values_deep"));
}

#[test]
fn a_million_copies_of_a_record_are_never_made() {
    within(120, || {
        let stand = Stand::new("copies", 1, Model::Duplicate);
        // 900 MB, if they were.
        stand.kafka.produce(&stand.name, [asking(0, "many_rows", 900)]);
        let mut tidemill = stand.run(&hostile(&stand, "{}", ""));
        let metrics = tidemill.until_settled(60, 1);
        assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 1);
        stand.produce(1..1_000);
        tidemill.until_settled(30, 1_000);
        tidemill.drain(30);
        assert_eq!((stand.committed(), stand.warehouse.ids(&stand.table).len()), (1_000, 999));
    });
}

/// Rows of a round.
const ROUND: u64 = 200;

/// The rows of one pipeline, from their production to the table, in rounds; returns the longest round.
fn longest_round(stand: &Stand, tidemill: &mut Tidemill, rounds: std::ops::Range<u64>) -> Duration {
    let mut longest = Duration::ZERO;
    for round in rounds {
        let began = Instant::now();
        stand.produce(round * ROUND..(round + 1) * ROUND);
        tidemill.until(60, "the sibling's round is loaded", |metrics| {
            loaded(metrics, &stand.name) >= (round + 1) * ROUND
        });
        longest = longest.max(began.elapsed());
    }
    longest
}

fn loaded(metrics: &Metrics, pipeline: &str) -> u64 {
    metrics.count("tidemill_records_loaded_total", &[("pipeline", pipeline)])
}

fn threads(tidemill: &Tidemill) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", tidemill.pid())).expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).expect("Linux tells of threads");
    line.trim().parse().expect("a number")
}

/// I8: a plugin that burns its lane's time costs the pipeline beside it some processor and nothing else.
#[test]
fn a_plugin_that_spins_is_in_no_other_pipelines_way() {
    within(240, || {
        const SPINNING: u64 = 15;
        const TRIES: usize = 3;
        let spinning = Stand::new("spinning", 1, Model::Duplicate);
        let healthy = Stand::new("healthy", 1, Model::Duplicate);
        let file =
            spinning.write(&hostile(&spinning, "{}", "timeout = \"600ms\"\nfailures_in_a_row = 1000000\n"));
        let mut tidemill = Tidemill::run(&[&file, &healthy.write(&healthy.pipeline())]);
        tidemill.until_ready(30);
        let alone = longest_round(&healthy, &mut tidemill, 0..5);
        let before = threads(&tidemill);
        // Three calls of 600 ms each: together they take far longer than the rounds, and no chunk has as many as halt a pipeline.
        spinning.kafka.produce(&spinning.name, (0..SPINNING).map(|id| asking(id, "spin", 0)));
        tidemill
            .until(30, "the plugin spins", |metrics| metrics.count("tidemill_plugin_traps_total", &[]) > 0);
        // Twice, and half a second for a machine that others use, too. One that stands still for longer does so once; a lane in
        // the way is there all the while.
        let most = alone * 2 + Duration::from_millis(500);
        let (mut rounds, mut beside) = (5, Vec::new());
        while beside.len() < TRIES && beside.iter().all(|longest| *longest >= most) {
            beside.push(longest_round(&healthy, &mut tidemill, rounds..rounds + 5));
            rounds += 5;
        }
        let metrics = tidemill.metrics().expect("metrics");
        let settled = metrics.count("tidemill_records_dead_lettered_total", &[("pipeline", &spinning.name)]);
        assert!(settled < SPINNING, "it no longer spins: this shows nothing");
        println!("longest round {alone:?} alone, {beside:?} beside a spinning plugin, {before} threads");
        assert!(beside.iter().any(|longest| *longest < most), "{beside:?} instead of {alone:?}");
        assert!(threads(&tidemill) <= before + 1, "{} threads instead of {before}", threads(&tidemill));
        // Its own pipeline ends well, too: every record is kept.
        tidemill.until(150, "all that spin are kept", |metrics| {
            metrics.count("tidemill_records_dead_lettered_total", &[("pipeline", &spinning.name)]) == SPINNING
        });
        tidemill.drain(30);
        assert_eq!((spinning.committed(), healthy.committed()), (SPINNING, rounds * ROUND));
        healthy.judge(rounds * ROUND).must_keep(tidemill_tests::oracle::Promise::Once);
    });
}

/// Whatever a plugin wants, the process has the memory of its instances and a little more.
#[test]
fn memory_bombs_stay_within_their_instances() {
    within(180, || {
        const LANES: u64 = 2;
        const CAP: u64 = 32 * MEBIBYTE;
        const BOMBS: usize = 12;
        let stand = Stand::new("bombs", 2, Model::Duplicate);
        let mut pipeline = hostile(&stand, "{}", "memory = \"32MiB\"\nmax_output = \"32MiB\"\n");
        pipeline.process = format!("lanes = {LANES}\nbudget = \"16MiB\"");
        let mut tidemill = stand.run(&pipeline);
        stand.produce(0..100);
        tidemill.until_settled(60, 100);
        let before = tidemill.resident_bytes();
        // Each in a chunk of its own: of several in a chunk only the first would count.
        let misdeeds = ["grow", "grow_small", "values_huge", "many_rows", "leak", "small"];
        for (id, misdeed) in (100..).zip(misdeeds.iter().cycle().take(BOMBS)) {
            stand.kafka.produce(&stand.name, [asking(id, misdeed, 5_000)]);
            tidemill.until_settled(60, id + 1);
        }
        let most = tidemill.resident_bytes_max();
        println!("{} MiB before, {} MiB at the most", before / MEBIBYTE, most / MEBIBYTE);
        assert!(most <= before + LANES * CAP + 64 * MEBIBYTE, "{} MiB", most / MEBIBYTE);
        tidemill.drain(30);
        assert_eq!(stand.committed(), 100 + BOMBS as u64);
    });
}

#[test]
fn a_flood_of_log_lines_stays_out_of_the_log() {
    within(120, || {
        let stand = Stand::new("flood", 1, Model::Duplicate);
        let mut tidemill =
            stand.run(&hostile(&stand, "{ always = \"flood\" }", "log_lines_per_second = 20\n"));
        let began = Instant::now();
        let mut dropped = 0;
        // What was left out is told with the first line that gets through in a later second.
        for round in 1.. {
            stand.produce((round - 1) * 100..round * 100);
            let metrics = tidemill.until_settled(60, round * 100);
            dropped = metrics.count("tidemill_plugin_log_lines_dropped_total", &[]);
            if tidemill.log().contains("dropped log lines of a plugin above its limit") {
                break;
            }
        }
        tidemill.drain(30);
        let log = tidemill.log();
        let lines = log.lines().filter(|line| line.contains("of a flood")).count() as u64;
        assert!(dropped > 900_000, "only {dropped} lines were dropped: this shows nothing");
        assert!(lines > 0 && lines <= 20 * (began.elapsed().as_secs() + 2), "{lines} lines in the log");
    });
}

/// W5 and W7: the log says which code runs, and another file under the same name is other code from the next start on.
#[test]
fn the_log_names_the_digest_of_the_plugin_that_runs() {
    within(120, || {
        let stand = Stand::new("digest", 1, Model::Duplicate);
        let plugin = stand.folder.path().join("plugin.wasm");
        let mut digests = Vec::new();
        for (round, original) in ["hostile", "passthrough"].into_iter().enumerate() {
            fs::copy(machine::plugin(original), &plugin).expect("copied");
            let inspected = tidemill_output(&["plugin", "inspect", plugin.to_str().expect("text")]);
            let page = String::from_utf8_lossy(&inspected.stdout).into_owned();
            let digest =
                page.lines().find_map(|line| line.strip_prefix("sha256    ")).expect("a digest").to_owned();
            let mut pipeline = stand.pipeline().soon_forgotten();
            pipeline.transforms = transform(&plugin, "{}");
            let mut tidemill = stand.run(&pipeline);
            let first = round as u64 * 100;
            stand.produce(first..first + 100);
            stand.until_released(60, first + 100);
            assert!(tidemill.log().contains(&digest), "{digest} is not in {}", tidemill.log());
            tidemill.kill();
            digests.push(digest);
        }
        assert_ne!(digests[0], digests[1]);
        stand.judge(200).must_keep(tidemill_tests::oracle::Promise::Once);
    });
}

/// A plugin that halts its pipeline says so once, with what to do, and the process of this one pipeline ends with 1.
#[test]
fn a_plugin_that_always_spins_halts_with_a_hint() {
    within(120, || {
        let stand = Stand::new("stuck", 1, Model::Duplicate);
        stand.produce(0..1_000);
        let mut tidemill = stand.run(&hostile(
            &stand,
            "{ always = \"spin\" }",
            "timeout = \"100ms\"\nfailures_in_a_row = 5\n",
        ));
        let Ended { code, log } = tidemill.until_ended(60);
        assert_eq!(code, Some(1), "{log}");
        assert!(
            log.contains("failed on 5 records in a row") && log.contains("raise `failures_in_a_row`"),
            "{log}"
        );
        assert_eq!(stand.committed(), 0);
        let still = wait_until(Duration::from_secs(1), || (stand.committed() > 0).then_some(()));
        assert!(still.is_err(), "a position moved after the end");
    });
}
