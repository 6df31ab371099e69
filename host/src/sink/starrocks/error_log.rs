//! StarRocks' error log → which rows it is about, and why they were refused. Pure.
//!
//! A log has at most some fifty entries `Error: reason. Row: row`, and each part of a BE shows the row in
//! its own way (reference/starrocks-load-protocol.md §2.3):
//! - the JSON scanner (numbers, lengths) as it was sent: `{"id":1,"qty":"many"}`. The reason may go on on
//!   a second line with a place in the BE's source;
//! - the casts and the NULL check behind it as values in the order of the table's columns, in brackets:
//!   `[1, 'many', NULL]`, texts without escapes, dates and decimals as they were converted;
//! - the checks of the sink (`String '…'(length=22) is too long…`, decimals) not at all;
//! - the CSV scanner as the record that was sent;
//! - forks and very old versions: `Reason: column_name[c], …. src line [row]; `.
//!
//! So the row is rarely enough to find it by. The reason is: it names a column and a value, a length or
//! NULL, and *every* row with the same fault in this column is refused for it. Such rows are found by
//! that, also those for which the log had no room; only where the reason tells too little, the row is
//! compared.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::sink::Destination;

/// A log with fewer entries has one for each row that was filtered.
pub(super) const ENTRIES_MAX: usize = 50;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Why the row was refused, in StarRocks' words, on one line.
    pub reason: String,
    /// The row as the log shows it; none if it does not.
    pub row: Option<String>,
    /// What the reason says is wrong, if that can be looked for in other rows.
    pub blemish: Option<Blemish>,
}

/// What is wrong with one column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blemish {
    /// NULL, or no value at all, where the column takes none.
    Null {
        /// The column.
        column: String,
    },
    /// A text of more bytes than the column takes.
    TooLong {
        /// The column.
        column: String,
        /// Bytes that it takes.
        bytes_max: usize,
    },
    /// This value, which is not of the column's type or range.
    Misfit {
        /// The column.
        column: String,
        /// The value as StarRocks prints it.
        value: String,
    },
}

/// How rows relate to columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// A row's key is the column of that name.
    AreColumns,
    /// Paths or expressions stand between them: only rows that are shown as they were sent can be found.
    AreMapped,
}

impl Keys {
    /// How it is for the loads of a destination.
    pub fn of(destination: &Destination) -> Self {
        let mapping = ["columns", "jsonpaths", "json_root"];
        match mapping.iter().any(|name| destination.cluster.properties.contains_key(*name)) {
            true => Self::AreMapped,
            false => Self::AreColumns,
        }
    }
}

/// All entries of a log; what is no entry is passed over.
pub fn complaints(log: &str) -> Vec<Complaint> {
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        if line.starts_with("Error: ") || line.starts_with("Reason: ") {
            entries.push(line.to_owned());
        } else if let Some(open) = entries.last_mut() {
            open.push('\n');
            open.push_str(line);
        }
    }
    entries.iter().map(|entry| complaint(entry.trim_end_matches('\n'))).collect()
}

fn complaint(entry: &str) -> Complaint {
    let split = match entry.strip_prefix("Reason: ") {
        Some(entry) => entry.split_once(" src line [").map(|(reason, row)| {
            let row = row.trim_end();
            (reason, row.strip_suffix("];").or_else(|| row.strip_suffix(']')).unwrap_or(row))
        }),
        None => entry.split_once(". Row: ").or_else(|| entry.split_once(". Row:")),
    };
    let (reason, row) = split.unwrap_or((entry, ""));
    let reason = reason.strip_prefix("Error: ").unwrap_or(reason);
    let reason = reason.lines().next().unwrap_or_default().trim_end_matches(['.', ' ']);
    Complaint {
        reason: reason.to_owned(),
        row: (!row.trim().is_empty()).then(|| row.to_owned()),
        blemish: blemish(reason),
    }
}

