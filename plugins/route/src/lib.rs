//! One topic into several tables, by a field of the record.
//!
//! ```toml
//! config = { field = "kind", tables = { click = "clicks", view = "views" }, otherwise = "reject" }
//! ```
//!
//! Values are kept as they are, so that nothing but a table number per row comes back from the component.

use serde::Deserialize;
use std::collections::BTreeMap;
use tidemill_sdk::{Output, Record, Reject, Setup, TableId, Transform, json};

/// The code of a record whose field has a text that no table is configured for.
pub const CODE_NO_ROUTE: &str = "no_route";
/// The code of a record without the field.
pub const CODE_NO_FIELD: &str = "no_field";

/// The plugin's part of the pipeline's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The field of the JSON object that decides, at its top level.
    pub field: String,
    /// The table for each text of the field.
    pub tables: BTreeMap<String, String>,
    /// What becomes of records with another text or without the field; they are rejected if not given.
    #[serde(default)]
    pub otherwise: Otherwise,
}

/// What becomes of a record that no table is configured for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// It becomes a dead letter.
    #[default]
    Reject,
    /// It is left out.
    Drop,
    /// It goes to the pipeline's own table.
    Own,
}

/// What to do with a record, decided when the plugin is configured.
#[derive(Debug, Clone, Copy)]
enum Rest {
    Reject,
    Drop,
    To(TableId),
}

/// The plugin.
pub struct Route {
    field: String,
    /// Sorted by text. A handful of short texts is found faster by search than by hashing.
    tables: Vec<(String, TableId)>,
    rest: Rest,
}

impl Transform for Route {
    type Config = Config;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, String> {
        if config.field.is_empty() {
            return Err("config key `field`: expected the name of a field, got an empty text".to_owned());
        }
        if config.tables.is_empty() {
            return Err("config key `tables`: expected at least one text with its table, got none".to_owned());
        }
        if let Some((text, _)) = config.tables.iter().find(|(_, table)| table.is_empty()) {
            return Err(format!(
                "config key `tables.{text}`: expected the name of a table, got an empty text"
            ));
        }
        let tables = config.tables.into_iter().map(|(text, table)| (text, setup.table(&table))).collect();
        let rest = match config.otherwise {
            Otherwise::Reject => Rest::Reject,
            Otherwise::Drop => Rest::Drop,
            Otherwise::Own => Rest::To(setup.own_table()),
        };
        Ok(Self { field: config.field, tables, rest })
    }

    fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
        let text = json::field(record.needed_value()?, &self.field)?;
        let table = text.as_deref().and_then(|text| self.table(text));
        match (table, self.rest) {
            (Some(table), _) | (None, Rest::To(table)) => {
                out.keep().table(table);
            }
            (None, Rest::Drop) => out.drop(),
            (None, Rest::Reject) => return Err(self.refuse(text.as_deref())),
        }
        Ok(())
    }
}

impl Route {
    fn table(&self, text: &str) -> Option<TableId> {
        let found = self.tables.binary_search_by(|(known, _)| known.as_str().cmp(text)).ok()?;
        Some(self.tables[found].1)
    }

    fn refuse(&self, text: Option<&str>) -> Reject {
        let field = &self.field;
        match text {
            Some(text) => {
                Reject::new(CODE_NO_ROUTE, format_args!("no table is configured for `{field}` = `{text}`"))
            }
            None => Reject::new(CODE_NO_FIELD, format_args!("the record has no field `{field}`")),
        }
    }
}

tidemill_sdk::export!(Route);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::Harness;

    const EVENTS: [&str; 5] = [
        r#"{"kind":"click","x":1}"#,
        r#"{"kind":"view"}"#,
        r#"{"kind":"buy"}"#,
        r#"{"x":{"kind":"click"}}"#,
        r#"{"kind":"click"}"#,
    ];

    fn plugin(otherwise: &str) -> Harness<Route> {
        let config = r#"{"field":"kind","tables":{"view":"views","click":"clicks"},"otherwise":"#;
        Harness::new(&format!("{config}{otherwise:?}}}")).unwrap()
    }

    fn tables(otherwise: &str) -> Vec<(usize, Option<String>)> {
        let answer = plugin(otherwise).run(EVENTS);
        assert!(answer.columns.values.is_none(), "values are kept, not copied");
        answer.rows.into_iter().map(|row| (row.input, row.table)).collect()
    }

    #[test]
    fn sends_each_record_to_the_table_of_its_field() {
        let (clicks, views) = (Some("clicks".to_owned()), Some("views".to_owned()));
        let routed = [(0, clicks.clone()), (1, views), (4, clicks)];
        assert_eq!(tables("drop"), routed);
        assert_eq!(tables("reject"), routed);
        let mut with_own = routed.to_vec();
        with_own.splice(2..2, [(2, None), (3, None)]);
        assert_eq!(tables("own"), with_own);
    }

    #[test]
    fn says_why_a_record_has_no_table() {
        let answer = plugin("reject").run(EVENTS);
        let rejects: Vec<_> =
            answer.rejects.iter().map(|(input, reject)| (*input, reject.message.as_str())).collect();
        assert_eq!(
            rejects,
            [(2, "no table is configured for `kind` = `buy`"), (3, "the record has no field `kind`")]
        );
        let answer = plugin("drop").run(["[]", r#"{"kind":"#]);
        assert_eq!(answer.rejects.iter().filter(|(_, reject)| reject.code == "parse").count(), 2);
    }

    #[test]
    fn declares_only_tables_that_rows_can_go_to() {
        assert_eq!(plugin("reject").tables(), ["clicks", "views"]);
        assert_eq!(plugin("own").tables(), ["clicks", "views", ""]);
    }

    #[test]
    fn refuses_a_configuration_that_routes_nothing() {
        for (config, expected) in [
            (r#"{"field":"","tables":{"a":"b"}}"#, "config key `field`: expected the name"),
            (r#"{"field":"kind","tables":{}}"#, "config key `tables`: expected at least one"),
            (r#"{"field":"kind","tables":{"a":""}}"#, "config key `tables.a`: expected the name"),
            (r#"{"field":"kind","tables":{"a":"b"},"otherwise":"keep"}"#, "config key `otherwise`"),
            (r#"{"field":"kind","table":{"a":"b"}}"#, "config key `table`: unknown field"),
        ] {
            let error = Harness::<Route>::new(config).err().unwrap();
            assert!(error.starts_with(expected), "{config}: {error}");
        }
    }
}
