//! One row an answer, with bodies as StarRocks sends them (reference/starrocks-load-protocol.md §2.3).

use super::*;
use crate::fault::FaultKind;
use crate::sink::starrocks::scripted::{cluster, load};

/// What an answer came to, short enough for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    Durable { visible: bool },
    Retry,
    Overloaded,
    Halt,
    Unsure,
    Bad { syntax: bool, filtered: Option<u64> },
}

fn short(outcome: &Outcome) -> Short {
    match outcome {
        Outcome::Durable(receipt) => Short::Durable { visible: receipt.visible },
        Outcome::Refused(fault) if fault.kind == FaultKind::Halt => {
            assert!(fault.hint.is_some(), "a halt says what to do: {}", fault.what);
            Short::Halt
        }
        Outcome::Refused(_) => Short::Retry,
        Outcome::Overloaded(..) => Short::Overloaded,
        Outcome::Unsure(_) => Short::Unsure,
        Outcome::BadRows(rejection) => {
            Short::Bad { syntax: rejection.syntax, filtered: rejection.filtered_rows }
        }
    }
}

/// What had gone out when the answer came.
#[derive(Debug, Clone, Copy)]
enum Sent {
    /// No body, in this attempt or before.
    Nothing,
    /// The body of this attempt.
    Body,
    /// A body in an earlier attempt, none in this one.
    Before,
}

fn classified(status: u16, sent: Sent, body: &str) -> Classified {
    let load = load(cluster(&["http://fe:8030"]));
    classify(&Seen {
        status,
        body: body.as_bytes(),
        body_left: matches!(sent, Sent::Body),
        sent_before: matches!(sent, Sent::Before),
        load: &load,
    })
}

fn check(status: u16, sent: Sent, body: &str, expected: Short) {
    assert_eq!(short(&classified(status, sent, body).outcome), expected, "{status} {sent:?} {body}");
}

const VISIBLE: Short = Short::Durable { visible: true };
const COMMITTED: Short = Short::Durable { visible: false };

