//! What a plugin says once, when it is configured.

use crate::columns::Columns;
use serde::de::DeserializeOwned;

/// The most tables that a plugin can declare: their indexes are 16 bits wide.
pub const TABLES_MAX: usize = u16::MAX as usize;

/// A table that the plugin declared, for [`crate::Row::table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub(crate) u16);

/// Collects what the plugin needs: the columns it reads and the tables it writes.
#[derive(Debug, Default)]
pub struct Setup {
    pub(crate) wants: Columns,
    pub(crate) tables: Vec<String>,
    pub(crate) own_table: Option<TableId>,
    overflow: bool,
}

impl Setup {
    /// Asks for the keys, which [`crate::Record::key`] and [`crate::Row::key`] need.
    pub fn want_key(&mut self) -> &mut Self {
        self.wants.key = true;
        self
    }

    /// Asks for the timestamps, which [`crate::Record::timestamp_us`] and [`crate::Row::timestamp_us`] need.
    pub fn want_timestamp(&mut self) -> &mut Self {
        self.wants.timestamp = true;
        self
    }

    /// Asks for the positions, which [`crate::Record::partition`] and [`crate::Record::offset`] need.
    pub fn want_position(&mut self) -> &mut Self {
        self.wants.position = true;
        self
    }

    /// Asks for the headers, which [`crate::Record::headers`] and [`crate::Row::header`] need.
    pub fn want_headers(&mut self) -> &mut Self {
        self.wants.headers = true;
        self
    }

    /// Declares a table of the pipeline's database that rows may go to. The same name gives the same table.
    ///
    /// The pipeline's file must permit it. Once a table is declared, each row must name one, unless
    /// [`Setup::own_table`] is declared as well.
    pub fn table(&mut self, name: &str) -> TableId {
        let index = match self.tables.iter().position(|table| table == name) {
            Some(index) => index,
            None => {
                self.tables.push(name.to_owned());
                self.tables.len() - 1
            }
        };
        if self.tables.len() > TABLES_MAX {
            self.overflow = true;
            return TableId(0);
        }
        // At most TABLES_MAX - 1 here.
        TableId(index as u16)
    }

    /// Declares the table that a row has without this plugin, which is the pipeline's own. It is where the rows go
    /// that do not name one.
    pub fn own_table(&mut self) -> TableId {
        let own = self.table("");
        self.own_table = Some(own);
        own
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.overflow {
            return Err(format!("the plugin declares more than {TABLES_MAX} tables"));
        }
        Ok(())
    }
}

/// Reads the plugin's part of the pipeline's file. The error names the key.
pub(crate) fn read_config<C: DeserializeOwned>(config: &str) -> Result<C, String> {
    let mut json = serde_json::Deserializer::from_str(config);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let what = error.inner().to_string();
        // The position is one in the JSON that the host made of the TOML: of no use to the one who wrote the TOML.
        let what = what.split_once(" at line ").map_or(what.as_str(), |(what, _)| what);
        if path == "." { format!("config: {what}") } else { format!("config key `{path}`: {what}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[expect(dead_code, reason = "only its parsing is tested")]
        currency: String,
        #[serde(default)]
        #[expect(dead_code, reason = "only its parsing is tested")]
        tables: BTreeMap<String, String>,
    }

    fn check(config: &str, expected: &str) {
        assert_eq!(read_config::<Config>(config).unwrap_err(), expected, "{config}");
    }

    #[test]
    fn config_errors_name_the_key() {
        check(r#"{"currency":3}"#, "config key `currency`: invalid type: integer `3`, expected a string");
        check(
            r#"{"currency":"EUR","tables":{"paid":true}}"#,
            "config key `tables.paid`: invalid type: boolean `true`, expected a string",
        );
        check("{}", "config: missing field `currency`");
        check(
            r#"{"curency":"EUR"}"#,
            "config key `curency`: unknown field `curency`, expected `currency` or `tables`",
        );
    }

    #[test]
    fn a_table_has_one_index_however_often_it_is_declared() {
        let mut setup = Setup::default();
        let (paid, open, again) = (setup.table("paid"), setup.table("open"), setup.table("paid"));
        assert_eq!((paid, open, again), (TableId(0), TableId(1), TableId(0)));
        assert_eq!(setup.own_table(), TableId(2));
        assert_eq!(setup.tables, ["paid", "open", ""]);
    }
}
