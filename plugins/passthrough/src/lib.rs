//! Keeps every record as it is: the plugin that does nothing, to measure what crossing costs and to start from.

use serde::Deserialize;
use tidemill_sdk::{Output, Record, Reject, Setup, Transform};

/// `passthrough` has no settings; a key in its configuration is a mistake.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The plugin.
pub struct Passthrough;

impl Transform for Passthrough {
    type Config = Config;

    fn configure(_config: Config, _setup: &mut Setup) -> Result<Self, String> {
        Ok(Self)
    }

    #[inline]
    fn record(&mut self, _record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
        out.keep();
        Ok(())
    }
}

tidemill_sdk::export!(Passthrough);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::Rows;
    use tidemill_sdk::testing::{Harness, Input};

    #[test]
    fn returns_no_column_but_the_inputs() {
        let mut plugin = Harness::<Passthrough>::new("{}").unwrap();
        let answer = plugin.run([Input::value(r#"{"a":1}"#), Input::tombstone().key("k"), "not json".into()]);
        assert_eq!(answer.columns, Rows { inputs: vec![0, 1, 2], ..Rows::default() });
        assert_eq!(answer.values(), [r#"{"a":1}"#, "", "not json"]);
        assert_eq!(answer.rows.iter().map(|row| row.delete).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn refuses_settings() {
        let error = Harness::<Passthrough>::new(r#"{"currency":"EUR"}"#).err();
        assert!(error.is_some_and(|error| error.contains("config key `currency`: unknown field")));
    }
}
