//! What clients send that they should not: each gets a clear answer, nothing of it is taken, and no memory is kept.

use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use super::bench::{Bench, SOON, gzip, settings, wait_until};
use crate::config::model::Http;

const BODY_BYTES_MAX: u64 = 16 << 20;
const GIBIBYTE: u64 = 1 << 30;

/// A gzip stream that says `gibibytes` of blanks; what it says is never made here. Its end is missing, but nobody
/// comes to look for it.
fn bomb(gibibytes: u64) -> Vec<u8> {
    const STEP: usize = 1 << 20;
    let mut encoder: GzEncoder<Vec<u8>> = GzBuilder::new().write(Vec::new(), Compression::best());
    let blanks = vec![b' '; STEP];
    // The first flush ends what follows the header, so the second one is bytes that can be said again and again.
    let mut ends = Vec::new();
    for _ in 0..2 {
        encoder.write_all(&blanks).expect("a vector takes everything");
        encoder.flush().expect("a vector takes everything");
        ends.push(encoder.get_ref().len());
    }
    let again = encoder.get_ref()[ends[0]..ends[1]].to_vec();
    let steps = usize::try_from(gibibytes * GIBIBYTE).expect("64 bits") / STEP;
    [encoder.get_ref()[..ends[0]].to_vec(), again.repeat(steps - 1)].concat()
}

/// A Zstandard frame of blocks that repeat one byte 128 KiB long each (RFC 8878, 3.1.1.2).
fn zstd_bomb(blocks: usize) -> Vec<u8> {
    const HEAD: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    const REPEATED: u32 = 1;
    let block = |last: bool| {
        let head = (131_072_u32 << 3) | (REPEATED << 1) | u32::from(last);
        [head.to_le_bytes()[0], head.to_le_bytes()[1], head.to_le_bytes()[2], b' ']
    };
    let blocks = (1..=blocks).flat_map(|number| block(number == blocks));
    HEAD.into_iter().chain(blocks).collect()
}

#[test]
fn ten_gigabytes_from_ten_kilobytes_are_never_made() {
    let bench = Bench::with(Http { max_body_bytes: BODY_BYTES_MAX, ..settings() }, 64 << 20);
    let ten = bomb(10);
    assert!((ten.len() as u64) < BODY_BYTES_MAX, "{} bytes", ten.len());
    let began = Instant::now();
    let said = bench.connect().post("/e", "content-encoding: gzip\r\n", &ten).said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (413, Some("the unpacked body is longer than 16777216 bytes"))
    );
    // 16 of 10,240 MiB.
    assert!(began.elapsed() < SOON / 4, "{:?}", began.elapsed());
    // What is packed twice is a hundred times smaller still, and is not unpacked once.
    let twice = gzip(&ten);
    assert!(twice.len() < 100_000, "{} bytes", twice.len());
    for headers in
        ["content-encoding: gzip, gzip\r\n", "content-encoding: gzip\r\ncontent-encoding: gzip\r\n"]
    {
        let said = bench.connect().post("/e", headers, &twice).said();
        assert_eq!(said.status, 415, "{said:?}");
    }
    // Unpacked once it is no JSON.
    assert_eq!(bench.connect().post("/e", "content-encoding: gzip\r\n", &twice).said().status, 400);
    let small = zstd_bomb(2_500);
    assert!(small.len() < 10_010, "{} bytes", small.len());
    let said = bench.connect().post("/e", "content-encoding: zstd\r\n", &small).said();
    assert_eq!(said.status, 413, "{said:?}");
    wait_until("all bytes come back", || bench.share.used() == 0);
}

#[test]
fn a_bomb_is_what_it_says() {
    let mut said = Vec::new();
    let mut decoder = flate2::bufread::GzDecoder::new(std::io::Cursor::new(bomb(1)));
    std::io::copy(&mut std::io::Read::take(&mut decoder, 3 << 20), &mut said).expect("it is gzip");
    assert!(said.len() == 3 << 20 && said.iter().all(|byte| *byte == b' '));
    let said = zstd::decode_all(&*zstd_bomb(3)).expect("it is zstd");
    assert_eq!(said.len(), 3 * 131_072);
}