/// What a reason says. Values may hold anything, so what stands behind them is looked for from the end.
fn blemish(reason: &str) -> Option<Blemish> {
    let misfit = |column: &str, value: &str| {
        Some(Blemish::Misfit { column: column.to_owned(), value: value.to_owned() })
    };
    let too_long = |column: &str, bytes: &str| {
        Some(Blemish::TooLong { column: column.to_owned(), bytes_max: bytes.trim().parse().ok()? })
    };
    if let Some(rest) = reason.strip_prefix("NULL value in non-nullable column '") {
        return Some(Blemish::Null { column: rest.strip_suffix('\'')?.to_owned() });
    }
    if let Some(rest) = reason.strip_prefix("Value '").or_else(|| reason.strip_prefix("Decimal '")) {
        let (value, of) = rest.rsplit_once("' is out of range. The type of '")?;
        // A text has quotes of its own within those of the message.
        let text = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        return misfit(of.split_once("' is ")?.0, text.unwrap_or(value));
    }
    if reason.starts_with("String ") {
        let (_, of) = reason.rsplit_once(" is too long. The max length of '")?;
        let (column, bytes) = of.split_once("' is ")?;
        return too_long(column, bytes);
    }
    if let Some((_, of)) = reason.split_once("Value length is beyond the capacity. column=") {
        let (column, bytes) = of.split_once(", capacity=")?;
        return too_long(column, bytes);
    }
    if let Some((_, of)) = reason.split_once("Value is overflow. column=") {
        let (column, value) = of.split_once(", value=")?;
        return misfit(column, value);
    }
    if let Some((_, of)) = reason.split_once("Unable to cast string value to BIGINT. value=") {
        let (value, column) = of.rsplit_once(", column=")?;
        return misfit(column, value);
    }
    if let Some(rest) = reason.strip_prefix("The field (name = ") {
        let (column, rest) = rest.split_once(", pos = ")?;
        return misfit(column, rest.split_once(", Value: ")?.1);
    }
    let (column, rest) = reason.strip_prefix("column_name[")?.split_once(']')?;
    let (_, lengths) = rest.rsplit_once("] schema length: ")?;
    too_long(column, lengths.split_once(';')?.0)
}

/// Whether `complaint` is about `row`: it has the fault that the reason names, or it is the row shown.
pub fn matching(row: &[u8], complaint: &Complaint, keys: Keys) -> bool {
    Candidate::new(row).is_meant(complaint, keys)
}

/// A row of the batch, parsed as far as comparisons need it.
struct Candidate<'a> {
    bytes: &'a [u8],
    /// None for CSV and for what is no object.
    values: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
}

impl<'a> Candidate<'a> {
    fn new(row: &'a [u8]) -> Self {
        let bytes = row.trim_ascii();
        Self { bytes, values: serde_json::from_slice(bytes).ok() }
    }

    fn is_meant(&self, complaint: &Complaint, keys: Keys) -> bool {
        match (keys, &complaint.blemish, &self.values) {
            (Keys::AreColumns, Some(blemish), Some(values)) => blemish.is_in(values),
            (_, _, _) => complaint.row.as_deref().is_some_and(|shown| self.is_shown(shown.trim())),
        }
    }

    /// Whether it is the row that the log shows, which may be cut off.
    fn is_shown(&self, shown: &str) -> bool {
        if shown.as_bytes() == self.bytes {
            return true;
        }
        if !shown.starts_with('{') {
            return false;
        }
        match serde_json::from_str::<Value>(shown) {
            Ok(shown) => serde_json::from_slice::<Value>(self.bytes).is_ok_and(|row| row == shown),
            Err(_) => {
                let begins = shown.trim_end_matches(['.', '…']);
                // Most rows of a table begin alike: a few bytes say nothing.
                begins.len() >= BEGINNING_BYTES_MIN && self.bytes.starts_with(begins.as_bytes())
            }
        }
    }
}

/// From this length on the beginning of a row may be taken for the row.
const BEGINNING_BYTES_MIN: usize = 24;

impl Blemish {
    fn is_in(&self, values: &BTreeMap<Cow<'_, str>, &RawValue>) -> bool {
        match self {
            Self::Null { column } => values.get(column.as_str()).is_none_or(|value| value.get() == "null"),
            Self::TooLong { column, bytes_max } => {
                let text = values.get(column.as_str()).and_then(|value| plain(value.get()));
                text.is_some_and(|text| text.len() > *bytes_max)
            }
            Self::Misfit { column, value } => {
                let text = values.get(column.as_str()).and_then(|value| plain(value.get()));
                text.is_some_and(|text| text == value.as_str() || is_same_number(&text, value))
            }
        }
    }
}

