//! `start` of a Kafka source.

use toml::de::DeValue;

use super::{Kind, short};
use crate::config::model::Start;
use crate::config::nearest::nearest;
use crate::config::node::{Node, integer};
use crate::config::units;

/// Where to start a partition that has no committed offset.
#[derive(Debug)]
pub(in crate::config) struct StartAt;

/// A time before this one in milliseconds was surely meant in seconds: it is in March 1973.
const PLAUSIBLE_TIMESTAMP_MS_MIN: i64 = 100_000_000_000;

impl Kind for StartAt {
    type Value = Start;

    fn expected(&self) -> String {
        "\"earliest\", \"latest\" or { timestamp = \"2026-01-01T00:00:00Z\" }".to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<Start> {
        let table = node.value.as_table().filter(|_| node.named_elsewhere().is_none());
        if let Some(table) = table {
            let only =
                table.iter().next().filter(|(key, _)| table.len() == 1 && key.get_ref() == "timestamp");
            let Some((_, value)) = only else {
                return self.wrong(node, "is a table without `timestamp` alone");
            };
            let inner =
                Node { name: "timestamp", value: value.get_ref(), span: value.span(), source: node.source };
            return self.timestamp(&inner).map(Start::TimestampMs);
        }
        let words = node.words(&self.expected())?;
        match words.text.as_str() {
            "earliest" => Some(Start::Earliest),
            "latest" => Some(Start::Latest),
            other => {
                let meant = nearest(other, ["earliest", "latest"]).map(|word| format!("{word:?}"));
                let what = format!("`{}` is {}", node.name, words.shown);
                node.wrong(|problem| problem.expected(self.expected()).meant(meant), what)
            }
        }
    }
}

impl StartAt {
    fn wrong<T>(&self, node: &Node<'_>, what: &str) -> Option<T> {
        node.wrong(|problem| problem.expected(self.expected()), format!("`{}` {what}", node.name))
    }

    fn timestamp(&self, node: &Node<'_>) -> Option<i64> {
        let expected = "a time with its zone such as \"2026-01-01T00:00:00Z\", or milliseconds since 1970";
        let complain = |what: String| node.wrong(|problem| problem.expected(expected), what);
        let time = match node.value {
            DeValue::Integer(written) => {
                let number =
                    integer(written).and_then(|number| i64::try_from(number).ok()).filter(|ms| *ms >= 0);
                return match number {
                    None => complain(format!("`timestamp` is {}", short(written.as_str()))),
                    Some(ms) if ms > 0 && ms < PLAUSIBLE_TIMESTAMP_MS_MIN => {
                        let what =
                            format!("`timestamp` is {ms}, which is before 1974 when read as milliseconds");
                        node.wrong(|problem| problem.meant(Some(format!("{ms}000"))), what)
                    }
                    Some(ms) => Some(ms),
                };
            }
            DeValue::Datetime(time) => *time,
            _ => {
                let words = node.words(expected)?;
                match words.text.trim().parse() {
                    Ok(time) => time,
                    Err(_) => return complain(format!("`timestamp` is {}", words.shown)),
                }
            }
        };
        units::epoch_ms(&time).or_else(|| {
            let lacks = match (time.date, time.time, time.offset) {
                (None, _, _) => "has no date",
                (_, None, _) => "has no time of day",
                (_, _, None) => "has no zone",
                (Some(_), Some(_), Some(_)) => "is before 1970",
            };
            complain(format!("`timestamp` is {time}, which {lacks}"))
        })
    }
}
