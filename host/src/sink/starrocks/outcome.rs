//! What an answer means: pure, and tested row by row with bodies as StarRocks sends them
//! (reference/starrocks-load-protocol.md §2, reference/faults.md §3).
//!
//! A BE answers HTTP 200 for success and for failure, so the JSON `Status` decides, against a list of
//! what is known. `Success` and `Publish Timeout` are durable. What nobody has seen before is
//! [`Outcome::Unsure`] once a body has left, and never a success.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::create_table::suggest_create_table;
use crate::fault::Fault;
use crate::planted::{Bug, planted};
use crate::sink::{Load, Outcome, Receipt, Rejection, Scarce};

/// Characters of StarRocks' own message that are passed on.
const MESSAGE_CHARS_MAX: usize = 400;
/// Rows that the suggested CREATE TABLE is drawn from.
const SAMPLE_ROWS_MAX: usize = 200;
/// An answer to one attempt, with what it needs to be understood.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// HTTP status: only used where there is no JSON `Status`.
    pub status: u16,
    /// Body, as it came.
    pub body: &'a [u8],
    /// Whether the first body byte of this attempt may have left.
    pub body_left: bool,
    /// Whether a body left under this label in an earlier attempt.
    pub sent_before: bool,
    /// The load that was answered.
    pub load: &'a Load,
}

/// The meaning of an answer.
#[derive(Debug)]
pub struct Classified {
    /// What is known now.
    pub outcome: Outcome,
    /// Where StarRocks keeps the reasons for refused rows.
    pub error_url: Option<String>,
    /// The transaction did not begin, so a body that left in this attempt belongs to no transaction.
    pub begin_refused: bool,
}

impl Classified {
    fn plain(outcome: Outcome) -> Self {
        Self { outcome, error_url: None, begin_refused: false }
    }
}

/// Decides what is known after `seen`.
pub fn classify(seen: &Seen<'_>) -> Classified {
    let fields = Fields::parse(seen.body);
    let status = fields.as_ref().and_then(|fields| fields.text("status"));
    let (Some(fields), Some(status)) = (&fields, status) else {
        return Classified::plain(without_status(seen));
    };
    match status.to_ascii_lowercase().replace('_', " ").as_str() {
        "success" => Classified::plain(committed(seen, fields)),
        // Of a step of a transaction: rows are counted when it is prepared, and what a BE says before means nothing.
        "ok" => Classified::plain(taken(seen, fields, true)),
        "publish timeout" => Classified::plain(taken(seen, fields, false)),
        "label already exists" => conflict(seen, fields),
        "txn in processing" => {
            let fault = Fault::retry(refusal(seen, &fields.message()));
            Classified::plain(Outcome::Overloaded(fault, Scarce::Other))
        }
        _ => failed(seen, fields),
    }
}

/// A Stream Load that succeeded, if it can be true.
fn committed(seen: &Seen<'_>, fields: &Fields) -> Outcome {
    let load = seen.load;
    if seen.body_left && load.rows > 0 && fields.number("numbertotalrows") == Some(0) {
        return Outcome::Unsure(Fault::retry(format!(
            "StarRocks counted no row in load {}, {} were sent",
            load.label, load.rows
        )));
    }
    taken(seen, fields, true)
}

fn taken(seen: &Seen<'_>, fields: &Fields, visible: bool) -> Outcome {
    let load = seen.load;
    if !seen.body_left && load.bytes > 0 {
        return Outcome::Unsure(Fault::retry(format!(
            "the FE answered load {} with success before it was given the rows: is there a proxy that follows redirects?",
            load.label
        )));
    }
    let loaded = fields.number("numberloadedrows").and_then(|rows| u64::try_from(rows).ok());
    let txn = fields.number("txnid").filter(|id| *id > 0);
    Outcome::Durable(Receipt { txn, loaded_rows: loaded, visible })
}

