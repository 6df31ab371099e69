//! `tidemill check`: what is wrong, all at once.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;

use super::{EXIT_FAILED, EXIT_OK};
use crate::config::Overrides;
use crate::config::model::{Delivery, Isolation, Kafka, Pipeline, Source, StarRocks, TableModel};
use crate::dead_letter;
use crate::fault::Fault;
use crate::pipeline::{Destinations, Shared, load_plugins};
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::query::{Column, Query};
use crate::source::kafka::{self, Denied, Purpose, RIGHTS};
use crate::source::{http, postgres};

const AFTER_HELP: &str = "\
Exit codes:
  0  all is well
  1  a plugin is refused; or with --online: something is not there, or not as the file says
  2  a file or the command line is wrong";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Check {
    /// Pipeline files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also look at what the pipeline talks to: Kafka's topics (for exactly_once and Primary Key tables also the right to
    /// transactions, by one that is taken back) or the Postgres server, the address of an HTTP source, StarRocks with its
    /// tables, and whether the dead letters' topic is there; changes nothing. Rights to INSERT at StarRocks and to WRITE to
    /// that topic are not tried
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    overrides: Overrides,
}

impl Check {
    pub(super) fn execute(self) -> u8 {
        let plan = match super::load(&self.files, &self.overrides) {
            Ok(plan) => plan,
            Err(code) => return code,
        };
        let (runtime, shared) = match super::run::start(&plan) {
            Ok(started) => started,
            Err(fault) => {
                super::say(&fault);
                return EXIT_FAILED;
            }
        };
        let mut code = EXIT_OK;
        for pipeline in &plan.pipelines {
            let mut faults = Vec::new();
            let tables = offline(pipeline, &shared, &mut faults);
            if self.online {
                runtime.block_on(online(pipeline, &tables, &mut faults));
            }
            for fault in &faults {
                eprintln!("{}: error: {}", pipeline.file.display(), fault.story());
            }
            if faults.is_empty() {
                println!("{}: ok: {}", pipeline.file.display(), summary(pipeline, &tables));
            } else {
                code = EXIT_FAILED;
            }
        }
        code
    }
}

/// Plugins and routes; returns the tables that rows may go to.
fn offline(pipeline: &Pipeline, shared: &Shared, faults: &mut Vec<Fault>) -> Vec<String> {
    let found = load_plugins(pipeline, &shared.engine)
        .and_then(|plugins| Destinations::of(pipeline, &plugins, &[]).map(|found| found.names().to_vec()));
    found.unwrap_or_else(|fault| {
        faults.push(fault);
        pipeline.sink.table.iter().chain(&pipeline.sink.tables).cloned().collect()
    })
}

async fn online(pipeline: &Pipeline, tables: &[String], faults: &mut Vec<Fault>) {
    let survey = match &pipeline.source {
        Source::Kafka(source) => check_kafka(source, pipeline).map(|()| None),
        Source::Http(source) => http::check(source).await.map(|()| None),
        Source::Postgres(source) => postgres::Survey::of(source, &pipeline.name).await.map(Some),
    };
    let reached = survey.is_ok();
    let mut survey = survey.unwrap_or_else(|fault| {
        faults.push(fault);
        None
    });
    let mut primary = pipeline.sink.table_model == Some(TableModel::Primary);
    match check_warehouse(pipeline, tables, survey.as_mut(), faults).await {
        Ok(found) => primary |= found,
        Err(fault) => faults.push(fault),
    }
    if reached && primary {
        faults.extend(check_guard(pipeline).err());
    }
    match dead_letter::lacking_topic(pipeline) {
        Ok(None) => {}
        Ok(Some(lacking)) => eprintln!("{}: warning: {lacking}", pipeline.file.display()),
        // Brokers of a source that is out of reach were told of.
        Err(_) if !reached && dead_letter::go_to_source(pipeline) => {}
        Err(fault) => faults.push(fault),
    }
    if let Some(survey) = survey {
        tell(&pipeline.file, &survey, faults);
    }
}

