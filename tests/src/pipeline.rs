//! Pipeline files for tests: what every test needs, and room for what only one of them wants.

use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The group forgets a killed member after this long; the default of 10 s would make tests of crashes slow.
const SESSION_TIMEOUT_MS: u32 = 1_500;

/// One pipeline file, in the making. Fields that end in `_more` take further lines of their table.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    /// `[pipeline] name`.
    pub name: String,
    /// Kafka's address.
    pub brokers: String,
    /// Topics.
    pub topics: Vec<String>,
    /// Further lines of `[source.kafka]`.
    pub source_more: String,
    /// Whole `[[transform]]` tables.
    pub transforms: String,
    /// Lines of `[batch]`.
    pub batch: String,
    /// Addresses of FEs.
    pub fe: Vec<String>,
    /// Address of the query port.
    pub query: String,
    /// Table in the database `shop`.
    pub table: String,
    /// Further lines of `[sink.starrocks]`.
    pub sink_more: String,
    /// Lines of `[dead_letters]`; empty leaves the table out.
    pub dead_letters: String,
    /// Lines of `[process]`; empty leaves the table out.
    pub process: String,
}

impl Pipeline {
    /// The text of the file.
    #[must_use]
    pub fn toml(&self) -> String {
        let quoted =
            |list: &[String]| list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ");
        let table = |head: &str, lines: &str| match lines {
            "" => String::new(),
            lines => format!("\n{head}\n{lines}\n"),
        };
        format!(
            r#"[pipeline]
name = {name:?}

[source.kafka]
brokers = [{brokers:?}]
topics = [{topics}]
properties = {{ "session.timeout.ms" = "{SESSION_TIMEOUT_MS}", "heartbeat.interval.ms" = "300" }}
{source_more}

{transforms}
{batch}
[sink.starrocks]
fe = [{fe}]
query = {query:?}
database = "shop"
table = {sink_table:?}
user = "root"
{sink_more}
{dead_letters}{process}"#,
            name = self.name,
            brokers = self.brokers,
            topics = quoted(&self.topics),
            source_more = self.source_more,
            transforms = self.transforms,
            batch = table("[batch]", &self.batch),
            fe = quoted(&self.fe),
            query = self.query,
            sink_table = self.table,
            sink_more = self.sink_more,
            dead_letters = table("[dead_letters]", &self.dead_letters),
            process = table("[process]", &self.process),
        )
    }

    /// Writes the file as `<name>.toml` into a folder.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn write(&self, folder: &TempDir) -> PathBuf {
        let file = folder.path().join(format!("{}.toml", self.name));
        fs::write(&file, self.toml()).expect("the file can be written");
        file
    }
}

/// A `[[transform]]` table.
#[must_use]
pub fn transform(plugin: &Path, config: &str) -> String {
    format!("[[transform]]\nplugin = {plugin:?}\nconfig = {config}\n")
}