fn conflict(seen: &Seen<'_>, fields: &Fields) -> Classified {
    let label = &seen.load.label;
    let finished =
        fields.text("existingjobstatus").is_some_and(|status| status.eq_ignore_ascii_case("finished"));
    let is_ours = finished && seen.sent_before;
    let outcome = if is_ours || planted(Bug::LabelExistsIsSuccess) {
        Outcome::Durable(Receipt { txn: None, loaded_rows: None, visible: false })
    } else if finished {
        Outcome::Refused(foreign_label(label))
    } else {
        // Running, or an older wording without the state: ask.
        Outcome::Unsure(Fault::retry(format!("a transaction under label {label} exists already")))
    };
    Classified { outcome, error_url: None, begin_refused: true }
}

/// A finished load under a label whose body this process never sent.
pub(super) fn foreign_label(label: &str) -> Fault {
    Fault::halt(
        format!("label {label} was already loaded by somebody else"),
        "two processes made the same label, which a random nonce should exclude: look for other loads with this \
         prefix, and start again for a new nonce",
    )
}

/// A JSON answer with any other status.
fn failed(seen: &Seen<'_>, fields: &Fields) -> Classified {
    let message = fields.message();
    let lower = message.to_ascii_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    if says(&["transaction status unknown", "status is unknown"]) {
        return Classified::plain(Outcome::Unsure(Fault::retry(refusal(seen, &message))));
    }
    if says(&["has already been used"]) {
        return conflict(seen, fields);
    }
    if is_still_packed(seen, &lower) {
        let hint = "this StarRocks does not unpack such bodies (JSON from 3.2.7 on): set compression = \"none\" under \
                    [sink.starrocks], or update it";
        return Classified::plain(Outcome::Refused(Fault::halt(refusal(seen, &message), hint)));
    }
    let syntax = says(SYNTAX);
    if syntax || says(&["too many filtered rows"]) {
        let filtered_rows = fields.number("numberfilteredrows").and_then(|rows| u64::try_from(rows).ok());
        let rejection = Rejection {
            message: clipped(&message),
            filtered_rows: filtered_rows.or(syntax.then_some(0)),
            syntax,
            error_log: None,
        };
        let error_url = fields.text("errorurl").map(str::to_owned);
        return Classified { outcome: Outcome::BadRows(rejection), error_url, begin_refused: false };
    }
    if says(TOO_MANY_VERSIONS) || says(OVERLOAD) {
        let scarce = if says(TOO_MANY_VERSIONS) { Scarce::Versions } else { Scarce::Other };
        return Classified::plain(Outcome::Overloaded(Fault::retry(refusal(seen, &message)), scarce));
    }
    let denied = !seen.body_left && (seen.status == 401 || seen.status == 403);
    let hint = if denied { Some(credentials_hint(seen.load)) } else { halt_hint(seen, &lower) };
    if let Some(hint) = hint {
        return Classified::plain(Outcome::Refused(Fault::halt(refusal(seen, &message), hint)));
    }
    let fault = Fault::retry(refusal(seen, &message));
    Classified::plain(if seen.body_left { Outcome::Unsure(fault) } else { Outcome::Refused(fault) })
}

/// Whether StarRocks took a compressed body for the rows themselves, or could not unpack it: then nothing
/// is wrong with the rows, and none may be blamed.
fn is_still_packed(seen: &Seen<'_>, lower: &str) -> bool {
    let first = |segments: &[Bytes]| segments.iter().flatten().next().copied();
    let (Some(_), Some(sent)) = (&seen.load.packed, first(seen.load.body())) else { return false };
    if lower.contains("decompress") || lower.contains("unsupported compression") {
        return true;
    }
    let started =
        lower.split_once("illegal json started with ").map(|(_, byte)| byte.as_bytes().first().copied());
    started.is_some_and(|byte| {
        byte == Some(sent.to_ascii_lowercase()) && Some(sent) != first(&seen.load.segments)
    })
}

/// The body could not be read as JSON: one row's syntax fails all of it.
const SYNTAX: &[&str] = &[
    "failed to parse json",
    "illegal json started",
    "failed to iterate",
    "unrecognized json format",
    "json parse error",
    "the value is not a json",
    "empty document stream",
];

/// Back-pressure because loads come faster than compaction, with tablets and with shared data.
const TOO_MANY_VERSIONS: &[&str] = &["too many versions", "compaction score"];

