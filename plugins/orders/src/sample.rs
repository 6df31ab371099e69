//! Order events to try things with: the same in the demo, the benchmarks and the tests.

use std::io::Write;

/// The table that the plugin's rows fit.
pub const CREATE_TABLE: &str = "\
CREATE TABLE orders (
    order_id BIGINT NOT NULL,
    order_day DATE NOT NULL,
    ordered_at DATETIME NOT NULL,
    status VARCHAR(16) NOT NULL,
    customer_id BIGINT NOT NULL,
    customer_name VARCHAR(64) NOT NULL,
    city VARCHAR(64) NOT NULL,
    zip VARCHAR(16) NOT NULL,
    country VARCHAR(2) NOT NULL,
    sku VARCHAR(32) NOT NULL,
    items INT NOT NULL,
    price_cents BIGINT NOT NULL,
    total_cents BIGINT NOT NULL,
    currency VARCHAR(3) NOT NULL,
    channel VARCHAR(16) NOT NULL
)
DUPLICATE KEY (order_id)
DISTRIBUTED BY HASH (order_id) BUCKETS 2
PROPERTIES (\"replication_num\" = \"1\")";

/// One order in this many is a test.
const TEST_EVERY: u64 = 6;

/// When the first order was placed: 2026-01-01T00:00:00Z, in milliseconds since 1970.
const FIRST_ORDER_MS: u64 = 1_767_225_600_000;
/// The time between two orders, in milliseconds.
const ORDER_EVERY_MS: u64 = 137;

const STATUSES: [&str; 4] = ["paid", "open", "shipped", "returned"];
const FIRST_NAMES: [&str; 8] = ["Ada", "Bruno", "Chiara", "Dmitri", "Emeka", "Fatima", "Greta", "Hiroshi"];
const LAST_NAMES: [&str; 8] =
    ["Okafor", "Lindqvist", "Moreau", "Takahashi", "O'Brien", "Kowalska", "Ferreira", "Schmidt"];
const PLACES: [(&str, &str, &str); 8] = [
    ("Lisbon", "1100-148", "PT"),
    ("Hamburg", "20457", "DE"),
    ("Saint-Malo", "35400", "FR"),
    ("Rotterdam", "3011 AA", "NL"),
    ("Trieste", "34121", "IT"),
    ("Gdańsk", "80-831", "PL"),
    ("Cork", "T12 W8KE", "IE"),
    ("Santander", "39001", "ES"),
];
const CHANNELS: [&str; 4] = ["web", "app", "phone", "shop"];

/// Whether order `id` has the status `test`, which the plugin leaves out: one in six.
pub fn is_test(id: u64) -> bool {
    id % TEST_EVERY == TEST_EVERY - 1
}

/// Appends the order event `id`, of about 240 bytes: the same bytes for the same `id`, always.
pub fn write_order(id: u64, out: &mut Vec<u8>) {
    let mut bits = Bits(scatter(id));
    let status = if is_test(id) { "test" } else { bits.of(&STATUSES) };
    let (first, last) = (bits.of(&FIRST_NAMES), bits.of(&LAST_NAMES));
    let (city, zip, country) = bits.of(&PLACES);
    let channel = bits.of(&CHANNELS);
    let (items, customer, sku) = (1 + bits.below(5), 10_000 + bits.below(90_000), bits.below(1_000_000));
    let (price, shipping) = (100 + bits.below(20_000), bits.below(1000));
    let written = write!(
        out,
        concat!(
            r#"{{"id":{id},"ts":{ts},"status":"{status}","customer":{{"id":{customer},"name":"{first} {last}","#,
            r#""address":{{"city":"{city}","zip":"{zip}","country":"{country}"}}}},"sku":"TM-{sku:06}","items":{items},"#,
            r#""price":{euros}.{cents:02},"shipping":{ship_euros}.{ship_cents:02},"currency":"EUR","channel":"{channel}"}}"#,
        ),
        id = id,
        ts = FIRST_ORDER_MS + id % 100_000_000 * ORDER_EVERY_MS,
        status = status,
        customer = customer,
        first = first,
        last = last,
        city = city,
        zip = zip,
        country = country,
        sku = sku,
        items = items,
        euros = price / 100,
        cents = price % 100,
        ship_euros = shipping / 100,
        ship_cents = shipping % 100,
        channel = channel,
    );
    // Writing to memory cannot fail.
    debug_assert!(written.is_ok());
}

/// Spreads neighbouring numbers over all 64 bits (the finaliser of SplitMix64).
fn scatter(id: u64) -> u64 {
    let x = id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A number to take small numbers from.
struct Bits(u64);

impl Bits {
    fn below(&mut self, limit: u64) -> u64 {
        let taken = self.0 % limit;
        self.0 = scatter(self.0);
        taken
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Kept, transform};

    #[test]
    fn orders_are_json_of_about_240_bytes_and_one_in_six_is_a_test() {
        let config = Config::new("EUR").unwrap();
        let (mut event, mut row) = (Vec::new(), Vec::new());
        let (mut bytes, mut kept) = (0, 0);
        for id in 0..60_000 {
            event.clear();
            row.clear();
            write_order(id, &mut event);
            let outcome = transform(&event, &config, &mut row).unwrap();
            assert_eq!(outcome == Kept::No, is_test(id));
            assert_eq!(row.is_empty(), is_test(id));
            bytes += event.len();
            kept += u64::from(outcome == Kept::Yes);
        }
        assert_eq!(kept, 50_000);
        let average = bytes / 60_000;
        assert!((230..=250).contains(&average), "{average} bytes");
    }

    #[test]
    fn an_order_is_the_same_every_time() {
        let mut event = Vec::new();
        write_order(42, &mut event);
        assert_eq!(
            String::from_utf8(event).unwrap(),
            concat!(
                r#"{"id":42,"ts":1767225605754,"status":"open","customer":{"id":60351,"name":"Emeka Ferreira","#,
                r#""address":{"city":"Rotterdam","zip":"3011 AA","country":"NL"}},"sku":"TM-406539","items":1,"#,
                r#""price":19.34,"shipping":1.40,"currency":"EUR","channel":"phone"}"#,
            )
        );
    }

    #[test]
    fn the_table_has_the_columns_of_a_row() {
        let (mut event, mut row) = (Vec::new(), Vec::new());
        write_order(1, &mut event);
        transform(&event, &Config::new("EUR").unwrap(), &mut row).unwrap();
        let row: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&row).unwrap();
        let columns: Vec<&str> = CREATE_TABLE
            .lines()
            .filter(|line| line.starts_with("    "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(row.keys().collect::<Vec<_>>(), columns);
    }
}
