//! One file's text → its pipeline, and where the things stand that other files can contradict.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::choice;
use super::columns;
use super::model::{
    BatchLimits, DeadLetters, Delivery, Isolation, Kafka, KafkaSecurity, MaxRejects, Pipeline, Sasl, Secret,
    Source as ModelSource, StarRocks, StretchBounds, TableModel, Tls, Transform,
};
use super::pattern;
use super::problem::Problem;
use super::sections::{self, ROOT};
use super::source::Source;
use super::table::{Table, quote};

mod http;
mod postgres;

/// What one file says. A part that has a mistake is none; the mistake is noted in the source.
pub(super) struct Draft {
    /// The pipeline, if all of it is right.
    pub(super) pipeline: Option<Pipeline>,
    /// Where `[process]` stands, if it does.
    pub(super) process: Option<Range<usize>>,
    /// Where the pipeline's name stands.
    pub(super) name: Range<usize>,
    /// Where the batch limits stand; without them, where the table stands.
    pub(super) batch: Range<usize>,
    /// Where that stands which only one pipeline can read: the topics, the slot or the address; without it,
    /// where the source stands.
    pub(super) reads: Range<usize>,
}

/// Reads a file's root table and hands it to `read`; none if the text is not TOML.
pub(super) fn with_root<T>(source: &Source, read: impl FnOnce(&Table<'_>) -> T) -> Option<T> {
    let (root, errors) = DeTable::parse_recoverable(&source.text);
    let syntax = errors.iter().filter(|error| error.message() != "duplicate key").count();
    for error in &errors {
        let span = error.span().unwrap_or_default();
        let problem = match source.text.get(span.clone()).filter(|_| error.message() == "duplicate key") {
            Some(key) => Problem::at(source, span.clone(), format!("{} stands here twice", quote(key))),
            None => {
                let (what, expected) = split_expected(error.message());
                let problem = Problem::at(source, span.clone(), format!("not valid TOML: {what}"));
                match expected {
                    Some(expected) => problem.expected(expected),
                    None => problem,
                }
            }
        };
        source.note(&span, problem);
    }
    // After a syntax error the rest of the file is a guess, and its problems would be too.
    (syntax == 0).then(|| read(&Table::open(source, &ROOT, 0..0, root.get_ref())))
}

/// The parser's message says both: `invalid string, expected a quote`.
fn split_expected(message: &str) -> (&str, Option<&str>) {
    match message.split_once(", expected ") {
        Some((what, expected)) => (what, Some(expected)),
        None => (message, None),
    }
}

impl Draft {
    /// Reads everything but `[process]`, which all files share.
    pub(super) fn read(root: &Table<'_>) -> Self {
        let heading = heading(root);
        let name = heading.as_ref().and_then(|table| table.get(&sections::pipeline::NAME));
        let delivery = heading.as_ref().and_then(|table| table.get(&sections::pipeline::DELIVERY));
        let source_table = choice::source(root);
        let source = source_table.as_ref().and_then(|table| read_source(table, name.as_deref()));
        let verify = heading.as_ref().and_then(|table| table.get(&sections::pipeline::VERIFY));
        if let (Some(heading), Some(delivery)) = (&heading, delivery) {
            check_delivery(heading, delivery, source.as_ref());
            check_verify(heading, delivery, verify);
        }
        let transforms: Vec<_> =
            root.tables(&sections::transform::SECTION).iter().map(read_transform).collect();
        let batch_table = root.table(&sections::batch::SECTION);
        let batch = read_batch(
            batch_table.as_ref().unwrap_or(&Table::absent(root.source, &sections::batch::SECTION)),
        );
        let sink_table = choice::sink(root);
        let kind = source_table.as_ref().map(|table| table.section.name());
        let sink = sink_table.as_ref().and_then(|table| read_starrocks(table, root, kind));
        let dead_letters = root.table(&sections::dead_letters::SECTION);
        let dead_letters = dead_letters.map(|table| read_dead_letters(&table, source.as_ref()));
        let assemble = || {
            Some(Pipeline {
                name: name?,
                file: root.source.path.clone(),
                delivery: delivery?,
                verify: verify?,
                source: source?,
                transforms: transforms.into_iter().collect::<Option<Vec<_>>>()?,
                batch: batch?,
                sink: sink?,
                max_rejects: match &dead_letters {
                    None => None,
                    Some(read) => read.as_ref()?.1,
                },
                dead_letters: match dead_letters {
                    None => None,
                    Some(read) => Some(read?.0),
                },
            })
        };
        let of_table = sink_table.map(|table| table.span_of("table"));
        Self {
            name: heading.as_ref().map_or(0..0, |table| table.span_of("name")),
            batch: batch_table.map(|table| table.span).or(of_table).unwrap_or(0..0),
            reads: source_table.map_or(0..0, |table| table.span_of(only_once(table.section.name()))),
            process: root.has("process").then(|| root.span_of("process")),
            pipeline: assemble(),
        }
    }
}

/// What cannot be kept must not be promised.
fn check_delivery(heading: &Table<'_>, delivery: Delivery, source: Option<&ModelSource>) {
    let why = match (delivery, source) {
        (Delivery::AtLeastOnce, _) | (_, None) => return,
        (Delivery::ExactlyOnce, Some(ModelSource::Kafka(kafka)))
            if kafka.isolation == Isolation::ReadCommitted =>
        {
            return;
        }
        (Delivery::ExactlyOnce, Some(ModelSource::Kafka(_))) => {
            "a decision of another process that is not ended yet would be read past: `isolation` has to be \"read_committed\""
        }
        (Delivery::ExactlyOnce, Some(ModelSource::Postgres(_))) => {
            "Postgres has no need of it: its Primary Key tables end in the source's state"
        }
        (Delivery::ExactlyOnce, Some(ModelSource::Http(_))) => {
            "only Kafka can be read again from where it was: use `Idempotency-Key`"
        }
    };
    let what = format!("`delivery` is \"exactly_once\": {why}");
    heading.note_at("delivery", what, |problem| {
        problem.expected("\"at_least_once\", or a Kafka source with it")
    });
}

/// Where rows may come twice, nothing hangs on plugins that make the same ones twice.
fn check_verify(heading: &Table<'_>, delivery: Delivery, verify: Option<bool>) {
    match (delivery, verify) {
        (Delivery::ExactlyOnce, _) | (Delivery::AtLeastOnce, Some(false) | None) => {}
        (Delivery::AtLeastOnce, Some(true)) => {
            let what = "`verify` is true and `delivery` is \"at_least_once\", which promises nothing that hangs on it";
            heading.note_at("verify", what, |problem| {
                problem.expected("it with delivery = \"exactly_once\" only")
            });
        }
    }
}

/// `[pipeline]`, which must be there.
fn heading<'a>(root: &Table<'a>) -> Option<Table<'a>> {
    let section = &sections::pipeline::SECTION;
    if !root.has(section.name()) && !root.has_misspelt(section.name()) {
        let problem = Problem::whole(root.source, format!("missing table {}", section.header()));
        root.source.note_whole(problem.expected("it with `name`"));
    }
    root.table(section)
}

