//! A plugin for tests: each record says in its field `do` what happens to it, and one can ask what the plugin sees of
//! it. A record that asks for nothing is kept. (For what a plugin must not do there is `plugins/hostile`.)
//!
//! It is also the plugin that tests build by a stock `cargo build --target wasm32-wasip2`, without any encoding of ours.

use serde::{Deserialize, Serialize};
use tidemill_sdk::{Output, Record, Reject, Setup, Transform};

/// Mostly `config = {}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Deletes, whose values say no more than a key, are inspected.
    #[serde(default)]
    pub inspect_deletes: bool,
}

/// What a record may say; everything else in it is left alone.
#[derive(Deserialize)]
struct Order {
    id: u64,
    #[serde(rename = "do", default)]
    deed: Deed,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Deed {
    /// The record's value is the row.
    #[default]
    Keep,
    /// No row.
    Drop,
    /// A dead letter with the code `asked`.
    Reject,
    /// Two rows: the value, and one of the next `id`.
    Twice,
    /// A delete of the row with this `id`.
    Delete,
    /// A row whose `note` tells all that the plugin sees of the record, also if that is a delete.
    Inspect,
}

/// What `Deed::Inspect` puts into `note`, as JSON.
#[derive(Serialize)]
struct Seen<'a> {
    source: &'a str,
    op: &'static str,
    key: Option<String>,
    timestamp_us: Option<i64>,
    partition: u32,
    offset: i64,
    headers: Vec<(&'a str, String)>,
}

#[derive(Serialize)]
struct Key {
    id: u64,
}

#[derive(Serialize)]
struct Noted {
    id: u64,
    note: String,
}

/// The plugin.
#[derive(Debug)]
pub struct Obedient {
    config: Config,
}

impl Transform for Obedient {
    type Config = Config;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, String> {
        setup.want_key().want_timestamp().want_position().want_headers();
        Ok(Self { config })
    }

    fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
        if !record.has_value() {
            // A tombstone: the key alone says which row goes.
            let key = record.key().map(text).unwrap_or_default();
            let id = key.parse().map_err(|_| Reject::new("bad_key", "the key is not a number"))?;
            out.replace_json(&Key { id })?.delete();
            return Ok(());
        }
        let order: Order = record.json()?;
        let deed = if record.is_delete() && self.config.inspect_deletes { Deed::Inspect } else { order.deed };
        match deed {
            Deed::Keep => {
                out.keep();
            }
            Deed::Drop => out.drop(),
            Deed::Reject => return Err(Reject::new("asked", "the record asked to be rejected")),
            Deed::Twice => {
                out.keep();
                out.replace_json(&Key { id: order.id + 1 })?;
            }
            Deed::Delete => {
                out.replace_json(&Key { id: order.id })?.delete();
            }
            Deed::Inspect => {
                let note = serde_json::to_string(&seen(record))?;
                out.replace_json(&Noted { id: order.id, note })?.upsert();
            }
        }
        Ok(())
    }
}

tidemill_sdk::export!(Obedient);

fn seen(record: Record<'_>) -> Seen<'_> {
    Seen {
        source: record.source(),
        op: if record.is_delete() { "delete" } else { "upsert" },
        key: record.key().map(text),
        timestamp_us: record.timestamp_us(),
        partition: record.partition(),
        offset: record.offset(),
        headers: record.headers().map(|(name, content)| (name, text(content))).collect(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::Obedient;
    use tidemill_sdk::testing::Harness;

    #[test]
    fn records_get_what_they_ask_for() {
        let mut plugin = Harness::<Obedient>::new("{}").unwrap();
        let answer = plugin.run([
            r#"{"id":1,"amount":7}"#,
            r#"{"id":2,"do":"drop"}"#,
            r#"{"id":3,"do":"reject"}"#,
            "no json",
            r#"{"id":4,"do":"delete","amount":7}"#,
            r#"{"id":5,"do":"twice"}"#,
        ]);
        let kept = r#"{"id":5,"do":"twice"}"#;
        assert_eq!(answer.values(), [r#"{"id":1,"amount":7}"#, r#"{"id":4}"#, kept, r#"{"id":6}"#]);
        let codes: Vec<_> = answer.rejects.iter().map(|(_, reject)| reject.code.as_str()).collect();
        assert_eq!(codes, ["asked", "parse"]);
    }
}
