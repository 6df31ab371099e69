//! From request headers and body to checked rows.

mod count;
mod csv;
mod json;
mod params;
mod plan;

pub(crate) use count::RowCounter;
pub(crate) use params::{Format, LoadParams};
pub(crate) use plan::LoadPlan;

use crate::column::{Misfit, Sink};
use crate::json_token;
use crate::staged::{Cell, Staged};
use plan::OpSource;

/// Lines that an error log keeps (BE `MAX_ERROR_LINES_IN_FILE`).
const ERROR_LINES_MAX: usize = 50;

/// Reads a whole body under a plan. Blocking: call it off the runtime.
///
/// # Errors
/// The message for a body that cannot be read at all. Rows with bad data are counted in the result instead.
pub(crate) fn read(body: Vec<u8>, plan: &LoadPlan) -> Result<Staged, String> {
    let bytes = body.len() as u64;
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
        for (value, target) in values.iter().zip(&self.plan.targets) {
            match self.convert(body, *value, target.column) {
                Ok(cell) => self.staged.cells.push(cell),
                Err(reason) => {
                    self.staged.cells.truncate(first_cell);
                    self.filter(&reason, row);
                    return;
                }
            }
        }
        let delete = match self.plan.op {
            OpSource::Upsert => false,
            OpSource::Delete => true,
            OpSource::Value(_) => match op.map_or(Some(false), is_delete) {
                Some(delete) => delete,
                None => {
                    self.staged.cells.truncate(first_cell);
                    self.filter("Value is not a number. column=__op", row);
                    return;
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

    fn convert<'b>(&mut self, body: &'b str, value: Option<Raw<'b>>, column: usize) -> Result<Cell, String> {
        let column = &self.plan.schema.columns[column];
        let mut sink = Sink { body, scratch: &mut self.staged.scratch };
        let converted = match value {
            None => Ok(Cell::Null),
            Some(Raw::Json(token)) => column.convert_json(token, &mut sink),
            Some(Raw::Text(text)) => column.convert_text(text, &mut sink),
        };
        let cell = match converted {
            Ok(cell) => cell,
            Err(Misfit::Unconvertible(_)) if !self.plan.params.strict_mode => Cell::Null,
            Err(Misfit::Unconvertible(reason) | Misfit::Refused(reason)) => return Err(reason),
        };
        if cell == Cell::Null && !column.nullable {
            return Err(format!("NULL value in non-nullable column '{}'", column.name));
        }
        Ok(cell)
    }

    fn filter(&mut self, reason: &str, row: &str) {
        self.staged.filtered += 1;
        if self.staged.reasons.len() < ERROR_LINES_MAX {
            self.staged.reasons.push(format!("Error: {reason}. Row: {row}"));
        }
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