/// The key of a source of which two pipelines cannot have the same value.
fn only_once(kind: &str) -> &'static str {
    match kind {
        "postgres" => "slot",
        "http" => "listen",
        _kafka => "topics",
    }
}

fn read_source(table: &Table<'_>, name: Option<&str>) -> Option<ModelSource> {
    match table.section.name() {
        "postgres" => postgres::read(table, name).map(ModelSource::Postgres),
        "http" => http::read(table).map(ModelSource::Http),
        _kafka => read_kafka(table, name).map(ModelSource::Kafka),
    }
}

fn read_kafka(table: &Table<'_>, name: Option<&str>) -> Option<Kafka> {
    use sections::kafka::{
        BROKERS, COMMIT_INTERVAL, FETCH_QUEUE, GROUP, ISOLATION, PROPERTIES, START, TOPICS,
    };
    let (brokers, topics) = (table.get(&BROKERS), table.get(&TOPICS));
    let group = table.get(&GROUP).or_else(|| name.map(str::to_owned));
    let (start, isolation) = (table.get(&START), table.get(&ISOLATION));
    let (commit_interval, fetch_queue) = (table.get(&COMMIT_INTERVAL), table.get(&FETCH_QUEUE));
    let properties = table.get(&PROPERTIES);
    let tls = table.table(&sections::kafka::TLS).map(|table| read_tls(&table));
    let sasl = table.table(&sections::kafka::SASL).map(|table| read_sasl(&table));
    Some(Kafka {
        brokers: brokers?,
        topics: topics?,
        group: group?,
        start: start?,
        isolation: isolation?,
        commit_interval: commit_interval?,
        fetch_queue_bytes: fetch_queue?,
        security: KafkaSecurity { tls, sasl: sasl.flatten() },
        properties: properties?,
    })
}

