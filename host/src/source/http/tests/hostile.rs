//! Clients that look for a way around the framing or the tokens: raw bytes, as no library would send them.

use super::bench::{Bench, Client, settings, wait_until};
use crate::config::model::{Http, Secret};

/// Rows that only a second request, hidden behind the first, could bring.
const HIDDEN: &str = "POST /e?ack=queued HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{\"hidden\":1}";

fn guarded() -> Bench {
    Bench::with(Http { tokens: vec![Secret::new("hunter2")], ..settings() }, 16 << 20)
}

/// The status of the answer to these bytes, and whether the connection ends with it.
#[track_caller]
fn answered(bench: &Bench, bytes: &str) -> (u16, bool) {
    let mut client = bench.connect();
    client.write(bytes);
    let head = client.head();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |text| text.parse().expect("a number"));
    while client.read.len() < length {
        assert!(client.more() > 0, "closed within an answer");
    }
    client.read.drain(..length);
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.contains("connection: close") && client.read.is_empty() && client.is_closed())
}

/// Of two ways to say where a body ends, a proxy may have believed the other one: nothing may follow on that connection.
#[test]
fn nothing_can_be_hidden_behind_a_body() {
    let bench = Bench::new();
    let chunked = "2\r\n{}\r\n0\r\n\r\n";
    for (headers, body, status) in [
        ("content-length: 4\r\ntransfer-encoding: chunked\r\n", chunked, 202),
        ("transfer-encoding: chunked\r\ncontent-length: 4\r\n", chunked, 202),
        ("transfer-encoding: identity\r\ncontent-length: 2\r\n", "{}", 400),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", chunked, 400),
        ("transfer-encoding: xchunked\r\n", chunked, 400),
        ("transfer-encoding: chunked, x\r\n", chunked, 400),
        ("transfer-encoding : chunked\r\n", chunked, 400),
        ("transfer-encoding\r\n : chunked\r\n", chunked, 400),
        ("content-length: 2\r\ncontent-length: 4\r\n", "{}", 400),
        ("content-length: 2, 4\r\n", "{}", 400),
        ("content-length: +2\r\n", "{}", 400),
        ("content-length: 0x2\r\n", "{}", 400),
        ("content-length: 2\0\r\n", "{}", 400),
        ("content-length: 2\rx: y\r\n", "{}", 400),
    ] {
        let request = format!("POST /e?ack=queued HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}{HIDDEN}");
        assert_eq!(answered(&bench, &request), (status, true), "{headers:?}");
    }
    // HTTP/1.0 knows no chunks.
    let old = format!("POST /e?ack=queued HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{chunked}{HIDDEN}");
    assert_eq!(answered(&bench, &old), (400, true));
    // Two with both framings were taken; of what was hidden, nothing.
    wait_until("both are taken", || bench.owner.meter.records_read.get() == 2);
    assert_eq!(bench.answered(202), 2);
}

#[test]
fn a_chunk_that_lies_about_its_length_ends_the_request() {
    let bench = Bench::new();
    for chunks in [
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "2 2\r\n{}\r\n0\r\n\r\n",
    ] {
        let request =
            format!("POST /e HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{HIDDEN}");
        assert_eq!(answered(&bench, &request), (400, true), "{chunks:?}");
    }
    assert_eq!(bench.owner.meter.records_read.get(), 0);
}