/// Topics, and what else the promise needs.
fn check_kafka(source: &Kafka, pipeline: &Pipeline) -> Result<(), Fault> {
    kafka::check(source)?;
    match pipeline.delivery {
        Delivery::AtLeastOnce => Ok(()),
        Delivery::ExactlyOnce => {
            let tried = kafka::check_transactions(source, &pipeline.name, Purpose::Decisions);
            tried.map_err(Denied::into_fault)
        }
    }
}

/// Primary Key tables that are loaded at least once are guarded by transactions where there are any for the user, and
/// else by plain commits: the pipeline runs, promises a little less, and a warning says so. Offsets it has to commit.
fn check_guard(pipeline: &Pipeline) -> Result<(), Fault> {
    let (Source::Kafka(source), Delivery::AtLeastOnce) = (&pipeline.source, pipeline.delivery) else {
        return Ok(());
    };
    let why = match source.isolation {
        Isolation::ReadCommitted => {
            match kafka::check_transactions(source, &pipeline.name, Purpose::Claims) {
                Ok(()) => return Ok(()),
                Err(Denied::Offsets(fault)) => return Err(fault),
                Err(Denied::Transactions(fault)) => fault.retold().what,
            }
        }
        Isolation::ReadUncommitted => "isolation = \"read_uncommitted\" reads past transactions".to_owned(),
    };
    eprintln!(
        "{}: warning: Primary Key tables would be guarded by plain commits: {why}; one case is open then in which old rows \
         come back (docs/guarantees.md). Transactions need {RIGHTS}, and READ on the group and the topics",
        pipeline.file.display()
    );
    Ok(())
}

/// The FE, and the tables; whether one of them is a Primary Key table.
async fn check_warehouse(
    pipeline: &Pipeline,
    tables: &[String],
    survey: Option<&mut postgres::Survey>,
    faults: &mut Vec<Fault>,
) -> Result<bool, Fault> {
    Client::new(std::sync::Arc::new(pipeline.sink.clone()))?.ping().await?;
    let mut tables = tables.to_vec();
    if matches!(pipeline.source, Source::Postgres(_)) {
        // Its own table is a pattern, which the survey knows what to make of.
        tables.retain(|table| Some(table) != pipeline.sink.table.as_ref());
    }
    if let Some(survey) = survey {
        survey.look_at_warehouse(pipeline).await?;
        for (table, key) in survey.destinations().iter().filter(|(_, key)| !key.is_empty()) {
            println!("{}: table {table}: primary key ({})", pipeline.file.display(), key.join(", "));
        }
    }
    check_tables(pipeline, &tables, faults).await
}

/// Says what was found of a Postgres source, each defect with what mends it.
fn tell(file: &Path, survey: &postgres::Survey, faults: &mut Vec<Fault>) {
    for line in survey.defects().lines() {
        let begins = ["error: ", "warning: "].iter().any(|kind| line.starts_with(kind));
        if begins { eprintln!("{}: {line}", file.display()) } else { eprintln!("{line}") }
    }
    print!("{}", survey.steps());
    if survey.is_blocked() {
        faults.push(Fault::halt(
            "the database cannot be followed as it is",
            "mend what is named above, and check again",
        ));
    }
}

/// Whether one of the tables is a Primary Key table.
async fn check_tables(
    pipeline: &Pipeline,
    tables: &[String],
    faults: &mut Vec<Fault>,
) -> Result<bool, Fault> {
    let sink = &pipeline.sink;
    let mut query = Query::connect(sink).await?;
    let mut primary = false;
    for table in tables {
        let full = format!("{}.{table}", sink.database);
        match (query.table_model(table).await?, sink.table_model) {
            (None, _) => faults.push(Fault::halt(
                format!("table {full} is not there"),
                "create it; `tidemill run` says the statement that would fit its first rows",
            )),
            (Some(found), Some(said)) if found != said => faults.push(Fault::halt(
                format!("table {full} is of the {} model, the file says {}", found.name(), said.name()),
                "mend or leave out [sink.starrocks] table_model",
            )),
            (Some(found), _) if sink.partial_update && found != TableModel::Primary => {
                faults.push(Fault::halt(
                    format!(
                        "table {full} is of the {} model, whose rows cannot be updated in part",
                        found.name()
                    ),
                    "leave out `partial_update` in [sink.starrocks], or use a Primary Key table",
                ));
            }
            (Some(found), _) => {
                primary |= found == TableModel::Primary;
                println!("{}: table {full}: {}", pipeline.file.display(), found.name());
                let columns = query.columns(table).await?.unwrap_or_default();
                check_columns(sink, (&full, found), &columns, faults);
            }
        }
    }
    Ok(primary)
}