fn read_tls(table: &Table<'_>) -> Tls {
    use sections::kafka::{CA, CERTIFICATE, KEY};
    check_pair(table);
    Tls { ca: table.get(&CA), certificate: table.get(&CERTIFICATE), key: table.get(&KEY) }
}

/// A certificate is nothing without its key, nor the key without it.
fn check_pair(table: &Table<'_>) {
    for (has, lacks) in [("certificate", "key"), ("key", "certificate")] {
        if table.has(has) && !table.has(lacks) {
            let what = format!("`{has}` without `{lacks}` {}", table.section.inside());
            table.note_at(has, what, |problem| problem.expected("both or neither"));
        }
    }
}

fn read_sasl(table: &Table<'_>) -> Option<Sasl> {
    use sections::kafka::{MECHANISM, PASSWORD, USERNAME};
    let (mechanism, username, password) = (table.get(&MECHANISM), table.get(&USERNAME), table.get(&PASSWORD));
    Some(Sasl { mechanism: mechanism?.to_owned(), username: username?, password: password? })
}

fn read_transform(table: &Table<'_>) -> Option<Transform> {
    use sections::transform::{CONFIG, PLUGIN};
    let (plugin, config) = (table.get(&PLUGIN), table.get(&CONFIG));
    transform_of(table, plugin, config)
}

/// A plugin under the limits of its table; those of [`Table::absent`] are the defaults.
pub(super) fn transform_of(
    table: &Table<'_>,
    plugin: Option<PathBuf>,
    config_json: Option<String>,
) -> Option<Transform> {
    use sections::transform::{FAILURES_IN_A_ROW, LOG_LINES_PER_SECOND, MAX_OUTPUT, MEMORY, TIMEOUT, WASI};
    let (wasi, memory, timeout) = (table.get(&WASI), table.get(&MEMORY), table.get(&TIMEOUT));
    let (output, lines) = (table.get(&MAX_OUTPUT), table.get(&LOG_LINES_PER_SECOND));
    let failures = table.get(&FAILURES_IN_A_ROW);
    Some(Transform {
        plugin: plugin?,
        config_json: config_json?,
        wasi: wasi?,
        memory_bytes: memory?,
        timeout: timeout?,
        output_bytes: output?,
        log_lines_per_second: u32::try_from(lines?).ok()?,
        failures_in_a_row: u32::try_from(failures?).ok()?,
    })
}

fn read_batch(table: &Table<'_>) -> Option<BatchLimits> {
    use sections::batch::{LINGER, MAX_BYTES, MAX_ROWS, stretch};
    let (max_rows, max_bytes, linger) = (table.get(&MAX_ROWS), table.get(&MAX_BYTES), table.get(&LINGER));
    let within = table.table(&stretch::SECTION);
    let stretch = read_stretch(&within.unwrap_or(Table::absent(table.source, &stretch::SECTION)));
    Some(BatchLimits { max_rows: max_rows?, max_bytes: max_bytes?, linger: linger?, stretch: stretch? })
}

fn read_stretch(table: &Table<'_>) -> Option<Option<StretchBounds>> {
    use sections::batch::stretch::{CALM, ENABLED, LINGER, MAX_BYTES, MAX_ROWS, VERSIONS};
    let (max_rows, max_bytes, linger) = (table.get(&MAX_ROWS), table.get(&MAX_BYTES), table.get(&LINGER));
    let (enabled, versions, calm) = (table.get(&ENABLED), table.get(&VERSIONS), table.get(&CALM));
    let bounds = StretchBounds {
        max_rows: max_rows?,
        max_bytes: max_bytes?,
        linger: linger?,
        versions: versions?,
        calm: calm?,
    };
    Some(enabled?.then_some(bounds))
}