/// Back-pressure: passes, but not soon.
const OVERLOAD: &[&str] = &[
    "current running txns on db",
    "exceed http cuncurrent limit",
    "exceed http concurrent limit",
    "primary-key index exceeds",
    "memorylimitexceeded",
    "memory limit",
    "mem limit",
    "memory of process exceed",
];

/// What a person has to do about a message that no waiting will change.
fn halt_hint(seen: &Seen<'_>, lower: &str) -> Option<String> {
    let destination = &seen.load.destination;
    let (database, table) = (&destination.cluster.database, &destination.table);
    let says = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    if says(&["unknown table", "table not found"]) {
        let sample: Vec<&[u8]> = sample_rows(seen.load);
        return Some(format!(
            "create the table; this would fit the rows at hand: {}",
            suggest_create_table(database, table, &sample)
        ));
    }
    if says(&["unknown database", "unknown db"]) {
        return Some(format!("create the database: CREATE DATABASE `{database}`"));
    }
    if says(&["access denied", "no privilege"]) {
        return Some(credentials_hint(seen.load));
    }
    if says(&["primary key size exceed"]) {
        return Some(
            "a key of this batch is longer than the BE allows (primary_key_limit_size, 128 bytes): shorten \
                     it in a plugin"
                .to_owned(),
        );
    }
    if says(&["exceed the max size", "body size"]) {
        return Some(
            "lower `max_bytes` under [batch]: StarRocks takes 100 MB of JSON in one load".to_owned(),
        );
    }
    if says(&["only primary key table support", "only support primary key table", "merge condition column"]) {
        return Some(
            "remove `partial_update` or the property `merge_condition`, or use a Primary Key table and a column of it \
             that is no key"
                .to_owned(),
        );
    }
    if says(&["not in partial update columns"]) {
        return Some(
            "add it to `columns` under [sink.starrocks]: a partial update needs the whole key".to_owned(),
        );
    }
    if says(&["unsupported compression"]) {
        return Some("set another `compression` under [sink.starrocks]: \"none\" always works".to_owned());
    }
    if says(&[
        "unknown column",
        "has no default value",
        "syntax error",
        "analyzing error",
        "unknown data format",
    ]) {
        return Some(format!(
            "compare the columns of `{database}`.`{table}` with `columns` under [sink.starrocks] and the \
             properties `columns` and `jsonpaths`"
        ));
    }
    None
}

fn credentials_hint(load: &Load) -> String {
    let cluster = &load.destination.cluster;
    format!(
        "check `user` and `password`, and GRANT INSERT, SELECT ON TABLE {}.{} TO USER '{}'@'%'",
        cluster.database, load.destination.table, cluster.user
    )
}

fn sample_rows(load: &Load) -> Vec<&[u8]> {
    let lines = load.segments.iter().flat_map(|segment| segment.split(|byte| *byte == b'\n'));
    lines.filter(|line| !line.is_empty()).take(SAMPLE_ROWS_MAX).collect()
}

/// No JSON, or JSON without a status.
fn without_status(seen: &Seen<'_>) -> Outcome {
    let what = format!(
        "load {} was answered with HTTP {} and {} bytes that are no verdict",
        seen.load.label,
        seen.status,
        seen.body.len()
    );
    if seen.body_left {
        return Outcome::Unsure(Fault::retry(what));
    }
    if seen.status == 401 || seen.status == 403 {
        return Outcome::Refused(Fault::halt(what, credentials_hint(seen.load)));
    }
    Outcome::Refused(Fault::retry(what))
}

fn refusal(seen: &Seen<'_>, message: &str) -> String {
    format!("StarRocks refused load {}: {}", seen.load.label, clipped(message))
}

/// One line, of bounded length.
pub(super) fn clipped(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The fields of a JSON answer, by name in any case: `Status` and `status`, `Message` and `msg`.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// None if the body is no JSON object.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Some(Self(object)),
            Ok(_) | Err(_) => None,
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// A text field; none if it is missing, empty or of another type.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        let value = self.get(name)?;
        value.as_i64().or_else(|| value.as_str()?.parse().ok())
    }

    /// The message in either spelling; a fixed text if there is none.
    pub(super) fn message(&self) -> String {
        let message = self.text("message").or_else(|| self.text("msg")).or_else(|| self.text("reason"));
        message.unwrap_or("no reason given").to_owned()
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
