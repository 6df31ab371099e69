//! Names and texts as parts of SQL.

use super::table::TableName;

/// A name as a quoted identifier: `we"ird` → `"we""ird"`.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as people would write it: quoted only if it has to be.
pub fn friendly(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    // Reserved words are few among names; quoting too much is harmless.
    let reserved = RESERVED.binary_search(&name).is_ok();
    if plain && !reserved { name.to_owned() } else { identifier(name) }
}

/// `"schema"."table"`.
pub fn table(name: &TableName) -> String {
    format!("{}.{}", identifier(&name.schema), identifier(&name.name))
}

/// `schema.table`, quoted only where needed.
pub fn friendly_table(name: &TableName) -> String {
    format!("{}.{}", friendly(&name.schema), friendly(&name.name))
}

/// A text as a literal, whatever `standard_conforming_strings` is: `it's` → `'it''s'`.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// Words that cannot name a table or column without quotes, sorted (PostgreSQL, appendix C: "reserved" and
/// "reserved, can be function or type").
const RESERVED: [&str; 100] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_they_must_be() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        for (name, shown) in [
            ("orders", "orders"),
            ("Orders", "\"Orders\""),
            ("user", "\"user\""),
            ("2x", "\"2x\""),
            ("ä", "\"ä\""),
        ] {
            assert_eq!(friendly(name), shown);
        }
        assert!(RESERVED.is_sorted());
    }

    #[test]
    fn texts_cannot_leave_their_literal() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), " E'a\\\\''b'");
    }
}