/// Whether the table has the columns of the file, and the file the key of a Primary Key table.
fn check_columns(
    sink: &StarRocks,
    (full, model): (&str, TableModel),
    found: &[Column],
    faults: &mut Vec<Fault>,
) {
    let missing = sink.columns.iter().filter(|name| found.iter().all(|column| column.name != **name));
    for name in missing {
        faults.push(Fault::halt(
            format!("table {full} has no column `{name}`"),
            "mend `columns` in [sink.starrocks]: names are told apart by case",
        ));
    }
    if sink.columns.is_empty() || model != TableModel::Primary {
        return;
    }
    for key in found.iter().filter(|column| column.key && !sink.columns.contains(&column.name)) {
        faults.push(Fault::halt(
            format!("`columns` lacks the key column `{}` of table {full}", key.name),
            "add it to `columns` in [sink.starrocks]",
        ));
    }
}

fn summary(pipeline: &Pipeline, tables: &[String]) -> String {
    let source = match &pipeline.source {
        Source::Kafka(source) => source.topics.join(", "),
        Source::Postgres(source) => format!("{}: {}", source.database, source.tables.join(", ")),
        Source::Http(source) => source.listen.to_string(),
    };
    let batch = &pipeline.batch;
    let plugins: Vec<String> = pipeline.transforms.iter().map(|transform| stem(&transform.plugin)).collect();
    let plugins = match plugins.as_slice() {
        [] => "no plugin".to_owned(),
        [one] => format!("plugin {one}"),
        several => format!("plugins {}", several.join(", ")),
    };
    let tables = match tables {
        [one] => one.clone(),
        several => format!("{{{}}}", several.join(", ")),
    };
    format!(
        "{} {source} → {plugins} → {}.{tables}, batches of {} rows, {}, {}",
        pipeline.source.name(),
        pipeline.sink.database,
        batch.max_rows,
        // As it would be written: 64 MiB, not 64.0 MiB.
        ByteSize(batch.max_bytes).display().iec().to_string().replacen(".0 ", " ", 1),
        humantime::format_duration(batch.linger)
    )
}

/// A plugin's name: that of its file.
fn stem(plugin: &Path) -> String {
    plugin.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_texts;

    #[test]
    fn the_line_of_a_good_file_reads_well() {
        let text = "[pipeline]\nname = \"orders\"\n[source.kafka]\nbrokers = [\"localhost:9092\"]\n\
                    topics = [\"orders\"]\n[[transform]]\nplugin = \"target/plugins/orders.wasm\"\n\
                    [sink.starrocks]\nfe = [\"http://127.0.0.1:8030\"]\ndatabase = \"shop\"\ntable = \"orders\"\n\
                    user = \"root\"\n";
        let summary = |text: &str, tables: &[&str]| {
            let flags = Overrides { cache_dir: Some("/tmp".into()), ..Overrides::default() };
            let plan = load_texts(&[(Path::new("orders.toml"), text)], &flags).unwrap();
            summary(&plan.pipelines[0], &tables.iter().map(|table| (*table).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            summary(text, &["orders"]),
            "kafka orders → plugin orders → shop.orders, batches of 500000 rows, 64 MiB, 1s"
        );
        let bare = text.replace("[[transform]]\nplugin = \"target/plugins/orders.wasm\"\n", "");
        assert_eq!(
            summary(&bare, &["a", "b"]),
            "kafka orders → no plugin → shop.{a, b}, batches of 500000 rows, 64 MiB, 1s"
        );
    }
}