#[test]
fn a_target_is_a_path_and_nothing_else_decides() {
    let bench = Bench::new();
    let at = |target: &str, headers: &str| {
        let request = format!("POST {target} HTTP/1.1\r\n{headers}content-length: 2\r\n\r\n{{}}");
        answered(&bench, &request).0
    };
    // A server has to take absolute targets (RFC 9112, 3.2.2); neither they nor `Host` lead anywhere else.
    assert_eq!(at("http://elsewhere.example/e?ack=queued", "host: x\r\n"), 202);
    assert_eq!(at("/e?ack=queued", "host: elsewhere.example\r\n"), 202);
    wait_until("both are taken", || bench.owner.meter.records_read.get() == 2);
    let mut landed = Vec::new();
    while landed.len() < 2 {
        landed.extend(bench.land());
    }
    assert_eq!(landed, ["{}", "{}"]);
    assert_eq!(at("http://elsewhere.example", "host: x\r\n"), 404);
    for (request, status) in [
        ("CONNECT elsewhere.example:80 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        ("OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        ("TRACE /e HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        ("POST /e HTTP/9.9\r\nhost: x\r\n\r\n", 400),
        ("POST /\x01 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    ] {
        assert_eq!(answered(&bench, request).0, status, "{request:?}");
    }
}

#[test]
fn http_2_is_not_spoken() {
    let bench = Bench::new();
    // To its preface there is no answer that its sender would understand.
    assert!(bench.connect().write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").is_closed());
    // An offer to change over is passed over (RFC 9110, 7.8).
    let offer =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
    let mut client = bench.connect();
    assert_eq!(client.post("/e?ack=queued", offer, "{}").said().status, 202);
}

#[test]
fn a_head_has_a_hundred_headers_at_most() {
    let bench = Bench::new();
    let head = |count: usize| {
        let headers: String = (0..count).map(|number| format!("x-{number}: y\r\n")).collect();
        format!("POST /e?ack=queued HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n{headers}\r\n{{}}")
    };
    assert_eq!(answered(&bench, &head(98)).0, 202);
    assert_eq!(answered(&bench, &head(99)), (431, true));
    // CVE-2026-27572 needed 32,769.
    let mut client = bench.connect();
    client.write(&head(33_000)[..60_000]);
    assert!(client.head().starts_with("http/1.1 431 "));
    // A request that is queued is answered before its record is counted.
    wait_until("the one that was taken is read", || bench.owner.meter.records_read.get() >= 1);
    assert_eq!(bench.owner.meter.records_read.get(), 1);
}

#[test]
fn a_token_counts_in_its_header_and_only_there() {
    let bench = guarded();
    for (path, headers) in [
        ("/e?access_token=hunter2", ""),
        ("/e?token=hunter2&authorization=Bearer%20hunter2", ""),
        ("http://hunter2@x/e", ""),
        ("http://u:hunter2@x/e", ""),
        ("/e", "x-authorization: Bearer hunter2\r\n"),
        ("/e", "proxy-authorization: Bearer hunter2\r\n"),
        ("/e", "cookie: access_token=hunter2\r\n"),
        ("/e", "authorization: hunter2\r\n"),
        ("/e", "authorization: Basic aHVudGVyMjo=\r\n"),
        ("/e", "authorization: Bearer hunter2, Bearer x\r\n"),
        ("/e", "authorization: Bearer \r\n"),
        ("/e", "authorization: Bearer hunter\r\n"),
        ("/e", "authorization: Bearer hunter2x\r\n"),
        // Which of two a proxy has looked at, nobody knows.
        ("/e", "authorization: Bearer hunter2\r\nauthorization: Bearer hunter3\r\n"),
        ("/e", "authorization: Bearer hunter3\r\nauthorization: Bearer hunter2\r\n"),
        ("/health/", ""),
        ("/health/e", ""),
        ("//health", ""),
    ] {
        let said = bench.connect().post(path, headers, "{}").said();
        assert_eq!(said.status, 401, "{path} {headers:?}: {said:?}");
        assert!(!said.body.to_string().contains("hunter"), "{said:?}");
    }
    assert_eq!(bench.owner.meter.records_read.get(), 0);
}

#[test]
fn without_a_token_no_byte_of_a_body_gets_room() {
    let bench = Bench::with(Http { tokens: vec![Secret::new("hunter2")], ..settings() }, 2_000);
    let all = bench.share.overdraft(2_000);
    // A full budget is of no concern to who may not send, and neither is what it says of its body.
    for announced in ["content-length: 1000000", "content-length: 10000000000", "transfer-encoding: chunked"]
    {
        let mut client = bench.connect();
        client.write(format!("POST /e HTTP/1.1\r\nhost: x\r\n{announced}\r\n\r\n"));
        assert_eq!(client.said().status, 401, "{announced}");
    }
    let mut client = bench.connect();
    client.write("POST /e HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n");
    assert!(client.head().starts_with("http/1.1 401 "), "its body was asked for");
    assert_eq!(bench.share.used(), 2_000);
    drop(all);
}

#[test]
fn wrong_tokens_by_the_ten_thousand_are_in_nobodys_way() {
    const ATTACKERS: usize = 4;
    const ROUNDS: usize = 50;
    const AHEAD: usize = 100;
    let bench = guarded();
    std::thread::scope(|scope| {
        let attack = |attacker: usize, mut client: Client| {
            for round in 0..ROUNDS {
                let requests = (0..AHEAD).map(|number| {
                    let token = format!("hunter-{attacker}-{round}-{number}");
                    format!("POST /e HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 2\r\n\r\n{{}}")
                });
                client.write(requests.collect::<String>());
                for _ in 0..AHEAD {
                    assert_eq!(client.said().status, 401);
                }
            }
        };
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|attacker| {
                let client = bench.connect();
                scope.spawn(move || attack(attacker, client))
            })
            .collect();
        let (mut good, mut answers) = (bench.connect(), 0);
        while attackers.iter().any(|attacker| !attacker.is_finished()) {
            let said = good.post("/e?ack=queued", "authorization: Bearer hunter2\r\n", "{}").said();
            assert_eq!(said.status, 202, "{said:?}");
            answers += 1;
        }
        // Hundreds, usually. One who had to wait until the attackers are done would have one or two.
        assert!(answers >= ROUNDS / 2, "{answers} answers beside {ROUNDS} rounds of each attacker");
    });
    assert_eq!(bench.answered(401), (ATTACKERS * ROUNDS * AHEAD) as u64);
}

/// A page in somebody's browser may post to 127.0.0.1 without asking, as long as it says no content type that is JSON.
#[test]
fn a_page_of_another_origin_has_to_ask_first() {
    let bench = Bench::new();
    let origin = "origin: https://elsewhere.example\r\n";
    for kind in ["", "content-type: text/plain\r\n", "content-type: application/x-www-form-urlencoded\r\n"] {
        let said = bench.connect().post("/e?ack=queued", &format!("{origin}{kind}"), "{}").said();
        assert_eq!(said.status, 415, "{kind:?}: {said:?}");
    }
    // To say `application/json` it asks, and is not let.
    let asks =
        format!("OPTIONS /e HTTP/1.1\r\nhost: x\r\n{origin}access-control-request-method: POST\r\n\r\n");
    let mut client = bench.connect();
    let head = client.write(asks).head();
    assert!(head.starts_with("http/1.1 405 ") && !head.contains("access-control-"), "{head}");
    assert_eq!(bench.owner.meter.records_read.get(), 0);
}
