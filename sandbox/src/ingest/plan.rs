//! Which value of a row goes into which column: what the FE decides when it plans a load.

use std::sync::Arc;

use super::params::{Format, LoadParams};
use crate::catalog::{KeyModel, Schema};
use crate::staged::WriteMode;

/// The column that says whether a row of a Primary Key table deletes.
pub(crate) const OP_COLUMN: &str = "__op";

/// One column that the load fills.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Position in the table.
    pub(crate) column: usize,
    pub(crate) source: Source,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A key of the JSON object.
    Key(String),
    /// A path into the JSON object.
    Path(Vec<PathStep>),
    /// A field of the CSV line.
    Field(usize),
    /// A path that is not there: always NULL.
    Absent,
}

/// One step of a `jsonpaths` or `json_root` path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathStep {
    Key(String),
    Index(usize),
}

/// Where `__op` comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OpSource {
    Upsert,
    Delete,
    Value(Source),
}

/// How the bodies of one load are read.
#[derive(Debug, Clone)]
pub(crate) struct LoadPlan {
    pub(crate) params: LoadParams,
    /// The table as it was when the load began; it may be altered before the rows are written.
    pub(crate) schema: Arc<Schema>,
    pub(crate) targets: Vec<Target>,
    pub(crate) op: OpSource,
    pub(crate) root: Vec<PathStep>,
    pub(crate) mode: WriteMode,
    /// How many fields a CSV line must have.
    pub(crate) fields: usize,
}

impl LoadPlan {
    /// # Errors
    /// The `Message` of a load that cannot be planned.
    pub(crate) fn new(params: LoadParams, table: &Arc<Schema>) -> Result<Self, String> {
        let schema: &Schema = table;
        let listed = params.columns.as_deref().map(parse_columns).transpose()?;
        let sources = Sources::new(&params, schema, listed.as_ref())?;
        let mut targets = Vec::new();
        for (column, definition) in schema.columns.iter().enumerate() {
            if let Some(source) = sources.of(&definition.name) {
                targets.push(Target { column, source });
            }
        }
        let op = sources.op(schema.model, listed.as_ref())?;
        let mode = write_mode(&params, schema, &targets)?;
        let partial = matches!(mode, WriteMode::Partial | WriteMode::PartialIfNotSmaller(_));
        check_columns(schema, listed.as_ref(), &targets, partial)?;
        let root = params.json_root.as_deref().map(parse_path).transpose()?.unwrap_or_default();
        Ok(Self { targets, op, root, mode, fields: sources.names.len(), schema: Arc::clone(table), params })
    }

    /// Whether rows carry an op behind their values, as BEs show them.
    pub(crate) fn takes_ops(&self) -> bool {
        self.schema.model == KeyModel::Primary
    }
}

/// The `columns` header: source names in order, and columns computed from them.
struct Listed {
    names: Vec<String>,
    /// column = source name or constant
    assigned: Vec<(String, String)>,
}

fn parse_columns(written: &str) -> Result<Listed, String> {
    let mut listed = Listed { names: Vec::new(), assigned: Vec::new() };
    for item in written.split(',') {
        let bare = |name: &str| name.trim().trim_matches('`').to_owned();
        match item.split_once('=') {
            None => listed.names.push(bare(item)),
            Some((column, expression)) => {
                let expression = expression.trim();
                if expression.contains(['(', ')', '+', '*', '/']) {
                    return Err(format!("the sandbox does not do this: expression in columns: {item}"));
                }
                listed.assigned.push((bare(column), bare(expression)));
            }
        }
    }
    Ok(listed)
}

/// Names of source columns, and where each of them comes from.
struct Sources<'a> {
    names: Vec<String>,
    listed: Option<&'a Listed>,
    paths: Option<Vec<Vec<PathStep>>>,
    csv: bool,
}

impl<'a> Sources<'a> {
    fn new(params: &LoadParams, schema: &Schema, listed: Option<&'a Listed>) -> Result<Self, String> {
        let paths = match (params.format, params.jsonpaths.as_deref()) {
            (Format::Json, Some(written)) => Some(parse_paths(written)?),
            (Format::Json, None) | (Format::Csv, _) => None,
        };
        let mut names = match listed {
            Some(listed) => listed.names.clone(),
            None => schema.columns.iter().map(|column| column.name.clone()).collect(),
        };
        let mentions_op = names.iter().any(|name| name == OP_COLUMN)
            || listed.is_some_and(|listed| listed.assigned.iter().any(|(column, _)| column == OP_COLUMN));
        // A JSON load into a Primary Key table always looks for `__op`; with paths it is the last slot.
        if params.format == Format::Json && schema.model == KeyModel::Primary && !mentions_op {
            names.push(OP_COLUMN.to_owned());
        }
        Ok(Self { names, listed, paths, csv: params.format == Format::Csv })
    }

