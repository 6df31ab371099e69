//! From request headers and body to checked rows.

mod complaint;
mod compression;
mod count;
mod csv;
mod json;
mod params;
mod plan;

pub(crate) use count::RowCounter;
pub(crate) use params::{Format, LoadParams};
pub(crate) use plan::LoadPlan;

use crate::column::Sink;
use crate::json_token;
use crate::staged::{Cell, Staged};
use complaint::{Refused, Wrong};
use plan::{OpSource, Source};

/// Reads a whole body under a plan. Blocking: call it off the runtime.
///
/// # Errors
/// The message for a body that cannot be read at all. Rows with bad data are counted in the result instead.
pub(crate) fn read(body: Vec<u8>, plan: &LoadPlan) -> Result<Staged, String> {
    let bytes = body.len() as u64;
    let body = unpacked(body, &plan.params)?;
    let body = String::from_utf8(body)
        .map_err(|_| format!("{}. error: The input is not valid UTF-8", json::prefix(&plan.params)))?;
    let mut rows = RowSink::new(plan);
    match plan.params.format {
        Format::Json => json::read(&body, plan, &mut rows)?,
        Format::Csv => csv::read(&body, plan, &mut rows)?,
    }
    let mut staged = rows.staged;
    staged.bytes = bytes;
    staged.body = body;
    Ok(staged)
}

/// The body as it was before it was compressed.
///
/// # Errors
/// The message for a body that is not compressed as the headers say.
pub(crate) fn unpacked(body: Vec<u8>, params: &LoadParams) -> Result<Vec<u8>, String> {
    match params.compression {
        None => Ok(body),
        Some(compression) => compression.unpack(&body),
    }
}

/// A value as it stood in the body.
#[derive(Clone, Copy)]
enum Raw<'b> {
    Json(&'b str),
    Text(&'b str),
}

/// Takes the raw values of one row after the other, converts and checks them.
struct RowSink<'p> {
    plan: &'p LoadPlan,
    staged: Staged,
}

impl<'p> RowSink<'p> {
    fn new(plan: &'p LoadPlan) -> Self {
        let names = plan.targets.iter().map(|target| plan.schema.columns[target.column].name.clone());
        let staged = Staged { columns: names.collect(), mode: plan.mode.clone(), ..Staged::default() };
        Self { plan, staged }
    }

    /// Adds one row. `values` has one entry per column of the plan, `op` is the value of `__op`,
    /// `row` what the error log shows of it.
    fn add<'b>(&mut self, body: &'b str, values: &[Option<Raw<'b>>], op: Option<Raw<'b>>, row: &'b str) {
        let first_cell = self.staged.cells.len();
        let refused = Refused { values, op, row };
        let plan = self.plan;
        for (value, target) in values.iter().zip(&plan.targets) {
            let column = &plan.schema.columns[target.column];
            let mut sink = Sink { body, scratch: &mut self.staged.scratch };
            let converted = match value {
                None => Ok(Cell::Null),
                Some(Raw::Json(token)) => column.convert_json(token, &mut sink),
                Some(Raw::Text(text)) => column.convert_text(text, &mut sink),
            };
            let cell = match converted {
                Ok(cell) => cell,
                Err(misfit) if !plan.params.strict_mode && misfit.becomes_null() => Cell::Null,
                Err(misfit) => {
                    let field = if let Source::Field(at) = target.source { at } else { 0 };
                    self.staged.cells.truncate(first_cell);
                    let wrong = Wrong::Misfit { misfit: &misfit, column, field };
                    return refused.note(&wrong, plan, &mut self.staged);
                }
            };
            if cell == Cell::Null && !column.nullable {
                self.staged.cells.truncate(first_cell);
                return refused.note(&Wrong::Null(column), plan, &mut self.staged);
            }
            self.staged.cells.push(cell);
        }
        let delete = match plan.op {
            OpSource::Upsert => false,
            OpSource::Delete => true,
            OpSource::Value(_) => match op.map_or(Some(false), is_delete) {
                Some(delete) => delete,
                None => {
                    self.staged.cells.truncate(first_cell);
                    return refused.note(&Wrong::Op, plan, &mut self.staged);
                }
            },
        };
        if delete && self.staged.deletes.is_empty() {
            self.staged.deletes = vec![false; self.staged.rows as usize];
        }
        if delete || !self.staged.deletes.is_empty() {
            self.staged.deletes.push(delete);
        }
        self.staged.rows += 1;
    }

    /// Leaves a row out whose values could not even be told apart.
    fn filter(&mut self, reason: &str, row: &str) {
        complaint::note(reason, row, &mut self.staged);
    }
}

/// Whether `__op` says delete: 0 is an upsert, anything else a delete. `None` when it is no number.
fn is_delete(op: Raw<'_>) -> Option<bool> {
    let text = match op {
        Raw::Json("null") => return Some(false),
        Raw::Json(token) if token.starts_with('"') => json_token::unescape(token),
        Raw::Json(token) | Raw::Text(token) => token.into(),
    };
    match text.as_ref() {
        "upsert" | "false" => Some(false),
        "delete" | "true" => Some(true),
        number => number.parse::<f64>().ok().map(|number| number != 0.0),
    }
}
