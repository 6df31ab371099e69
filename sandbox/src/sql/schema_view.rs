//! `information_schema`: views made when a query asks for them.

use crate::catalog::Table;
use crate::cluster::Cluster;
use crate::store::{Value, View};

pub(super) const SCHEMA: &str = "information_schema";

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn int(value: impl TryInto<i64>) -> Value {
    Value::Int(value.try_into().unwrap_or(i64::MAX))
}

/// The view of that name, in lower case; `None` when there is no such view.
pub(super) fn view(cluster: &Cluster, name: &str) -> Option<View> {
    let tables = cluster.catalog().all_tables();
    let (columns, rows) = match name {
        "schemata" => (
            vec!["CATALOG_NAME", "SCHEMA_NAME", "DEFAULT_CHARACTER_SET_NAME", "DEFAULT_COLLATION_NAME"],
            cluster.catalog().database_names().into_iter().map(schema_row).collect(),
        ),
        "tables" => (TABLES.to_vec(), tables.iter().map(|table| table_row(cluster, table)).collect()),
        "columns" => (COLUMNS.to_vec(), tables.iter().flat_map(|table| column_rows(table)).collect()),
        "tables_config" => (TABLES_CONFIG.to_vec(), tables.iter().map(|table| config_row(table)).collect()),
        "be_tablets" => (BE_TABLETS.to_vec(), tables.iter().flat_map(|table| tablet_rows(table)).collect()),
        // Drivers look here and are content with nothing.
        "views" | "key_column_usage" | "routines" | "triggers" | "statistics" | "partitions" => {
            (vec!["TABLE_SCHEMA", "TABLE_NAME"], Vec::new())
        }
        _ => return None,
    };
    Some(View { name: format!("{SCHEMA}.{name}"), columns, rows })
}

fn schema_row(name: String) -> Vec<Value> {
    vec![text("def"), text(name), text("utf8"), text("utf8_general_ci")]
}

const TABLES: [&str; 7] =
    ["TABLE_CATALOG", "TABLE_SCHEMA", "TABLE_NAME", "TABLE_TYPE", "ENGINE", "TABLE_ROWS", "TABLE_COMMENT"];

fn table_row(cluster: &Cluster, table: &Table) -> Vec<Value> {
    let count = format!("SELECT count(*) FROM {}", crate::store::quoted(&table.storage_name()));
    let counted = cluster.store.query(&count, &[]).ok().and_then(|result| result.rows.into_iter().next());
    let rows = counted.and_then(|row| row.into_iter().next()).unwrap_or(Value::Null);
    let comment = table.schema().comment.clone().unwrap_or_default();
    vec![
        text("def"),
        text(&table.db),
        text(&table.name),
        text("BASE TABLE"),
        text("StarRocks"),
        rows,
        text(comment),
    ]
}

/// In the order of a BE's `schema_columns_scanner`.
const COLUMNS: [&str; 24] = [
    "TABLE_CATALOG",
    "TABLE_SCHEMA",
    "TABLE_NAME",
    "COLUMN_NAME",
    "ORDINAL_POSITION",
    "COLUMN_DEFAULT",
    "IS_NULLABLE",
    "DATA_TYPE",
    "CHARACTER_MAXIMUM_LENGTH",
    "CHARACTER_OCTET_LENGTH",
    "NUMERIC_PRECISION",
    "NUMERIC_SCALE",
    "DATETIME_PRECISION",
    "CHARACTER_SET_NAME",
    "COLLATION_NAME",
    "COLUMN_TYPE",
    "COLUMN_KEY",
    "EXTRA",
    "PRIVILEGES",
    "COLUMN_COMMENT",
    "COLUMN_SIZE",
    "DECIMAL_DIGITS",
    "GENERATION_EXPRESSION",
    "SRS_ID",
];

/// Bytes that a BE allows for each of a text's, in `CHARACTER_OCTET_LENGTH`.
const OCTETS_PER_BYTE: i64 = 3;

fn column_rows(table: &Table) -> Vec<Vec<Value>> {
    let schema = table.schema();
    let rows = schema.columns.iter().enumerate().map(|(at, column)| {
        let number = |number: Option<u32>| number.map_or(Value::Null, int);
        let length = column.kind.text_bytes_max();
        let octets = length.map_or(Value::Null, |length| int(i64::from(length) * OCTETS_PER_BYTE));
        let (precision, digits) = (column.kind.precision(), column.kind.decimal_digits());
        let key = match schema.model {
            _ if at >= schema.keys => "",
            crate::KeyModel::Primary => "PRI",
            crate::KeyModel::Unique => "UNI",
            crate::KeyModel::Duplicate => "DUP",
        };
        vec![
            text("def"),
            text(&table.db),
            text(&table.name),
            text(&column.name),
            int(at + 1),
            column.default.clone().map_or(Value::Null, Value::Text),
            text(if column.nullable { "YES" } else { "NO" }),
            text(column.kind.data_type()),
            number(length),
            octets,
            number(precision),
            number(digits),
            Value::Null,
            Value::Null,
            Value::Null,
            text(column.kind.written()),
            text(key),
            text(""),
            text(""),
            text(column.comment.clone().unwrap_or_default()),
            number(length.or(precision)),
            number(digits),
            Value::Null,
            Value::Null,
        ]
    });
    rows.collect()
}

const TABLES_CONFIG: [&str; 12] = [
    "TABLE_SCHEMA",
    "TABLE_NAME",
    "TABLE_ENGINE",
    "TABLE_MODEL",
    "PRIMARY_KEY",
    "PARTITION_KEY",
    "DISTRIBUTE_KEY",
    "DISTRIBUTE_TYPE",
    "DISTRIBUTE_BUCKET",
    "SORT_KEY",
    "PROPERTIES",
    "TABLE_ID",
];

fn config_row(table: &Table) -> Vec<Value> {
    let schema = table.schema();
    let keys = schema.key_list();
    let primary = if schema.model == crate::KeyModel::Duplicate { String::new() } else { keys.clone() };
    let spread: Vec<String> = schema.distributed_by.iter().map(|name| format!("`{name}`")).collect();
    let kind = if spread.is_empty() { "RANDOM" } else { "HASH" };
    let properties: serde_json::Map<String, serde_json::Value> =
        schema.properties.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    vec![
        text(&table.db),
        text(&table.name),
        text("OLAP"),
        text(schema.model.table_model()),
        text(primary),
        text(""),
        text(spread.join(", ")),
        text(kind),
        int(schema.buckets),
        text(keys),
        text(serde_json::Value::Object(properties).to_string()),
        int(table.id),
    ]
}

const BE_TABLETS: [&str; 10] = [
    "BE_ID",
    "TABLE_ID",
    "PARTITION_ID",
    "TABLET_ID",
    "NUM_VERSION",
    "MAX_VERSION",
    "MIN_VERSION",
    "NUM_ROWSET",
    "NUM_ROW",
    "DATA_SIZE",
];

fn tablet_rows(table: &Table) -> Vec<Vec<Value>> {
    let versions = table.versions(|versions| *versions);
    let buckets = i64::from(table.schema().buckets);
    let rows = (0..buckets).map(|bucket| {
        vec![
            int(super::show::BACKEND_ID),
            int(table.id),
            int(table.id + 1),
            int(table.first_tablet() + bucket),
            int(versions.tablet_count()),
            int(versions.total + 1),
            int(0),
            int(versions.tablet_count()),
            int(versions.rows_loaded / buckets.unsigned_abs().max(1)),
            int(versions.bytes_loaded / buckets.unsigned_abs().max(1)),
        ]
    });
    rows.collect()
}
