//! Orders of a shop, from nested JSON events to flat rows: the example of what a typed transform looks like.
//!
//! An event:
//!
//! ```json
//! {"id":42,"ts":1767225605754,"status":"paid",
//!  "customer":{"id":48213,"name":"Ada Okafor","address":{"city":"Lisbon","zip":"1100-148","country":"PT"}},
//!  "sku":"TM-004417","items":3,"price":43.31,"shipping":4.90,"currency":"EUR","channel":"web"}
//! ```
//!
//! and its row:
//!
//! ```json
//! {"order_id":42,"order_day":"2026-01-01","ordered_at":"2026-01-01 00:00:05","status":"paid",
//!  "customer_id":48213,"customer_name":"Ada Okafor","city":"Lisbon","zip":"1100-148","country":"PT",
//!  "sku":"TM-004417","items":3,"price_cents":4331,"total_cents":13483,"currency":"EUR","channel":"web"}
//! ```
//!
//! It leaves out orders with the status `test`, renames `id`, flattens the customer and the address, and computes
//! `order_day`, `price_cents` and `total_cents`. What cannot be right is rejected.

mod moment;
mod order;
pub mod sample;

pub use order::{CODE_AMOUNT, CODE_CURRENCY, CODE_TIME, Row, flatten};

use serde::Deserialize;
use tidemill_sdk::{Output, Record, Reject, Setup, Transform};

/// The plugin's part of the pipeline's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The currency of the table, as three capital letters; orders in another one are rejected.
    pub currency: String,
    /// Orders with this status are left out; `test` if not given.
    #[serde(default = "drop_status_default")]
    pub drop_status: String,
}

fn drop_status_default() -> String {
    "test".to_owned()
}

impl Config {
    /// The configuration for a currency, and the defaults.
    ///
    /// # Errors
    ///
    /// A sentence if the currency is not three capital letters.
    pub fn new(currency: &str) -> Result<Self, String> {
        Self { currency: currency.to_owned(), drop_status: drop_status_default() }.checked()
    }

    fn checked(self) -> Result<Self, String> {
        if self.currency.len() == 3 && self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Ok(self);
        }
        Err(format!(
            "config key `currency`: expected three capital letters such as EUR, got `{}`",
            self.currency
        ))
    }
}

/// Whether an order has a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was appended.
    Yes,
    /// The order is one to leave out.
    No,
}

/// The transform apart from the plugin: appends the row of an order to `out`, with a line feed.
///
/// # Errors
///
/// As [`flatten`]; `out` is then as it was.
pub fn transform(value: &[u8], config: &Config, out: &mut Vec<u8>) -> Result<Kept, Reject> {
    let Some(row) = flatten(value, config)? else { return Ok(Kept::No) };
    row.write(out);
    Ok(Kept::Yes)
}

/// The plugin.
pub struct Orders {
    config: Config,
}

impl Transform for Orders {
    type Config = Config;

    fn configure(config: Config, _setup: &mut Setup) -> Result<Self, String> {
        Ok(Self { config: config.checked()? })
    }

    fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
        match flatten(record.needed_value()?, &self.config)? {
            Some(row) => {
                out.replace_with(|column| row.write(column));
            }
            None => out.drop(),
        }
        Ok(())
    }
}

tidemill_sdk::export!(Orders);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Harness, Input};

    const EVENT: &str = concat!(
        r#"{"id":42,"ts":1767225605754,"status":"paid","#,
        r#""customer":{"id":48213,"name":"Ada Okafor","address":{"city":"Lisbon","zip":"1100-148","country":"PT"}},"#,
        r#""sku":"TM-004417","items":3,"price":43.31,"shipping":4.90,"currency":"EUR","channel":"web"}"#,
    );

    fn plugin() -> Harness<Orders> {
        Harness::new(r#"{"currency":"EUR"}"#).unwrap()
    }

    /// What becomes of the event with one piece of it replaced.
    fn check(piece: &str, by: &str, expected: Result<&str, (&str, &str)>) {
        assert!(EVENT.contains(piece), "{piece}");
        let answer = plugin().run([EVENT.replace(piece, by).as_str()]);
        match expected {
            Ok(part) => {
                assert!(answer.values()[0].contains(part), "{} has no {part}", answer.values()[0]);
            }
            Err((code, message)) => {
                let (input, reject) = &answer.rejects[0];
                assert_eq!((*input, reject.code.as_str()), (0, code), "{reject:?}");
                assert!(reject.message.contains(message), "{reject:?}");
                assert!(answer.rows.is_empty());
            }
        }
    }

    #[test]
    fn makes_the_row_that_the_documentation_shows() {
        let answer = plugin().run([EVENT]);
        let expected = concat!(
            r#"{"order_id":42,"order_day":"2026-01-01","ordered_at":"2026-01-01 00:00:05","status":"paid","#,
            r#""customer_id":48213,"customer_name":"Ada Okafor","city":"Lisbon","zip":"1100-148","country":"PT","#,
            r#""sku":"TM-004417","items":3,"price_cents":4331,"total_cents":13483,"currency":"EUR","channel":"web"}"#,
        );
        assert_eq!(answer.values(), [expected]);
        let values = answer.columns.values.unwrap();
        assert!(values.data.ends_with(b"\n"), "a row ends in a line feed");
    }

    #[test]
    fn leaves_out_tests_and_rejects_neighbours_one_by_one() {
        let test = EVENT.replace("paid", "test");
        let answer = plugin().run([EVENT, test.as_str(), "{\"id\":", EVENT]);
        assert_eq!(answer.columns.inputs, [0, 3]);
        assert_eq!(answer.rejects.len(), 1);
        assert_eq!((answer.rejects[0].0, answer.rejects[0].1.code.as_str()), (2, "parse"));
    }

    #[test]
    fn escapes_survive() {
        check("Ada Okafor", r#"Ada \"A\" Ok\u00e1for"#, Ok(r#""customer_name":"Ada \"A\" Okáfor""#));
    }

    #[test]
    fn fills_in_the_currency_and_refuses_another() {
        check(r#""currency":"EUR","#, "", Ok(r#""currency":"EUR""#));
        check(r#""currency":"EUR","#, r#""currency":null,"#, Ok(r#""currency":"EUR""#));
        check("EUR", "USD", Err(("currency", "the order is in `USD`, the table in `EUR`")));
    }

    #[test]
    fn rejects_what_cannot_be_right() {
        check(
            "43.31",
            "43.311",
            Err(("amount", "`price` is no number with at most 16 digits and two decimals")),
        );
        check(
            "4.90",
            "\"4.90\"",
            Err(("amount", "`shipping` is no number with at most 16 digits and two decimals")),
        );
        check(
            "3,\"price\":43.31",
            "4000000000,\"price\":9999999999999999.99",
            Err(("amount", "the total is too large")),
        );
        check("1767225605754", "-5", Err(("time", "`ts` -5 is before 1970 or after 9999")));
        check("\"items\":3", "\"items\":-3", Err(("parse", "invalid value")));
        check("\"sku\":\"TM-004417\",", "", Err(("parse", "missing field `sku`")));
        let answer = plugin().run([Input::tombstone().key("42")]);
        assert_eq!(answer.rejects[0].1.code, "no_value");
    }

    #[test]
    fn refuses_a_currency_that_is_none() {
        let error = Harness::<Orders>::new(r#"{"currency":"euro"}"#).err();
        assert_eq!(
            error.as_deref(),
            Some("config key `currency`: expected three capital letters such as EUR, got `euro`")
        );
    }
}