#[test]
fn bodies_that_trickle_are_cut_off_and_are_in_nobodys_way() {
    let whole = Duration::from_secs(5);
    let bench = Bench::with(Http { request_timeout: whole, ..settings() }, 16 << 20);
    // All of them together announce much more than there is room for.
    let mut slow: Vec<_> = (0..100).map(|_| bench.connect()).collect();
    let first = Instant::now();
    for client in &mut slow {
        client.write("POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{");
    }
    let began = Instant::now();
    let mut prompt = bench.connect();
    // Over long before the first of them is cut off, however busy the machine is.
    while began.elapsed() < whole / 5 {
        for client in &mut slow {
            client.write(" ");
        }
        let said = prompt.post("/e?ack=queued", "", "{}").said();
        assert_eq!(said.status, 202, "{said:?}");
    }
    for client in &mut slow {
        let said = client.said();
        assert_eq!(
            (said.status, said.body["error"].as_str()),
            (408, Some("the request did not arrive within 5s"))
        );
    }
    assert!(first.elapsed() >= whole);
}

#[test]
fn a_length_that_is_none_or_not_the_only_one_is_refused() {
    let bench = Bench::new();
    for headers in [
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: -2\r\n",
        "content-length: two\r\n",
        "content-length: 99999999999999999999999\r\n",
    ] {
        let mut client = bench.connect();
        client.write(format!("POST /e HTTP/1.1\r\nhost: x\r\n{headers}\r\n{{}}"));
        let head = client.head();
        assert!(head.starts_with("http/1.1 400 "), "{headers}: {head}");
    }
    // Of two framings chunks decide, and the connection ends: a proxy may have thought otherwise (RFC 9112, 6.3).
    let mut client = bench.connect();
    client.write(
        "POST /e?ack=queued HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n\
         2\r\n{}\r\n0\r\n\r\n",
    );
    let said = client.said();
    assert!(said.status == 202 && said.head.contains("connection: close"), "{said:?}");
    assert!(client.is_closed(), "it goes on behind two framings");
    assert_eq!(bench.land(), ["{}"]);
    let mut client = bench.connect();
    client.write("POST /e HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n");
    let said = client.said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (400, Some("the body ended before its announced length"))
    );
    assert_eq!(bench.owner.meter.records_read.get(), 1);
}

#[test]
fn what_follows_a_body_that_is_longer_than_announced_is_no_request() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write("POST /e?ack=queued HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}{\"rest\":1}\r\n\r\n");
    assert_eq!(client.said().status, 202);
    let head = client.head();
    assert!(head.starts_with("http/1.1 400 "), "{head}");
    assert!(client.is_closed());
    assert_eq!(bench.land(), ["{}"]);
}

#[test]
fn a_client_that_hangs_up_within_its_body_has_sent_nothing() {
    let bench = Bench::new();
    for framing in ["content-length: 1000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n8\r\n"] {
        let mut client = bench.connect();
        client.write(format!("POST /e HTTP/1.1\r\nhost: x\r\n{framing}{{\"a\":1}}"));
        wait_until("it is open", || bench.owner.meter.http().connections.get() == 1);
        drop(client);
        wait_until("it is closed", || bench.owner.meter.http().connections.get() == 0);
    }
    wait_until("all bytes come back", || bench.share.used() == 0);
    assert_eq!((bench.owner.meter.records_read.get(), bench.ledger.stays().len()), (0, 0));
}

#[test]
fn keys_that_are_there_twice_go_on_as_they_were_sent() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.post("/e", "", "{\"a\":1,\"a\":2,\"A\":3}");
    assert_eq!(bench.land(), ["{\"a\":1,\"a\":2,\"A\":3}"]);
    assert_eq!(client.said().status, 200);
}

#[test]
fn values_that_are_no_json_or_too_deep_are_told_with_their_place() {
    let bench = Bench::new();
    let deep = format!("{{\"a\":1}}\n{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    for (body, line, byte, error) in [
        ("{\"a\":1}\n{\"a\":NaN}", 2, 13, "expected value"),
        ("{\"a\":Infinity}", 1, 5, "expected value"),
        (&*deep, 2, 140, "more than 128 objects and arrays within each other"),
    ] {
        let said = bench.connect().post("/e", "content-type: application/x-ndjson\r\n", body).said();
        assert_eq!((said.status, said.body["error"].as_str()), (400, Some(error)), "{said:?}");
        assert_eq!((said.body["line"].as_u64(), said.body["byte"].as_u64()), (Some(line), Some(byte)));
    }
    assert_eq!(bench.owner.meter.records_read.get(), 0);
}

#[test]
fn a_head_without_end_is_refused() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write(format!("POST /e HTTP/1.1\r\nhost: x\r\nx-long: {}", "x".repeat(100_000)));
    let head = client.head();
    assert!(head.starts_with("http/1.1 431 "), "{head}");
    assert!(client.is_closed());
}