/// A JSON value as the text that a column gets; none for null.
fn plain(token: &str) -> Option<Cow<'_, str>> {
    match token.as_bytes().first()? {
        b'n' => None,
        b't' => Some("1".into()),
        b'f' => Some("0".into()),
        b'"' => serde_json::from_str::<String>(token).ok().map(Cow::Owned),
        _ => Some(token.into()),
    }
}

/// Whether two texts are one number written in two ways, as `3e9` and `3000000000`. Digits alone are
/// written in one way only, and may be more than a double holds.
fn is_same_number(ours: &str, theirs: &str) -> bool {
    let digits = |text: &str| text.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
    if digits(ours) && digits(theirs) {
        return false;
    }
    match (ours.parse::<f64>(), theirs.parse::<f64>()) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        (_, _) => false,
    }
}

/// The rows that the complaints are about, by their place among `rows`, each with its reason.
///
/// Never more than `filtered_rows`, or entries of a log that is not full where StarRocks has not counted: a log that seems to
/// be about more is not understood, and names none. Without a count it names none either if a row could have forged entries.
/// An entry whose shown row fits rows that differ names none in any case.
pub fn culprits<'a>(
    rows: impl IntoIterator<Item = &'a [u8]>,
    complaints: &[Complaint],
    keys: Keys,
    filtered_rows: Option<u64>,
) -> BTreeMap<usize, String> {
    // One pass over the batch: it may be large, the log has some fifty entries, most of them alike.
    let mut found: Vec<Found<'a>> = Vec::new();
    for complaint in complaints {
        let alike = |other: &Found<'_>| match (&other.complaint.blemish, keys) {
            (Some(blemish), Keys::AreColumns) => complaint.blemish.as_ref() == Some(blemish),
            (_, _) => other.complaint.row == complaint.row,
        };
        if !found.iter().any(alike) {
            found.push(Found {
                complaint: complaint.clone(),
                rows: Vec::new(),
                first: None,
                ambiguous: false,
            });
        }
    }
    let mut could_forge = false;
    for (at, row) in rows.into_iter().enumerate() {
        could_forge |= filtered_rows.is_none() && holds_an_entry(row);
        let candidate = Candidate::new(row);
        for found in found.iter_mut().filter(|found| !found.ambiguous) {
            if candidate.is_meant(&found.complaint, keys) {
                found.add(at, candidate.bytes, keys);
            }
        }
    }
    let mut named = BTreeMap::new();
    for found in found.into_iter().filter(|found| !found.ambiguous) {
        for at in found.rows {
            named.entry(at).or_insert_with(|| found.complaint.reason.clone());
        }
    }
    let logged = (complaints.len() < ENTRIES_MAX).then_some(complaints.len() as u64);
    if could_forge || filtered_rows.or(logged).is_some_and(|filtered| named.len() as u64 > filtered) {
        named.clear();
    }
    named
}

/// Whether a value of the row could look like an entry of its own where the log shows it: texts stand there without
/// escapes. `n`, `a` and `A` end the escapes of a line feed.
fn holds_an_entry(row: &[u8]) -> bool {
    let begins = |mark: &[u8]| {
        row.windows(mark.len() + 1).any(|window| b"\nnaA".contains(&window[0]) && &window[1..] == mark)
    };
    begins(b"Error: ") || begins(b"Reason: ")
}

/// The rows that one complaint fits.
#[derive(Debug)]
struct Found<'a> {
    complaint: Complaint,
    rows: Vec<usize>,
    first: Option<&'a [u8]>,
    ambiguous: bool,
}

impl<'a> Found<'a> {
    fn add(&mut self, at: usize, bytes: &'a [u8], keys: Keys) {
        let first = *self.first.get_or_insert(bytes);
        let by_fault = keys == Keys::AreColumns && self.complaint.blemish.is_some();
        self.ambiguous = !by_fault && first != bytes;
        self.rows.push(at);
    }
}

#[cfg(test)]
#[path = "error_log_tests.rs"]
mod tests;