fn read_starrocks(table: &Table<'_>, root: &Table<'_>, source: Option<&str>) -> Option<StarRocks> {
    use sections::starrocks as keys;
    let (fe, query, database) = (table.get(&keys::FE), table.get(&keys::QUERY), table.get(&keys::DATABASE));
    let (own_table, tables) = (table.get(&keys::TABLE), table.get(&keys::TABLES));
    let (user, model) = (table.get(&keys::USER), table.get(&keys::TABLE_MODEL));
    let password = if table.has("password") { table.get(&keys::PASSWORD) } else { Some(Secret::default()) };
    let (in_flight, load_timeout) = (table.get(&keys::IN_FLIGHT), table.get(&keys::LOAD_TIMEOUT));
    let (redirect_hosts, ca) = (table.get(&keys::REDIRECT_HOSTS), table.get(&keys::CA));
    let (format, properties) = (table.get(&keys::FORMAT), table.get(&keys::PROPERTIES));
    let create_tables = table.get(&keys::CREATE_TABLES);
    let own_table = match source {
        Some("postgres") => own_table.or_else(|| Some(postgres::TABLE.to_owned())),
        _other => {
            check_postgres_only(table, own_table.as_deref(), create_tables);
            check_tables(table, root);
            own_table
        }
    };
    check_order(table, in_flight, model);
    let prepared_timeout = table.get(&keys::PREPARED_TIMEOUT);
    check_whole_seconds(table, "load_timeout", load_timeout);
    check_whole_seconds(table, "prepared_timeout", prepared_timeout);
    check_ca(table, fe.as_deref());
    let (columns, partial_update) = (table.get(&keys::COLUMNS), table.get(&keys::PARTIAL_UPDATE));
    let (mode, compression) = (table.get(&keys::PARTIAL_UPDATE_MODE), table.get(&keys::COMPRESSION));
    check_properties(table, properties.as_ref(), model);
    columns::check(table, columns.as_deref(), properties.as_ref(), (format, partial_update, model));
    Some(StarRocks {
        fe: fe?,
        query,
        database: database?,
        table: own_table,
        tables: tables?,
        create_tables: create_tables?,
        user: user?,
        password: password?,
        table_model: model,
        in_flight: usize::try_from(in_flight?).ok()?,
        load_timeout: load_timeout?,
        prepared_timeout: prepared_timeout?,
        redirect_hosts: redirect_hosts?,
        ca,
        properties: properties?,
        format: format?,
        columns: columns?,
        partial_update: partial_update?,
        partial_update_mode: mode?,
        compression: compression?,
    })
}

/// Only a source table has a name and a schema that a table in StarRocks can be made of.
fn check_postgres_only(table: &Table<'_>, own_table: Option<&str>, create_tables: Option<bool>) {
    if own_table.is_some_and(|name| name.contains('{')) {
        let what = "`table` has placeholders, which only [source.postgres] can fill";
        table.note_at("table", what, |problem| {
            problem.expected("a table's name; a plugin can route rows to several")
        });
    }
    if create_tables == Some(true) {
        let what = "`create_tables` is set, but only [source.postgres] knows what the tables would be";
        table.note_at("create_tables", what, |problem| {
            problem.hint("`tidemill run` says the statement that would fit the first rows")
        });
    }
}

fn check_tables(table: &Table<'_>, root: &Table<'_>) {
    if !table.has("table") && !root.has("transform") {
        let what = "missing key `table` in [sink.starrocks], and no plugin that could route rows";
        table.note_at("table", what, |problem| {
            problem.expected("table = \"orders\", or a [[transform]] that routes")
        });
    }
}

/// Two loads into a table where the last row of a key wins could end in either order.
fn check_order(table: &Table<'_>, in_flight: Option<u64>, model: Option<TableModel>) {
    if in_flight.is_some_and(|count| count > 1) && model != Some(TableModel::Duplicate) {
        let what = "`in_flight` is more than 1, but the order of loads may matter for the table";
        let expected = "1, or `table_model = \"duplicate\"` beside it";
        table.note_at("in_flight", what, |problem| problem.expected(expected));
    }
}

