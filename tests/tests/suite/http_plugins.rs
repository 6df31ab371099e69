//! Plugins behind the HTTP source: what they see of a request, and what its answer says of what they did.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tidemill_tests::{
    http::Answer,
    limit::within,
    listener::Listener,
    machine,
    pipeline::{Pipeline, transform},
};

const NDJSON: &str = "content-type: application/x-ndjson\r\n";

/// The test plugin, and behind it the router.
fn with_plugins(stand: &Listener) -> Pipeline {
    let mut pipeline = stand.pipeline("200ms");
    let route = r#"{ field = "kind", tables = { click = "clicks" }, otherwise = "own" }"#;
    pipeline.transforms =
        transform(&machine::test_plugin(), "{}") + &transform(&machine::plugin("route"), route);
    stand.warehouse.duplicate_table("clicks");
    pipeline
}

fn post(stand: &Listener, path: &str, headers: &str, records: &[&str]) -> Answer {
    let headers = format!("{NDJSON}{headers}");
    stand.connect().post(path, &headers, records.join("\n").as_bytes()).expect("an answer")
}

/// What the plugin saw of the record `id`.
fn seen(stand: &Listener, id: u64) -> Value {
    let rows = stand.warehouse.execute(&format!("SELECT note FROM shop.events WHERE id = {id}"));
    let note = rows.into_iter().flatten().flatten().next().expect("the row is loaded");
    serde_json::from_str(&note).expect("JSON")
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_micros()).expect("before 292,000 AD")
}

