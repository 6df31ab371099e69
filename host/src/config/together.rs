//! What several files say together and cannot all mean.

use std::ops::Range;

use super::draft::Draft;
use super::model::{Kafka, Pipeline, Postgres, Source as ModelSource, StarRocks};
use super::pattern::{self, Pattern};
use super::problem::Problem;
use super::source::Source;

/// A file that was read, with its pipeline if that has no mistake of its own.
pub(super) type Read = (Source, Draft);

/// Notes each contradiction at the later place, naming the earlier one.
pub(super) fn check(files: &[Read]) {
    for (index, (source, draft)) in files.iter().enumerate() {
        for (earlier_source, earlier) in files.iter().take(index) {
            check_process((earlier_source, earlier), (source, draft));
            let (Some(ours), Some(theirs)) = (&draft.pipeline, &earlier.pipeline) else { continue };
            if ours.name == theirs.name {
                let what = format!(
                    "two pipelines are called {:?}; the other one: {}",
                    ours.name,
                    place(earlier_source, &earlier.name)
                );
                note(source, &draft.name, what, "a name of its own");
                // One file named twice would only repeat itself below.
                continue;
            }
            check_batches((earlier_source, earlier, theirs), (source, draft, ours));
            check_reads((earlier_source, earlier, theirs), (source, draft, ours));
        }
    }
}

fn check_process(earlier: (&Source, &Draft), later: (&Source, &Draft)) {
    if let (Some(first), Some(second)) = (&earlier.1.process, &later.1.process) {
        let what = format!("two tables [process]; the other one: {}", place(earlier.0, first));
        note(later.0, second, what, "it in one file, for all of them");
    }
}

fn check_batches(earlier: (&Source, &Draft, &Pipeline), later: (&Source, &Draft, &Pipeline)) {
    let ((theirs, ours), (their_limits, our_limits)) =
        ((&earlier.2.sink, &later.2.sink), (earlier.2.batch, later.2.batch));
    let Some(table) = shared_table(theirs, ours).filter(|_| their_limits != our_limits) else { return };
    let what = format!(
        "two pipelines load {}.{table} with different limits in [batch]; the other one: {}",
        ours.database,
        place(earlier.0, &earlier.1.batch)
    );
    note(later.0, &later.1.batch, what, "the same limits, since loads of both add up");
}

/// A table that both load, as far as the files say: what plugins declare is not known yet.
fn shared_table<'a>(theirs: &StarRocks, ours: &'a StarRocks) -> Option<&'a str> {
    let same_cluster =
        ours.fe.iter().any(|address| theirs.fe.contains(address)) && ours.database == theirs.database;
    let named =
        |sink: &'a StarRocks| sink.table.iter().chain(&sink.tables).filter(|name| !name.contains('{'));
    let mut shared =
        named(ours).filter(|table| theirs.table.iter().chain(&theirs.tables).any(|other| other == *table));
    shared.next().filter(|_| same_cluster).map(String::as_str)
}

/// Two pipelines that read the same thing would each get a part of it, or nothing.
fn check_reads(earlier: (&Source, &Draft, &Pipeline), later: (&Source, &Draft, &Pipeline)) {
    let (what, expected) = match (&earlier.2.source, &later.2.source) {
        (ModelSource::Kafka(theirs), ModelSource::Kafka(ours)) => {
            let Some(topic) = shared_topic(theirs, ours) else { return };
            let what = format!(
                "two pipelines read {topic:?} as one group {:?}, so each would get only a part of it",
                ours.group
            );
            (what, "a group of its own")
        }
        (ModelSource::Postgres(theirs), ModelSource::Postgres(ours)) => {
            let server = |source: &Postgres| (source.host.clone(), source.port);
            // A slot's name is unique on its server, whatever database it reads.
            if theirs.slot != ours.slot || server(theirs) != server(ours) {
                return;
            }
            (format!("two pipelines read the replication slot {:?}", ours.slot), "a slot of its own")
        }
        (ModelSource::Http(theirs), ModelSource::Http(ours)) => {
            // Port 0 is whatever is free.
            if theirs.listen != ours.listen || ours.listen.port() == 0 {
                return;
            }
            (format!("two pipelines listen on {}", ours.listen), "an address of its own")
        }
        (
            ModelSource::Kafka(_) | ModelSource::Postgres(_) | ModelSource::Http(_),
            ModelSource::Kafka(_) | ModelSource::Postgres(_) | ModelSource::Http(_),
        ) => return,
    };
    let what = format!("{what}; the other one: {}", place(earlier.0, &earlier.1.reads));
    note(later.0, &later.1.reads, what, expected);
}

/// A topic that both may read as one group: of two patterns nobody can say that they have none in common.
fn shared_topic<'a>(theirs: &Kafka, ours: &'a Kafka) -> Option<&'a str> {
    let same_group =
        ours.group == theirs.group && ours.brokers.iter().any(|broker| theirs.brokers.contains(broker));
    let has_pattern = |topics: &[String]| topics.iter().any(|topic| pattern::is_pattern(topic));
    let shared = ours.topics.iter().find(|topic| match pattern::is_pattern(topic) {
        true => has_pattern(&theirs.topics) || theirs.topics.iter().any(|other| is_meant(topic, other)),
        false => pattern::is_read(&theirs.topics, topic),
    });
    shared.filter(|_| same_group).map(String::as_str)
}

fn is_meant(pattern: &str, topic: &str) -> bool {
    Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(topic))
}

fn place(source: &Source, span: &Range<usize>) -> String {
    match source.place(span.start) {
        Some(place) => format!("{}:{}:{}", source.name, place.line, place.column),
        None => source.name.clone(),
    }
}

fn note(source: &Source, span: &Range<usize>, what: String, expected: &str) {
    source.note(span, Problem::at(source, span.clone(), what).expected(expected));
}