fn check_whole_seconds(table: &Table<'_>, key: &'static str, time: Option<Duration>) {
    if time.is_some_and(|time| time.subsec_nanos() != 0) {
        let what = format!("`{key}` is not a whole number of seconds");
        table.note_at(key, what, |problem| {
            problem.expected("whole seconds, which is all that StarRocks takes")
        });
    }
}

fn check_ca(table: &Table<'_>, fe: Option<&[String]>) {
    if table.has("ca") && fe.is_some_and(|fe| fe.iter().all(|address| address.starts_with("http://"))) {
        let what = "`ca` is set, but no address in `fe` begins with https://";
        table.note_at("ca", what, |problem| problem.expected("no `ca`, or an https:// address"));
    }
}

/// Properties that would load something else than what they look like.
fn check_properties(
    table: &Table<'_>,
    properties: Option<&BTreeMap<String, String>>,
    model: Option<TableModel>,
) {
    let Some(properties) = properties else { return };
    if let Some(paths) = properties.get("jsonpaths").filter(|_| model == Some(TableModel::Primary)) {
        check_deletes(table, paths);
    }
}

/// StarRocks finds the mark of a delete by its place among the paths, not by its name in the row.
fn check_deletes(table: &Table<'_>, jsonpaths: &str) {
    const DELETE_MARK: &str = "$.__op";
    let paths: Result<Vec<String>, _> = serde_json::from_str(jsonpaths);
    // What is no list of paths is StarRocks' to refuse.
    if paths.is_ok_and(|paths| paths.last().is_some_and(|last| last != DELETE_MARK)) {
        let what = "with `jsonpaths` StarRocks takes deletes from the last path only";
        table.note_at("properties", what, |problem| {
            problem.expected("\"$.__op\" as the last one of `jsonpaths`")
        });
    }
}

/// Where letters go, and how many there may be.
fn read_dead_letters(
    table: &Table<'_>,
    source: Option<&ModelSource>,
) -> Option<(DeadLetters, Option<MaxRejects>)> {
    use sections::dead_letters::{DIRECTORY, KAFKA, MAX_REJECTS};
    let expected = |problem: Problem| problem.expected("exactly one of `directory` and `kafka`");
    let (directory, kafka) = (table.get(&DIRECTORY), table.table(&KAFKA));
    let max_rejects = table.get(&MAX_REJECTS);
    if table.has("directory") == table.has("kafka") {
        let what =
            if table.has("kafka") { "both places for dead letters" } else { "no place for dead letters" };
        table.note_at("", format!("{what} in [dead_letters]"), expected);
        return None;
    }
    let place = match kafka {
        Some(kafka) => read_dead_topic(&kafka, source),
        None => directory.map(DeadLetters::Directory),
    };
    place.zip(max_rejects)
}

fn read_dead_topic(table: &Table<'_>, source: Option<&ModelSource>) -> Option<DeadLetters> {
    use sections::dead_letters::{BROKERS, TOPIC};
    let (topic, brokers) = (table.get(&TOPIC), table.get(&BROKERS));
    let (topics, other) = match source {
        Some(ModelSource::Kafka(kafka)) => (kafka.topics.as_slice(), false),
        Some(ModelSource::Postgres(_) | ModelSource::Http(_)) => (Default::default(), true),
        None => (Default::default(), false),
    };
    if topic.as_ref().is_some_and(|topic| pattern::is_read(topics, topic)) {
        let what = "`topic` is one that the pipeline reads, so a dead letter would come back for ever";
        table.note_at("topic", what, |problem| problem.expected("a topic of its own"));
    }
    if other && !table.has("brokers") && !table.has_misspelt("brokers") {
        let what =
            "missing key `brokers` in [dead_letters.kafka]: there is no [source.kafka] to have them from";
        table.note_at("brokers", what, |problem| {
            problem.expected("a line such as brokers = [\"localhost:9092\"]")
        });
    }
    Some(DeadLetters::Kafka { topic: topic?, brokers: brokers.unwrap_or_default() })
}