    fn named(&self, name: &str) -> Option<Source> {
        let at = self.names.iter().position(|have| have == name)?;
        Some(match &self.paths {
            _ if self.csv => Source::Field(at),
            None => Source::Key(name.to_owned()),
            Some(paths) => paths.get(at).map_or(Source::Absent, |path| Source::Path(path.clone())),
        })
    }

    /// Where a table column's value comes from; `None` when the load does not fill it.
    fn of(&self, column: &str) -> Option<Source> {
        let assigned = self.listed.and_then(|listed| {
            listed.assigned.iter().find(|(name, _)| name == column).map(|(_, source)| source.as_str())
        });
        self.named(assigned.unwrap_or(column))
    }

    fn op(&self, model: KeyModel, listed: Option<&Listed>) -> Result<OpSource, String> {
        if model != KeyModel::Primary {
            return Ok(OpSource::Upsert);
        }
        let assigned =
            listed.and_then(|listed| listed.assigned.iter().find(|(column, _)| column == OP_COLUMN));
        match assigned.map(|(_, expression)| expression.trim_matches(['\'', '"'])) {
            None => Ok(self.named(OP_COLUMN).map_or(OpSource::Upsert, OpSource::Value)),
            Some("upsert" | "0") => Ok(OpSource::Upsert),
            Some("delete" | "1") => Ok(OpSource::Delete),
            Some(source) => match self.named(source) {
                Some(source) => Ok(OpSource::Value(source)),
                None => Err(format!("unknown reference column, column=__op, reference={source}")),
            },
        }
    }
}

fn write_mode(params: &LoadParams, schema: &Schema, targets: &[Target]) -> Result<WriteMode, String> {
    if params.partial_update && schema.model != KeyModel::Primary {
        return Err("Only primary key table support partial update".to_owned());
    }
    if params.partial_update {
        let missing = (0..schema.keys).find(|key| targets.iter().all(|target| target.column != *key));
        if let Some(key) = missing {
            let name = &schema.columns[key].name;
            return Err(format!("key column {name} not in partial update columns"));
        }
    }
    if let Some(column) = &params.merge_condition {
        if schema.model != KeyModel::Primary {
            return Err("Conditional update only support primary key table".to_owned());
        }
        match schema.position(column) {
            None => return Err(format!("merge condition column {column} does not exist")),
            Some(at) if at < schema.keys => {
                return Err(format!("merge condition column {column} should not be primary key"));
            }
            Some(_) => {}
        }
    }
    Ok(match (params.partial_update, params.merge_condition.clone()) {
        (false, None) => WriteMode::Replace,
        (true, None) => WriteMode::Partial,
        (false, Some(column)) => WriteMode::IfNotSmaller(column),
        (true, Some(column)) => WriteMode::PartialIfNotSmaller(column),
    })
}

fn check_columns(
    schema: &Schema,
    listed: Option<&Listed>,
    targets: &[Target],
    partial: bool,
) -> Result<(), String> {
    for (column, _) in listed.map(|listed| listed.assigned.as_slice()).unwrap_or_default() {
        if column != OP_COLUMN && schema.position(column).is_none() {
            return Err(format!("unknown reference column, column={column}, reference={column}"));
        }
    }
    if partial {
        return Ok(());
    }
    for (at, column) in schema.columns.iter().enumerate() {
        let filled = targets.iter().any(|target| target.column == at);
        if !filled && !column.nullable && column.default.is_none() {
            return Err(format!("Column has no default value. column: {}", column.name));
        }
    }
    Ok(())
}

fn parse_paths(written: &str) -> Result<Vec<Vec<PathStep>>, String> {
    let paths: Vec<String> =
        serde_json::from_str(written).map_err(|_| format!("Invalid json path: {written}"))?;
    paths.iter().map(|path| parse_path(path)).collect()
}

/// `$.a.b[0]."c d"`; the dollar may be left out.
fn parse_path(written: &str) -> Result<Vec<PathStep>, String> {
    let invalid = || format!("Invalid json path: {written}");
    let mut steps = Vec::new();
    let mut rest = written.trim().trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']').ok_or_else(invalid)?;
            steps.push(PathStep::Index(index.trim().parse().map_err(|_| invalid())?));
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('.').unwrap_or(rest);
        let (key, after) = match name.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(invalid)?,
            None => name.split_at(name.find(['.', '[']).unwrap_or(name.len())),
        };
        if key.is_empty() {
            return Err(invalid());
        }
        steps.push(PathStep::Key(key.to_owned()));
        rest = after;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::{PathStep, parse_path};

    #[test]
    fn paths() {
        let key = |name: &str| PathStep::Key(name.to_owned());
        assert_eq!(parse_path("$.a.b[2].c"), Ok(vec![key("a"), key("b"), PathStep::Index(2), key("c")]));
        assert_eq!(parse_path("$.\"a.b\""), Ok(vec![key("a.b")]));
        assert_eq!(parse_path("$"), Ok(vec![]));
        assert!(parse_path("$.a..b").is_err());
    }
}
