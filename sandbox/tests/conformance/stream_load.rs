//! The request, the redirect and the answer of a load.

use crate::target::{Target, random};
use crate::wire::{self, Head};
use tidemill_sandbox::{Keep, Options};

#[tokio::test]
async fn the_fe_redirects_without_asking_for_the_body() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "a").with("Content-Length", 1_000_000);
    let mut connection = wire::Connection::open(&target.fe).await.expect("the FE listens");
    connection.head(&head).await.expect("written");
    // The body is never sent, and yet the answer is there; a `100 Continue` would be one too.
    let answer = connection.answer().await.expect("an answer");
    assert_eq!(answer.status, 307);
    let location = answer.header("location").expect("a redirect");
    assert_eq!(wire::path(location), head.path);
    assert!(location.starts_with("http://"));
    assert!(connection.is_closed().await, "the FE does not wait for the body");
}

#[tokio::test]
async fn the_fe_demands_an_expectation_of_http_1_1() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "a").without("Expect");
    let mut connection = wire::Connection::open(&target.fe).await.expect("the FE listens");
    connection.head(&head.clone().with("Content-Length", 0)).await.expect("written");
    let answer = connection.answer().await.expect("an answer");
    assert_eq!(answer.status, 200);
    // Older releases write `status` and `msg`, and no class before the text.
    let (status, message) = answer.refusal();
    assert_eq!(status, "FAILED");
    assert!(message.ends_with("There is no 100-continue header"), "{message}");
    if target.is_sandbox() {
        let exact = serde_json::json!({
            "Status": "FAILED",
            "Message": "class com.starrocks.common.DdlException: There is no 100-continue header",
        });
        assert_eq!(answer.json(), exact);
    }
    assert!(connection.is_closed().await, "there is nothing more to say");
    let old = Head { version: "HTTP/1.0", ..head };
    let answer = wire::exchange(&target.fe, &old, b"").await.expect("an answer");
    assert_eq!(answer.status, 307, "{answer:?}");
}

#[tokio::test]
async fn a_request_without_a_length_is_redirected_too() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let mut connection = wire::Connection::open(&target.fe).await.expect("the FE listens");
    connection.head(&target.load_head("t", "a").without("Content-Length")).await.expect("written");
    assert_eq!(connection.answer().await.expect("an answer").status, 307);
}

#[tokio::test]
async fn the_be_asks_for_no_expectation() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "a");
    let (be, path) = target.redirect(&head).await.expect("a redirect");
    let head = Head { path, ..head.without("Expect") };
    let answer = wire::exchange(&be, &head, b"{\"id\":1}").await.expect("an answer");
    assert_eq!((answer.text("Status"), answer.continued), ("Success".into(), false), "{answer:?}");
}

#[tokio::test]
async fn the_headers_of_a_careful_client_are_taken_together() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let careful = |label: &str| {
        let head = target.load_head("t", label).with("strip_outer_array", "true").with("timeout", 600);
        head.with("strict_mode", "true").with("max_filter_ratio", 0)
    };
    let answer = target.send(&careful("good"), "[{\"id\":1},{\"id\":2}]").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let answer =
        target.send(&careful("bad"), "[{\"id\":3},{\"id\":4,\"qty\":\"x\"}]").await.expect("an answer");
    assert_eq!(answer.text("Message"), "too many filtered rows", "one bad row is one too many");
    assert_eq!(target.count("t").await, 2);
}

#[tokio::test]
async fn labels_have_up_to_128_letters_digits_and_dashes() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let longest = format!("-_9Az{}", "x".repeat(123));
    assert_eq!(target.load("t", &longest, "{\"id\":1}").await.text("Status"), "Success");
    assert_eq!(target.state(&longest).await, "VISIBLE");
    let answer = target.load("t", &format!("{longest}x"), "{\"id\":2}").await;
    assert_eq!((answer.text("Status"), answer.continued), ("Fail".into(), false), "{answer:?}");
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn both_hops_check_the_password() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "a");
    for wrong in [head.clone().without("Authorization"), head.clone().user("root", "no such password")] {
        let answer = wire::exchange(&target.fe, &wrong, b"").await.expect("an answer");
        assert_eq!(answer.status, 401);
        assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"\""));
        assert_eq!(answer.text("status"), "FAILED");
    }
    let (be, path) = target.redirect(&head).await.expect("a redirect");
    let head = Head { path, ..head };
    for (wrong, told) in [
        (head.clone().without("Authorization"), "no valid Basic authorization"),
        // The BE asks the FE when it begins the transaction.
        (head.user("root", "no such password"), "Access denied"),
    ] {
        let answer = wire::exchange(&be, &wrong, b"{\"id\":1}").await.expect("an answer");
        assert_eq!((answer.status, answer.continued), (200, false));
        assert_eq!(answer.text("Status"), "Fail");
        assert!(answer.text("Message").contains(told), "{answer:?}");
    }
    assert_eq!(target.state("a").await, "UNKNOWN", "nothing was begun");
    assert_eq!(target.count("t").await, 0);
}