#[test]
fn success_is_durable() {
    let body = r#"{
        "TxnId": 2039, "Label": "orders-0-7", "Status": "Success", "Message": "OK", "NumberTotalRows": 3,
        "NumberLoadedRows": 3, "NumberFilteredRows": 0, "NumberUnselectedRows": 0, "LoadBytes": 221,
        "LoadTimeMs": 228, "BeginTxnTimeMs": 34, "StreamLoadPlanTimeMs": 48, "ReadDataTimeMs": 0,
        "WriteDataTimeMs": 107, "CommitAndPublishTimeMs": 36 }"#;
    check(200, Sent::Body, body, VISIBLE);
    let Outcome::Durable(receipt) = classified(200, Sent::Body, body).outcome else { panic!("durable") };
    assert_eq!(receipt, Receipt { txn: Some(2039), loaded_rows: Some(3), visible: true });
    check(200, Sent::Body, r#"{"status":"OK","msg":"","numbertotalrows":"3"}"#, VISIBLE);
    check(200, Sent::Body, r#"{"STATUS":"SUCCESS"}"#, VISIBLE);
    check(500, Sent::Body, r#"{"Status":"Success","NumberTotalRows":3}"#, VISIBLE);
}

#[test]
fn publish_timeout_is_durable_and_not_yet_visible() {
    let message = "transaction commit successfully, BUT data will be visible later";
    for status in ["Publish Timeout", "PUBLISH_TIMEOUT"] {
        let body = format!(r#"{{"TxnId":7,"Status":"{status}","Message":"{message}","NumberTotalRows":3}}"#);
        check(200, Sent::Body, &body, COMMITTED);
    }
    check(200, Sent::Body, r#"{"Status":"Publish Timeout","NumberTotalRows":0}"#, COMMITTED);
}

#[test]
fn success_is_not_believed_when_it_cannot_be_true() {
    // A proxy that follows the FE's redirect itself loads the empty body.
    check(200, Sent::Nothing, r#"{"Status":"Success","NumberTotalRows":0}"#, Short::Unsure);
    // Nor when it loaded nothing: the label's state decides.
    check(200, Sent::Body, r#"{"Status":"Success","NumberTotalRows":0,"NumberLoadedRows":0}"#, Short::Unsure);
}

#[test]
fn rows_of_a_transaction_are_counted_when_it_is_prepared_and_not_before() {
    let taken = Short::Durable { visible: true };
    check(
        200,
        Sent::Body,
        r#"{"Status":"OK","TxnId":7,"Label":"l","NumberTotalRows":0,"LoadBytes":78}"#,
        taken,
    );
    check(200, Sent::Body, r#"{"Status":"OK","TxnId":7,"Label":"l","LoadBytes":78}"#, taken);
    check(200, Sent::Nothing, r#"{"Status":"OK","NumberTotalRows":0}"#, Short::Unsure);
}

#[test]
fn another_count_of_rows_is_durable_all_the_same() {
    // The rows are in the table: halting would load them again at the next start. The receipt has the
    // count, so that whoever settles the batch can say it.
    let body = r#"{"Status":"Success","NumberTotalRows":4,"NumberLoadedRows":4}"#;
    let Outcome::Durable(receipt) = classified(200, Sent::Body, body).outcome else { panic!("durable") };
    assert_eq!(receipt.loaded_rows, Some(4));
}

#[test]
fn a_label_conflict_counts_only_if_it_can_be_ours() {
    let finished = r#"{"TxnId":-1,"Label":"orders-0-7","Status":"Label Already Exists","ExistingJobStatus":"FINISHED",
        "Message":"Label [orders-0-7] has already been used."}"#;
    check(200, Sent::Before, finished, COMMITTED);
    check(200, Sent::Nothing, finished, Short::Halt);
    check(200, Sent::Body, finished, Short::Halt);
    let running = r#"{"Status":"LABEL_ALREADY_EXISTS","ExistingJobStatus":"RUNNING","Message":"used"}"#;
    for sent in [Sent::Before, Sent::Nothing, Sent::Body] {
        check(200, sent, running, Short::Unsure);
        check(200, sent, r#"{"Status":"Fail","Message":"Label [a] has already been used."}"#, Short::Unsure);
        assert!(classified(200, sent, running).begin_refused, "the body, if any, belongs to no transaction");
    }
}

#[test]
fn refused_rows_are_named_as_such() {
    let filtered = r#"{"TxnId":9,"Status":"Fail","Message":"too many filtered rows","NumberTotalRows":3,
        "NumberLoadedRows":1,"NumberFilteredRows":2,"NumberUnselectedRows":0,
        "ErrorURL":"http://be:8040/api/_load_error_log?file=error_log_1"}"#;
    check(200, Sent::Body, filtered, Short::Bad { syntax: false, filtered: Some(2) });
    let url = classified(200, Sent::Body, filtered).error_url;
    assert_eq!(url.as_deref(), Some("http://be:8040/api/_load_error_log?file=error_log_1"));
    for message in [
        "Failed to parse json as array. error: Within strings, some characters must be escaped, we found unescaped characters",
        "Failed to parse json as document stream. error: The JSON document has an improper structure",
        "illegal json started with x",
        "Failed to iterate document stream as object. error: INCORRECT_TYPE",
        "Unrecognized json format, stop json loader.",
    ] {
        let body =
            format!(r#"{{"Status":"Fail","Message":"{message}","NumberTotalRows":0,"LoadBytes":78500}}"#);
        check(200, Sent::Body, &body, Short::Bad { syntax: true, filtered: Some(0) });
    }
}

#[test]
fn back_pressure_asks_for_a_long_pause() {
    for message in [
        "Failed to load data into tablet 10044, because of too many versions, current/limit: 1001/1000. You can reduce the loading job concurrency, or increase loading data batch size. :  be:127.0.0.1",
        "Too many versions. tablet_id: 10044, version_count: 1001, limit: 1000",
        "Failed to load data into partition 7, because of too large compaction score, current/limit: 2000/2000",
        "current running txns on db 10002 is 1000, larger than limit 1000",
        "Stream Load exceed http cuncurrent limit 47, please try again later",
        "Primary-key index exceeds the limit. tablet_id: 1",
        "Memory of process exceed limit",
    ] {
        let body = format!(r#"{{"Status":"Fail","Message":"{message}"}}"#);
        check(200, Sent::Body, &body, Short::Overloaded);
        check(200, Sent::Nothing, &body, Short::Overloaded);
    }
    check(200, Sent::Nothing, r#"{"Status":"TXN_IN_PROCESSING","Message":"retry later"}"#, Short::Overloaded);
}

#[test]
fn what_only_a_person_can_change_halts_with_a_hint() {
    for message in [
        "Access denied; you need (at least one of) the INSERT privilege(s) on TABLE orders for this operation",
        "unknown table \\\"shop.orders\\\"",
        "unknown database, database=shop",
        "primary key size exceed the limit.",
        "Only primary key table support partial update",
        "Conditional update only support primary key table",
        "key column id not in partial update columns",
        "unsupported compression type: lz4_frame",
        "Column has no default value. column: id",
        "Syntax error in line 1:\\nfoo\\nEncountered: CREATE\\nExpected: CREATE is keyword, maybe `CREATE`\\n",
        "The size of this batch exceed the max size [104857600]  of json type data  data [ 104857601 ]. Set ignore_json_size to skip the check",
        "body size 5 exceed limit: 4, You can increase the limit by setting streaming_load_max_mb in be.conf.",
    ] {
        check(200, Sent::Nothing, &format!(r#"{{"Status":"Fail","Message":"{message}"}}"#), Short::Halt);
        check(200, Sent::Body, &format!(r#"{{"status":"FAILED","msg":"{message}"}}"#), Short::Halt);
    }
    check(401, Sent::Nothing, r#"{"status":"FAILED","msg":"who are you"}"#, Short::Halt);
    check(401, Sent::Nothing, "", Short::Halt);
    check(403, Sent::Nothing, "<html>forbidden</html>", Short::Halt);
}

#[test]
fn a_missing_table_comes_with_the_statement_that_makes_it() {
    let body = r#"{"Status":"Fail","Message":"unknown table \"shop.orders\""}"#;
    let Outcome::Refused(fault) = classified(200, Sent::Nothing, body).outcome else { panic!("refused") };
    let hint = fault.hint.expect("a hint");
    let statement =
        "CREATE TABLE `shop`.`orders` (`id` BIGINT NOT NULL, `name` STRING NULL) DUPLICATE KEY(`id`)";
    assert!(hint.contains(statement), "{hint}");
}

#[test]
fn what_nobody_has_seen_before_is_never_a_success() {
    for body in [
        r#"{"Status":"Fail","Message":"Fail to get tablet"}"#,
        r#"{"Status":"Fail","Message":"Service is shutting down, please retry later!"}"#,
        r#"{"Status":"FAILED","Message":"class com.starrocks.common.DdlException: There is no 100-continue header"}"#,
        r#"{"status":"FAILED","msg":"No backend alive."}"#,
        r#"{"Status":"Splendid","Message":"OK"}"#,
        r#"{"Status":null}"#,
        r#"{"Status":"Succ"#,
        r#"["Success"]"#,
        "<html>502 Bad Gateway</html>",
        "",
    ] {
        check(200, Sent::Body, body, Short::Unsure);
        check(200, Sent::Nothing, body, Short::Retry);
    }
    let unknown = r#"{"Status":"Fail","Message":"Commit transaction fail cause too many versions, Transaction status unknown, you can retry with same label."}"#;
    check(200, Sent::Body, unknown, Short::Unsure);
    check(401, Sent::Body, "", Short::Unsure);
}

#[test]
fn messages_are_one_line_of_bounded_length() {
    assert_eq!(clipped("a\n  b\tc"), "a b c");
    let long = clipped(&"ü".repeat(5000));
    assert_eq!(long.chars().count(), MESSAGE_CHARS_MAX + 1);
}

proptest::proptest! {
    /// Whatever comes, only the two durable statuses (and a finished label of ours) are durable.
    #[test]
    fn nothing_else_is_durable(status in "\\PC{0,20}", message in "\\PC{0,40}", sent_before: bool, body_left: bool) {
        let lower = status.to_ascii_lowercase().replace('_', " ");
        proptest::prop_assume!(!["success", "ok", "publish timeout"].contains(&lower.as_str()));
        let load = load(cluster(&["http://fe:8030"]));
        let body = serde_json::json!({ "Status": status, "Message": message, "NumberLoadedRows": 3 }).to_string();
        let seen = Seen { status: 200, body: body.as_bytes(), body_left, sent_before, load: &load };
        proptest::prop_assert!(!matches!(classify(&seen).outcome, Outcome::Durable(_)), "{}", body);
        let seen = Seen { body: message.as_bytes(), ..seen };
        proptest::prop_assert!(!matches!(classify(&seen).outcome, Outcome::Durable(_)), "{}", message);
    }
}

#[test]
fn a_body_that_was_not_unpacked_blames_no_row() {
    let check = |packed: Option<&'static [u8]>, rows: &'static [u8], message: &str, halts: bool| {
        let mut load = load(cluster(&["http://fe:8030"]));
        load.segments = vec![rows.into()];
        load.packed =
            packed.map(|body| crate::sink::Packed { segments: vec![body.into()], bytes: body.len() as u64 });
        let body = serde_json::json!({ "Status": "Fail", "Message": message }).to_string();
        let seen =
            Seen { status: 200, body: body.as_bytes(), body_left: true, sent_before: false, load: &load };
        let found = short(&classify(&seen).outcome);
        let expected = if halts { Short::Halt } else { Short::Bad { syntax: true, filtered: Some(0) } };
        assert_eq!(found, expected, "{message}");
    };
    let zstd = Some(&b"(\xb5/\xfd"[..]);
    check(zstd, b"{}\n", "illegal json started with (", true);
    check(Some(&b"\x1f\x8b"[..]), b"{}\n", "illegal json started with \u{1f}", true);
    check(zstd, b"{}\n", "Failed to decompress the body", true);
    check(zstd, b"(1\n", "illegal json started with (", false);
    check(zstd, b"5\n", "illegal json started with 5", false);
    check(None, b"(1\n", "illegal json started with (", false);
}
