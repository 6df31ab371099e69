//! The tables of the workload, here and there.

use super::Settings;

/// The tables, all in the schema `public`.
pub const TABLES: [&str; 3] = ["account", "pair", "document"];

/// A plain key, a key of two columns, and one beside large values.
pub(super) const SOURCE_TABLES: &str = "
CREATE TABLE account (id bigint PRIMARY KEY, owner text NOT NULL, balance bigint, active boolean, note text);
CREATE TABLE pair (a integer, b integer, value text, PRIMARY KEY (a, b));
CREATE TABLE document (id bigint PRIMARY KEY, title text, body text, appendix text, revision integer);
";

/// The columns that writers add to `account`, in the order in which they may come: `extra_0`, `extra_1`, …
pub(super) fn added_column(number: u32) -> String {
    format!("extra_{number}")
}

/// `CREATE TABLE` for the same tables as Primary Key tables of StarRocks' database `shop`, with the columns that will be
/// added there from the beginning: for pipelines that do not make or alter tables.
#[must_use]
pub fn destination_tables(settings: &Settings) -> Vec<String> {
    let added: String =
        (0..settings.added_columns).map(|number| format!(", {} BIGINT", added_column(number))).collect();
    vec![
        format!(
            "CREATE TABLE shop.account (id BIGINT NOT NULL, owner VARCHAR(1000) NOT NULL, balance BIGINT, active BOOLEAN, \
             note VARCHAR(1000){added}) PRIMARY KEY(id) DISTRIBUTED BY HASH(id)"
        ),
        "CREATE TABLE shop.pair (a INT NOT NULL, b INT NOT NULL, value VARCHAR(1000)) PRIMARY KEY(a, b) \
         DISTRIBUTED BY HASH(a, b)"
            .to_owned(),
        "CREATE TABLE shop.document (id BIGINT NOT NULL, title VARCHAR(1000), body VARCHAR(1048576), \
         appendix VARCHAR(1048576), revision INT) PRIMARY KEY(id) DISTRIBUTED BY HASH(id)"
            .to_owned(),
    ]
}
