//! `columns`, `partial_update` and `format = "csv"`: what they need of each other.

use std::collections::BTreeMap;

use super::model::{RowFormat, TableModel};
use super::table::Table;

/// Headers that read rows in a way of their own, which a list of their columns contradicts.
const MAPPINGS: [&str; 3] = ["columns", "jsonpaths", "json_root"];

/// Notes what does not go together in `[sink.starrocks]`.
pub(super) fn check(
    table: &Table<'_>,
    columns: Option<&[String]>,
    properties: Option<&BTreeMap<String, String>>,
    (format, partial_update, model): (Option<RowFormat>, Option<bool>, Option<TableModel>),
) {
    let Some(columns) = columns else { return };
    let (csv, partial) = (format == Some(RowFormat::Csv), partial_update == Some(true));
    for (wanted, key, value) in
        [(csv, "format", "format = \"csv\""), (partial, "partial_update", "partial_update")]
    {
        if wanted && columns.is_empty() {
            let what = format!("`{value}` without `columns`");
            table.note_at(key, what, |problem| problem.expected("columns = [\"id\", \"amount\"] or such"));
        }
    }
    if let Some(model) = model.filter(|model| partial && *model != TableModel::Primary) {
        let what = format!("`partial_update` of tables of the {} model", model.name());
        table.note_at("partial_update", what, |problem| {
            problem.expected("Primary Key tables, the only ones whose rows StarRocks can update in part")
        });
    }
    let mapping =
        properties.and_then(|properties| MAPPINGS.iter().find(|name| properties.contains_key(**name)));
    if let Some(mapping) = mapping.filter(|_| !columns.is_empty()) {
        let what = format!("both `columns` and the property `{mapping}`");
        table.note_at("properties", what, |problem| {
            problem.expected("one of them: with `columns` the keys of a row are its columns")
        });
    }
}
