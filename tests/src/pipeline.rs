//! Pipeline files for tests: what every test needs, and room for what only one of them wants.

use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// When the group forgets a member that is [soon forgotten](Pipeline::soon_forgotten).
const SHORT_SESSION_MS: u32 = 1_500;

/// One pipeline file, in the making. Fields that end in `_more` take further lines of their table.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    /// `[pipeline] name`.
    pub name: String,
    /// `[pipeline] delivery`; empty leaves the key out.
    pub delivery: String,
    /// Further lines of `[pipeline]`.
    pub pipeline_more: String,
    /// Where records come from.
    pub source: Source,
    /// Kafka's address.
    pub brokers: String,
    /// Topics of Kafka.
    pub topics: Vec<String>,
    /// The group forgets a member after 1.5 s without a heartbeat: for tests that kill or freeze members, and would wait for
    /// the default of 10 s each time. In others a machine that stands still for so long would have members put out, and
    /// their records be loaded twice.
    pub is_soon_forgotten: bool,
    /// Further lines of `[source.…]`.
    pub source_more: String,
    /// Whole `[[transform]]` tables.
    pub transforms: String,
    /// Lines of `[batch]`.
    pub batch: String,
    /// Addresses of FEs.
    pub fe: Vec<String>,
    /// Address of the query port.
    pub query: String,
    /// Table in the database `shop`; empty leaves the key out.
    pub table: String,
    /// Further lines of `[sink.starrocks]`.
    pub sink_more: String,
    /// Lines of `[dead_letters]`; empty leaves the table out.
    pub dead_letters: String,
    /// Lines of `[process]`; empty leaves the table out.
    pub process: String,
}

/// Which `[source.…]` a pipeline has.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// `[source.kafka]`, by [`Pipeline::brokers`] and [`Pipeline::topics`].
    #[default]
    Kafka,
    /// `[source.postgres]`.
    Postgres(Postgres),
    /// `[source.http]`.
    Http(Http),
}

/// What each `[source.postgres]` says; `slot`, `snapshot` and the like are lines of [`Pipeline::source_more`].
#[derive(Clone, Debug, Default)]
pub struct Postgres {
    /// Host or folder of the socket.
    pub host: String,
    /// Port of the server, or of a proxy before it.
    pub port: u16,
    /// Database.
    pub database: String,
    /// Role.
    pub user: String,
    /// Its password; empty leaves the key out.
    pub password: String,
    /// Tables as `schema.table`, with wildcards.
    pub tables: Vec<String>,
    /// Tables left out of those; empty leaves the key out.
    pub exclude: Vec<String>,
}

/// What each `[source.http]` says; limits and the like are lines of [`Pipeline::source_more`].
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// `127.0.0.1:port`.
    pub listen: String,
    /// Bearer tokens; empty leaves the key out.
    pub tokens: Vec<String>,
}

impl Postgres {
    /// All tables of the schema `public` of a test's database, as the superuser over TCP.
    #[must_use]
    pub fn of(postgres: &crate::postgres::Postgres) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: postgres.port(),
            database: postgres.database().to_owned(),
            user: "postgres".to_owned(),
            tables: vec!["public.*".to_owned()],
            ..Self::default()
        }
    }

    fn toml(&self) -> String {
        format!(
            "[source.postgres]\nhost = {:?}\nport = {}\ndatabase = {:?}\nuser = {:?}\n{}tables = [{}]\n{}",
            self.host,
            self.port,
            self.database,
            self.user,
            unless_empty("password", &self.password),
            quoted(&self.tables),
            list_unless_empty("exclude", &self.exclude),
        )
    }
}

impl Http {
    fn toml(&self) -> String {
        format!("[source.http]\nlisten = {:?}\n{}", self.listen, list_unless_empty("tokens", &self.tokens))
    }
}

impl Pipeline {
    /// The same pipeline, whose members are [forgotten soon](Self::is_soon_forgotten).
    #[must_use]
    pub fn soon_forgotten(self) -> Self {
        Self { is_soon_forgotten: true, ..self }
    }

    fn source_toml(&self) -> String {
        let session = format!("\"session.timeout.ms\" = \"{SHORT_SESSION_MS}\", ");
        match &self.source {
            Source::Kafka => format!(
                r#"[source.kafka]
brokers = [{:?}]
topics = [{}]
properties = {{ {}"heartbeat.interval.ms" = "300" }}
"#,
                self.brokers,
                quoted(&self.topics),
                if self.is_soon_forgotten { session } else { String::new() },
            ),
            Source::Postgres(postgres) => postgres.toml(),
            Source::Http(http) => http.toml(),
        }
    }

    /// The text of the file.
    #[must_use]
    pub fn toml(&self) -> String {
        let table = |head: &str, lines: &str| match lines {
            "" => String::new(),
            lines => format!("\n{head}\n{lines}\n"),
        };
        format!(
            r#"[pipeline]
name = {name:?}
{delivery}{pipeline_more}
{source}{source_more}

{transforms}
{batch}
[sink.starrocks]
fe = [{fe}]
query = {query:?}
database = "shop"
{sink_table}user = "root"
{sink_more}
{dead_letters}{process}"#,
            name = self.name,
            delivery = unless_empty("delivery", &self.delivery),
            pipeline_more = self.pipeline_more,
            source = self.source_toml(),
            source_more = self.source_more,
            transforms = self.transforms,
            batch = table("[batch]", &self.batch),
            fe = quoted(&self.fe),
            query = self.query,
            sink_table = unless_empty("table", &self.table),
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

fn quoted(list: &[String]) -> String {
    list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ")
}

fn unless_empty(key: &str, value: &str) -> String {
    if value.is_empty() { String::new() } else { format!("{key} = {value:?}\n") }
}

fn list_unless_empty(key: &str, list: &[String]) -> String {
    if list.is_empty() { String::new() } else { format!("{key} = [{}]\n", quoted(list)) }
}

#[cfg(test)]
mod tests {
    use super::{Http, Pipeline, Postgres, Source};

    fn check(source: Source, expected: &str) {
        let pipeline = Pipeline { source, source_more: "more = 1".to_owned(), ..Pipeline::default() };
        let text = pipeline.toml();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("\ntable ="), "{text}");
    }

    #[test]
    fn each_source_has_its_table() {
        let postgres = Postgres {
            host: "127.0.0.1".to_owned(),
            port: 5432,
            database: "shop".to_owned(),
            user: "tidemill".to_owned(),
            tables: vec!["public.*".to_owned()],
            exclude: vec!["public.log".to_owned()],
            ..Postgres::default()
        };
        check(
            Source::Postgres(postgres),
            "\n[source.postgres]\nhost = \"127.0.0.1\"\nport = 5432\ndatabase = \"shop\"\nuser = \"tidemill\"\n\
             tables = [\"public.*\"]\nexclude = [\"public.log\"]\nmore = 1\n",
        );
        let http = Http { listen: "127.0.0.1:80".to_owned(), tokens: Vec::new() };
        check(Source::Http(http), "\n[source.http]\nlisten = \"127.0.0.1:80\"\nmore = 1\n");
        check(Source::Kafka, "properties = { \"heartbeat.interval.ms\" = \"300\" }\nmore = 1\n");
        let soon = Pipeline::default().soon_forgotten().toml();
        assert!(soon.contains("{ \"session.timeout.ms\" = \"1500\", \"heartbeat"), "{soon}");
    }
}
