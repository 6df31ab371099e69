//! Lines of the error log, worded as the three places of a BE word them: its JSON scanner shows the row as
//! it was sent, the casts after it and the NULL check show the values in brackets, the CSV scanner the record.

use super::plan::LoadPlan;
use super::{Format, Raw};
use crate::column::{Column, ColumnType, Misfit};
use crate::json_token::{self, TokenKind};
use crate::staged::Staged;

/// Lines that an error log keeps (BE `MAX_ERROR_NUM`).
const ERROR_LINES_MAX: usize = 50;

/// What is wrong with a row.
pub(super) enum Wrong<'a> {
    /// A value does not fit its column; `field` is its place in a CSV record.
    Misfit { misfit: &'a Misfit, column: &'a Column, field: usize },
    /// NULL where the column takes none.
    Null(&'a Column),
    /// `__op` is no number.
    Op,
}

/// A row that is left out.
pub(super) struct Refused<'a, 'b> {
    /// Its values, one for each target of the plan.
    pub(super) values: &'a [Option<Raw<'b>>],
    /// Whether it carries an op, which BEs show behind the values.
    pub(super) op: Option<Raw<'b>>,
    /// As it was sent.
    pub(super) row: &'b str,
}

impl Refused<'_, '_> {
    /// Counts the row and, if there is room, keeps a line about it.
    pub(super) fn note(&self, wrong: &Wrong<'_>, plan: &LoadPlan, staged: &mut Staged) {
        if staged.reasons.len() >= ERROR_LINES_MAX {
            staged.filtered += 1;
            return;
        }
        let (reason, shown) = self.worded(wrong, plan);
        note(&reason, &shown, staged);
    }

    fn worded(&self, wrong: &Wrong<'_>, plan: &LoadPlan) -> (String, String) {
        let sent = || self.row.to_owned();
        match wrong {
            Wrong::Op => ("Invalid argument: Value is not a number. column=__op".to_owned(), sent()),
            Wrong::Null(column) => {
                (format!("NULL value in non-nullable column '{}'", column.name), self.bracketed(plan, true))
            }
            Wrong::Misfit { misfit, column, field } if plan.params.format == Format::Csv => {
                let (name, kind) = (&column.name, column.kind.named());
                let text = misfit.text();
                let reason = format!(
                    "The field (name = {name}, pos = {field}) is out of range. Type: {kind}, Value: {text}"
                );
                (reason, sent())
            }
            Wrong::Misfit { misfit: Misfit::Decimal { text }, column, .. } => {
                let (name, kind) = (&column.name, column.kind.named());
                // The check behind the scanner has no row to show.
                (format!("Decimal '{text}' is out of range. The type of '{name}' is {kind}'"), String::new())
            }
            Wrong::Misfit { misfit, column, .. } => match scanner_reason(misfit, column) {
                Some(reason) => (format!("Invalid argument: {reason}"), sent()),
                None => {
                    let (name, kind, text) = (&column.name, column.kind.named(), misfit.text());
                    let reason = format!("Value ''{text}'' is out of range. The type of '{name}' is {kind}");
                    (reason, self.bracketed(plan, false))
                }
            },
        }
    }

    /// `[1, 'text', NULL]`; dates and decimals stand bare once they are `converted`.
    fn bracketed(&self, plan: &LoadPlan, converted: bool) -> String {
        let mut shown: Vec<String> = Vec::new();
        for (value, target) in self.values.iter().zip(&plan.targets) {
            let column = &plan.schema.columns[target.column];
            let bare = match column.kind {
                ColumnType::Int { .. } | ColumnType::Float { .. } | ColumnType::Json => true,
                ColumnType::Char { .. } | ColumnType::Varchar { .. } | ColumnType::Binary => false,
                _ => converted,
            };
            shown.push(value.map_or_else(|| "NULL".to_owned(), |value| bracketed(value, bare)));
        }
        if plan.takes_ops() {
            shown.push(self.op.map_or_else(|| "0".to_owned(), |op| bracketed(op, true)));
        }
        format!("[{}]", shown.join(", "))
    }
}

/// Counts a row and keeps a line about it.
pub(super) fn note(reason: &str, row: &str, staged: &mut Staged) {
    staged.filtered += 1;
    if staged.reasons.len() < ERROR_LINES_MAX {
        staged.reasons.push(format!("Error: {reason}. Row: {row}"));
    }
}

/// What the JSON scanner itself says; none of a value that is only cast behind it.
fn scanner_reason(misfit: &Misfit, column: &Column) -> Option<String> {
    let name = &column.name;
    match (misfit, &column.kind) {
        (Misfit::TooLong { bytes_max, .. }, _) => {
            Some(format!("Value length is beyond the capacity. column={name}, capacity={bytes_max}"))
        }
        (Misfit::Overflow { text }, _) => Some(format!("Value is overflow. column={name}, value={text}")),
        (Misfit::Unconvertible { text }, ColumnType::Int { .. } | ColumnType::Float { .. }) => {
            Some(format!("Unable to cast string value to BIGINT. value={text}, column={name}"))
        }
        (Misfit::Unconvertible { .. } | Misfit::Decimal { .. }, _) => None,
    }
}

fn bracketed(value: Raw<'_>, bare: bool) -> String {
    let quoted = |text: &str| if bare { text.to_owned() } else { format!("'{text}'") };
    match value {
        Raw::Text(text) => quoted(text),
        Raw::Json(token) => match json_token::kind(token) {
            TokenKind::Null => "NULL".to_owned(),
            TokenKind::True => quoted("1"),
            TokenKind::False => quoted("0"),
            TokenKind::Number => quoted(token),
            TokenKind::String => quoted(&json_token::unescape(token)),
            TokenKind::Nested => quoted(&json_token::minify(token)),
        },
    }
}
