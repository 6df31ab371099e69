//! CSV bodies: plain fields, `\N` for NULL, no quoting.

use super::plan::{LoadPlan, OpSource, Source};
use super::{Raw, RowSink};

/// Feeds every line of `body` into `rows`.
///
/// # Errors
/// None today: a line that does not fit is a filtered row.
pub(super) fn read(body: &str, plan: &LoadPlan, rows: &mut RowSink<'_>) -> Result<(), String> {
    let mut fields: Vec<&str> = Vec::new();
    let mut values = Vec::with_capacity(plan.targets.len());
    let lines = body.split_terminator(plan.params.row_delimiter.as_str()).skip(plan.params.skip_header);
    for line in lines.filter(|line| !line.is_empty()) {
        fields.clear();
        fields.extend(line.split(plan.params.column_separator.as_str()));
        if fields.len() != plan.fields {
            let reason = format!(
                "Value count does not match column count. Expect {}, but got {}",
                plan.fields,
                fields.len()
            );
            rows.filter(&reason, line);
            continue;
        }
        let value = |source: &Source| match source {
            Source::Field(at) => {
                fields.get(*at).filter(|field| **field != "\\N").map(|field| Raw::Text(field))
            }
            Source::Key(_) | Source::Path(_) | Source::Absent => None,
        };
        values.clear();
        values.extend(plan.targets.iter().map(|target| value(&target.source)));
        let op = match &plan.op {
            OpSource::Value(source) => value(source),
            OpSource::Upsert | OpSource::Delete => None,
        };
        rows.add(body, &values, op, line);
    }
    Ok(())
}