#[tokio::test]
async fn a_load_is_answered_with_all_fields_in_order() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let body = "{\"id\":1,\"name\":\"a\",\"qty\":2}\n{\"id\":2}\n";
    let answer = target.load("t", "first", body).await;
    assert!(answer.continued, "the body was asked for");
    assert_eq!(answer.status, 200);
    let document = answer.json();
    // Older releases have another name for the plan's time (protocol reference §2.1).
    let named = |name: &String| match name.as_str() {
        "StreamLoadPutTimeMs" if !target.is_sandbox() => "StreamLoadPlanTimeMs".to_owned(),
        other => other.to_owned(),
    };
    let names: Vec<String> = document.as_object().expect("an object").keys().map(named).collect();
    let expected = [
        "TxnId",
        "Label",
        "Status",
        "Message",
        "NumberTotalRows",
        "NumberLoadedRows",
        "NumberFilteredRows",
        "NumberUnselectedRows",
        "LoadBytes",
        "LoadTimeMs",
        "BeginTxnTimeMs",
        "StreamLoadPlanTimeMs",
        "ReadDataTimeMs",
        "WriteDataTimeMs",
        "CommitAndPublishTimeMs",
    ];
    assert_eq!(names, expected);
    for (name, value) in document.as_object().expect("an object") {
        let is_text = ["Label", "Status", "Message"].contains(&name.as_str());
        assert_eq!((value.is_string(), value.is_i64()), (is_text, !is_text), "{name}: {value}");
    }
    assert_eq!((answer.text("Status"), answer.text("Message")), ("Success".into(), "OK".into()));
    assert_eq!((answer.number("NumberLoadedRows"), answer.number("NumberFilteredRows")), (2, 0));
    assert_eq!(answer.number("LoadBytes"), body.len() as i64);
    assert!(answer.number("TxnId") > 0);
    assert_eq!(target.rows("SELECT id, name, qty FROM t ORDER BY id").await, ["1,a,2", "2,NULL,NULL"]);
}

#[tokio::test]
async fn a_load_without_a_label_gets_one() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "x").without("label");
    let answer = target.send(&head, "{\"id\":1}").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success");
    assert_eq!(target.state(&answer.text("Label")).await, "VISIBLE");
}

#[tokio::test]
async fn an_early_refusal_comes_instead_of_the_continue() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    target.load("t", "once", "{\"id\":1}").await;
    let again = target.load("t", "once", "{\"id\":1}").await;
    assert_eq!((again.status, again.continued), (200, false));
    assert_eq!(again.text("Status"), "Label Already Exists");
    assert_eq!(again.text("ExistingJobStatus"), "FINISHED");
    assert_eq!(again.text("Message"), "Label [once] has already been used.");
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn unknown_tables_and_databases_are_named() {
    let target = Target::any().await;
    let answer = target.load("missing", "a", "{\"id\":1}").await;
    assert_eq!((answer.text("Status"), answer.continued), ("Fail".into(), false));
    assert!(answer.text("Message").contains("missing"), "{answer:?}");
    let mut head = target.load_head("t", "b");
    head.path = "/api/nowhere_at_all/t/_stream_load".to_owned();
    let answer = target.send(&head, "{\"id\":1}").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Fail");
    assert!(answer.text("Message").contains("nowhere_at_all"), "{answer:?}");
}

#[tokio::test]
async fn a_json_body_over_the_limit_is_refused_by_its_length() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "big").with("Content-Length", 104_857_601);
    let (be, path) = target.redirect(&head).await.expect("a redirect");
    let answer = wire::exchange(&be, &Head { path, ..head }, b"x").await.expect("an answer");
    assert_eq!((answer.text("Status"), answer.continued), ("Fail".into(), false));
    let expected = "The size of this batch exceed the max size [104857600]  of json type data  data [ 104857601 ]. \
                    Set ignore_json_size to skip the check, although it may lead huge memory consuming.";
    assert_eq!(answer.text("Message"), expected);
    assert_eq!(target.state("big").await, "UNKNOWN", "nothing was begun");
}

#[tokio::test]
async fn a_body_of_any_format_has_a_limit() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    // More than any release allows by default.
    let head = target.load_head("t", "huge").with("format", "csv").with("Content-Length", 1_u64 << 40);
    let (be, path) = target.redirect(&head).await.expect("a redirect");
    let answer = wire::exchange(&be, &Head { path, ..head }, b"x").await.expect("an answer");
    assert_eq!((answer.text("Status"), answer.continued), ("Fail".into(), false));
    let message = answer.text("Message");
    assert!(message.contains("exceed limit") && message.contains("streaming_load_max_mb"), "{message}");
}