#[test]
fn a_plugin_sees_path_and_headers_of_the_request() {
    within(90, || {
        let stand = Listener::new();
        let mut tidemill = stand.run(&with_plugins(&stand));
        let before = now_us();
        let secrets =
            "authorization: Bearer hunter2\r\ncookie: session=hunter2\r\nconnection: keep-alive\r\n";
        let answer = post(
            &stand,
            "/orders/eu%20west%C3%A9?x=1",
            &format!("x-trace: t1\r\nX-Trace: t2\r\n{secrets}"),
            &[r#"{"id":1,"do":"inspect"}"#, r#"{"id":2,"do":"inspect"}"#],
        );
        assert_eq!((answer.status, answer.body["loaded"].as_u64()), (200, Some(2)), "{answer:?}");
        for (place, id) in [1, 2].into_iter().enumerate() {
            let mut seen = seen(&stand, id);
            let at = seen["timestamp_us"].take().as_u64().expect("the time of arrival");
            assert!((before..=now_us()).contains(&at), "{at}");
            let headers = seen["headers"].take();
            let expected = json!({
                "source": "orders/eu westé", "op": "upsert", "key": null, "timestamp_us": null, "partition": 0,
                "offset": place, "headers": null,
            });
            assert_eq!(seen, expected);
            let headers: Vec<(String, String)> = serde_json::from_value(headers).expect("pairs");
            let of = |wanted: &str| -> Vec<&str> {
                let own = headers.iter().filter(|(name, _)| name == wanted);
                own.map(|(_, content)| content.as_str()).collect()
            };
            assert_eq!(of("x-trace"), ["t1", "t2"]);
            assert_eq!(of("content-type"), ["application/x-ndjson"]);
            for hidden in ["authorization", "cookie", "connection"] {
                assert!(of(hidden).is_empty(), "{hidden} is shown in {headers:?}");
            }
        }
        tidemill.drain(30);
    });
}

#[test]
fn the_answer_counts_what_plugins_did_with_each_record() {
    within(90, || {
        let stand = Listener::new();
        let mut tidemill = stand.run(&with_plugins(&stand));
        let answer = post(
            &stand,
            "/events",
            "",
            &[
                r#"{"id":1,"kind":"click","amount":7,"note":"routed"}"#,
                r#"{"id":2,"do":"drop"}"#,
                r#"{"id":3,"kind":"other"}"#,
                r#"{"id":4,"do":"twice"}"#,
                r#"{"id":6,"do":"drop"}"#,
            ],
        );
        let expected = json!({ "accepted": 5, "loaded": 3, "dead_lettered": 0, "dropped": 2 });
        assert_eq!((answer.status, &answer.body), (200, &expected));
        assert_eq!(stand.ids(), [3, 4, 5].into());
        assert_eq!(stand.warehouse.ids("clicks"), [1]);
        // All of them.
        let answer = post(&stand, "/events", "", &[r#"{"id":7,"do":"drop"}"#]);
        let expected = json!({ "accepted": 1, "loaded": 0, "dead_lettered": 0, "dropped": 1 });
        assert_eq!((answer.status, &answer.body), (200, &expected));
        let metrics = tidemill.metrics().expect("metrics");
        let count = |name: &str| metrics.count(&format!("tidemill_records_{name}_total"), &[]);
        assert_eq!((count("read"), count("loaded"), count("dropped")), (6, 3, 3));
        tidemill.drain(30);
    });
}

#[test]
fn a_record_that_a_plugin_rejects_is_named_to_its_request() {
    within(90, || {
        let stand = Listener::new();
        let mut tidemill = stand.run(&with_plugins(&stand));
        let records = [
            r#"{"id":1}"#,
            r#"{"id":2,"do":"reject"}"#,
            r#"{"id":3,"do":"drop"}"#,
            r#"{"id":4,"kind":"click"}"#,
            r#"{"id":"five"}"#,
        ];
        let answer = post(&stand, "/events", "", &records);
        assert_eq!(answer.status, 422, "{answer:?}");
        let counts =
            ["accepted", "loaded", "dead_lettered", "dropped"].map(|name| answer.body[name].as_u64());
        assert_eq!(counts, [Some(5), Some(2), Some(0), Some(1)], "{answer:?}");
        let refused = answer.body["refused"].as_array().expect("a list");
        let named: Vec<_> =
            refused.iter().map(|one| (one["record"].as_u64(), one["code"].as_str())).collect();
        assert_eq!(named, [(Some(1), Some("asked")), (Some(4), Some("parse"))], "{answer:?}");
        assert_eq!(refused[0]["message"], "the record asked to be rejected");
        assert_eq!((stand.ids(), stand.warehouse.ids("clicks")), ([1].into(), vec![4]));
        tidemill.drain(30);
    });
}

#[test]
fn a_record_that_a_plugin_rejects_is_kept_with_path_and_headers() {
    within(90, || {
        let stand = Listener::new();
        let letters = stand.folder.path().join("letters");
        let mut pipeline = with_plugins(&stand);
        pipeline.dead_letters = format!("directory = {letters:?}");
        let mut tidemill = stand.run(&pipeline);
        let answer =
            post(&stand, "/shop/a", "x-trace: t1\r\n", &[r#"{"id":1}"#, r#"{"id":2,"do":"reject"}"#]);
        let expected = json!({ "accepted": 2, "loaded": 1, "dead_lettered": 1 });
        assert_eq!((answer.status, &answer.body), (200, &expected));
        tidemill.drain(30);
        let files = fs::read_dir(&letters).expect("a folder");
        let kept: String =
            files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text")).collect();
        assert_eq!(kept.lines().count(), 1, "{kept}");
        for word in ["shop/a", "asked", "x-trace", r#"{\"id\":2,\"do\":\"reject\"}"#] {
            assert!(kept.contains(word), "{word} is not in {kept}");
        }
    });
}

#[test]
fn a_plugin_can_make_deletes_of_requests() {
    within(90, || {
        let stand = Listener::with_keys();
        let mut tidemill = stand.run(&with_plugins(&stand));
        let answer = post(&stand, "/events", "", &[r#"{"id":1,"amount":1}"#, r#"{"id":2,"amount":1}"#]);
        assert_eq!(answer.status, 200, "{answer:?}");
        // Both rows of one key in one request, in its order.
        let records = [r#"{"id":1,"do":"delete"}"#, r#"{"id":2,"amount":2}"#, r#"{"id":2,"amount":3}"#];
        let answer = post(&stand, "/events", "", &records);
        let expected = json!({ "accepted": 3, "loaded": 3, "dead_lettered": 0 });
        assert_eq!((answer.status, &answer.body), (200, &expected));
        assert_eq!(stand.warehouse.amounts("events"), [(2, 3)].into());
        tidemill.drain(30);
    });
}
