//! From an order event to a row: filter, rename, flatten, compute.

use crate::Config;
use crate::moment::Moment;
use serde::Deserialize;
use std::borrow::Cow;
use tidemill_sdk::Reject;
use tidemill_sdk::json::{self, Object, RawValue, Text};

/// The code of an order whose price or shipping is no amount with at most two decimals.
pub const CODE_AMOUNT: &str = "amount";
/// The code of an order in another currency than the configured one.
pub const CODE_CURRENCY: &str = "currency";
/// The code of an order whose time is before 1970 or after 9999.
pub const CODE_TIME: &str = "time";

/// The most digits of an amount before its point, so that it fits 64 bits in cents without a check at each digit
/// (which WebAssembly has no instruction for).
const UNITS_DIGITS_MAX: usize = 16;

/// An order as the shop sends it. Fields that are not named here are ignored.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    id: u64,
    /// Milliseconds since 1970 UTC.
    ts: i64,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    customer: Customer<'a>,
    #[serde(borrow)]
    sku: Cow<'a, str>,
    items: u32,
    /// For one item. Kept as it is written, because a float cannot hold cents exactly.
    #[serde(borrow)]
    price: &'a RawValue,
    /// For the whole order.
    #[serde(borrow)]
    shipping: &'a RawValue,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    #[serde(borrow)]
    channel: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
struct Customer<'a> {
    id: u64,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    address: Address<'a>,
}

#[derive(Debug, Deserialize)]
struct Address<'a> {
    #[serde(borrow)]
    city: Cow<'a, str>,
    #[serde(borrow)]
    zip: Cow<'a, str>,
    #[serde(borrow)]
    country: Cow<'a, str>,
}

/// The row that an order becomes.
#[derive(Debug)]
pub struct Row<'a> {
    event: Event<'a>,
    ordered_at: Moment,
    price_cents: i64,
    total_cents: i64,
    currency: &'a str,
}

impl Row<'_> {
    /// Appends the row as JSON, with a line feed. Its fields are the columns of [`crate::sample::CREATE_TABLE`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let Event { customer, .. } = &self.event;
        Object::begin(out)
            .unsigned("order_id", self.event.id)
            .text("order_day", self.ordered_at.day())
            .text("ordered_at", self.ordered_at.second())
            .text("status", &self.event.status)
            .unsigned("customer_id", customer.id)
            .text("customer_name", &customer.name)
            .text("city", &customer.address.city)
            .text("zip", &customer.address.zip)
            .text("country", &customer.address.country)
            .text("sku", &self.event.sku)
            .unsigned("items", self.event.items.into())
            .signed("price_cents", self.price_cents)
            .signed("total_cents", self.total_cents)
            .text("currency", self.currency)
            .text("channel", &self.event.channel)
            .end();
    }
}

/// Makes the row of an order; `None` if its status says to leave it out. Everything is borrowed from `value`.
///
/// # Errors
///
/// `parse` if it is not the JSON of an order; [`CODE_AMOUNT`], [`CODE_CURRENCY`] or [`CODE_TIME`] if it cannot be right.
pub fn flatten<'a>(value: &'a [u8], config: &'a Config) -> Result<Option<Row<'a>>, Reject> {
    let event: Event<'a> = json::read(value)?;
    if event.status == config.drop_status {
        return Ok(None);
    }
    if let Some(currency) = event.currency.as_deref().filter(|currency| *currency != config.currency) {
        return Err(Reject::new(
            CODE_CURRENCY,
            format_args!("the order is in `{currency}`, the table in `{}`", config.currency),
        ));
    }
    let Some(ordered_at) = Moment::from_unix_ms(event.ts) else {
        return Err(Reject::new(CODE_TIME, format_args!("`ts` {} is before 1970 or after 9999", event.ts)));
    };
    let price_cents = cents("price", event.price)?;
    let shipping_cents = cents("shipping", event.shipping)?;
    let goods_cents = price_cents.checked_mul(i64::from(event.items));
    let Some(total_cents) = goods_cents.and_then(|goods| goods.checked_add(shipping_cents)) else {
        return Err(Reject::new(CODE_AMOUNT, "the total is too large"));
    };
    Ok(Some(Row { event, ordered_at, price_cents, total_cents, currency: &config.currency }))
}

/// An amount as a whole number of cents: `12`, `12.5` and `12.50` are, `12.345`, `1e3` and `"12"` are not.
fn cents(name: &str, amount: &RawValue) -> Result<i64, Reject> {
    parse_cents(amount.get()).ok_or_else(|| {
        Reject::new(
            CODE_AMOUNT,
            format_args!("`{name}` is no number with at most 16 digits and two decimals"),
        )
    })
}

fn parse_cents(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let decimals = match *decimals.as_bytes() {
        [] => 0,
        [tens] => 10 * digit(tens)?,
        [tens, ones] => 10 * digit(tens)? + digit(ones)?,
        _ => return None,
    };
    if whole.len() > UNITS_DIGITS_MAX {
        return None;
    }
    let mut units = 0_i64;
    for byte in whole.bytes() {
        units = units * 10 + digit(byte)?;
    }
    let cents = units * 100 + decimals;
    Some(if negative { -cents } else { cents })
}

fn digit(byte: u8) -> Option<i64> {
    byte.is_ascii_digit().then(|| i64::from(byte - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_or_refused() {
        for (text, expected) in [
            ("0", Some(0)),
            ("12", Some(1200)),
            ("12.5", Some(1250)),
            ("0.07", Some(7)),
            ("-3.99", Some(-399)),
            ("9999999999999999.99", Some(999_999_999_999_999_999)),
            ("10000000000000000", None),
            ("12.345", None),
            ("1e3", None),
            ("\"12\"", None),
            ("null", None),
            ("true", None),
        ] {
            assert_eq!(parse_cents(text), expected, "{text}");
        }
    }
}