#[tokio::test]
async fn bad_headers_are_refused() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let check = async |name: &str, value: &str, expected: &str| {
        let head = target.load_head("t", &random()).with(name, value);
        let answer = target.send(&head, "{\"id\":1}").await.expect("an answer");
        assert_eq!(answer.text("Status"), "Fail", "{name}: {value}");
        assert!(answer.text("Message").contains(expected), "{answer:?}");
    };
    check("format", "xml", "unknown data format, format=xml").await;
    check("timeout", "soon", "Invalid timeout format").await;
    check("strict_mode", "maybe", "Invalid strict mode format. Must be bool type").await;
    check("partial_update", "true", "Only primary key table support partial update").await;
    check("label", "no/slashes", "no/slashes").await;
}

#[tokio::test]
async fn malformed_json_fails_the_whole_load() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let strip = target.load_head("t", "array").with("strip_outer_array", "true");
    let answer = target.send(&strip, "[{\"id\":1},{\"id\":2,]").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Fail");
    assert_eq!(target.state("array").await, "ABORTED");
    let answer = target.load("t", "lines", "{\"id\":1}\n{\"id\":\n").await;
    assert_eq!(answer.text("Status"), "Fail");
    assert_eq!(target.count("t").await, 0);
    // An aborted label is free again.
    assert_eq!(target.load("t", "lines", "{\"id\":1}").await.text("Status"), "Success");
}

#[tokio::test]
async fn the_texts_about_malformed_json() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let check = async |strip: bool, body: &str, expected: &str| {
        let head = target.load_head("t", &random()).with("strip_outer_array", strip);
        let answer = target.send(&head, body).await.expect("an answer");
        assert_eq!(answer.text("Message"), expected, "{body}");
        assert_eq!(answer.number("NumberTotalRows"), 0);
        assert!(answer.number("LoadBytes") > 0);
    };
    let unescaped = "Within strings, some characters must be escaped, we found unescaped characters";
    let array = format!("Failed to parse json as array. error: {unescaped}");
    check(true, "[{\"id\":1,\"name\":\"a\nb\"}]", &array).await;
    let stream = format!("Failed to iterate document stream as object. error: {unescaped}");
    check(false, "{\"id\":1}\n{\"id\":2,\"name\":\"a\tb\"}", &stream).await;
    check(false, "id,1", "illegal json started with i").await;
    check(
        true,
        "{\"id\":1}",
        "the value should be array type with strip_outer_array=true, value: {\"id\":1}",
    )
    .await;
    let hint = "The value is array type in json document stream, you can set strip_outer_array=true to parse each \
                element of the array as individual rows";
    check(false, "[{\"id\":1}]", hint).await;
}

#[tokio::test]
async fn documents_may_span_lines_or_share_one() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let answer = target.load("t", "a", "{\"id\":1}{\"id\":2}\n\n{\n \"id\":3\n}\n{\"id\":4}").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let strip = target.load_head("t", "b").with("strip_outer_array", "true");
    let answer = target.send(&strip, " [ {\"id\":5} ,\n{\"id\":6}] ").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT id FROM t ORDER BY id").await, ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn a_chunked_body_is_taken() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "chunked");
    let (be, path) = target.redirect(&head).await.expect("a redirect");
    let mut connection = wire::Connection::open(&be).await.expect("the BE listens");
    connection.head(&Head { path, ..head }.with("Transfer-Encoding", "chunked")).await.expect("written");
    assert_eq!(connection.answer().await.expect("an interim answer").status, 100);
    connection.body(b"5\r\n{\"id\"\r\n3\r\n:1}\r\n0\r\n\r\n").await.expect("written");
    let answer = connection.answer().await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success");
    assert_eq!(answer.number("LoadBytes"), 8);
}

#[tokio::test]
async fn an_empty_load_fails() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "none").with("strip_outer_array", "true");
    let answer = target.send(&head, "[]").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Fail");
    assert_eq!(target.state("none").await, "ABORTED");
}

#[tokio::test]
async fn a_sandbox_that_keeps_nothing_counts() {
    let options = Options { keep: Keep::None, ..Options::default() };
    let Some(target) = Target::sandbox(options).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let body = "{\"id\":1}\n".repeat(10_000);
    let answer = target.load("t", "many", &body).await;
    assert_eq!(answer.text("Status"), "Success");
    assert_eq!(answer.number("NumberLoadedRows"), 10_000);
    let stats = target.own().table_stats(&target.db, "t").expect("the table is there");
    assert_eq!((stats.loads, stats.rows_loaded, stats.bytes_loaded), (1, 10_000, body.len() as u64));
    assert_eq!(target.count("t").await, 10_000);
}
