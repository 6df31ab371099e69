//! How bodies may be written and packed.

use crate::target::Target;
use crate::wire::Answer;
use std::io::Write;

fn packed(name: &str, body: &str) -> Vec<u8> {
    match name {
        "gzip" => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(body.as_bytes()).expect("memory takes all");
            packer.finish().expect("memory takes all")
        }
        "lz4_frame" => {
            let mut packer = lz4_flex::frame::FrameEncoder::new(Vec::new());
            packer.write_all(body.as_bytes()).expect("memory takes all");
            packer.finish().expect("memory takes all")
        }
        "zstd" => zstd::encode_all(body.as_bytes(), 1).expect("memory takes all"),
        other => panic!("no packer for {other}"),
    }
}

#[tokio::test]
async fn packed_bodies_are_unpacked() {
    // Older releases unpack CSV only.
    let Some(target) = Target::since([3, 2, 7]).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    for (number, name) in ["gzip", "lz4_frame", "zstd"].into_iter().enumerate() {
        let lines = (0..3000).map(|row| format!("{{\"id\":{row},\"name\":\"{name}\",\"qty\":1}}\n"));
        let body = packed(name, &lines.collect::<String>());
        let head = target.load_head("t", &format!("json-{number}")).with("compression", name);
        let answer = target.send_bytes(&head, &body).await.expect("an answer");
        assert_eq!(answer.text("Status"), "Success", "{name}: {answer:?}");
        assert_eq!(answer.number("NumberLoadedRows"), 3000);
        assert_eq!(answer.number("LoadBytes"), body.len() as i64, "{name}");
        let body = packed(name, "1\tx\t2\n");
        let head = target.load_head("t", &format!("csv-{number}")).with("format", "csv");
        let answer = target.send_bytes(&head.with("compression", name), &body).await.expect("an answer");
        assert_eq!(answer.text("Status"), "Success", "{name}: {answer:?}");
        assert_eq!(target.count("t").await, 3001 * (number as u64 + 1));
    }
}

#[tokio::test]
async fn a_body_that_is_not_packed_as_it_says_fails() {
    let Some(target) = Target::since([3, 2, 7]).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let body = packed("gzip", "{\"id\":1}\n");
    for (label, name) in [("a", "zstd"), ("b", "lz4_frame")] {
        let head = target.load_head("t", label).with("compression", name);
        let answer = target.send_bytes(&head, &body).await.expect("an answer");
        assert_eq!(answer.text("Status"), "Fail", "{answer:?}");
    }
    let head = target.load_head("t", "c").with("compression", "gzip").with("content-encoding", "gzip");
    let answer = target.send_bytes(&head, &body).await.expect("an answer");
    let message = "Only one of http header content-encoding and compression can be set";
    assert!(answer.text("Message").contains(message), "{answer:?}");
    assert_eq!(target.count("t").await, 0);
}

async fn csv(target: &Target, label: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut head = target.load_head("t", label).with("format", "csv").with("strict_mode", "true");
    for (name, value) in headers {
        head = head.with(name, value);
    }
    target.send(&head, body).await.expect("an answer")
}

#[tokio::test]
async fn csv_with_quotes_and_separators_of_its_own() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    let headers = [("column_separator", "\\x01"), ("enclose", "\""), ("columns", "qty,id,name,__op")];
    let body = "5\u{1}1\u{1}\"a\u{1}\"\"b\"\"\nc\"\u{1}0\n\\N\u{1}2\u{1}\\N\u{1}0\n7\u{1}3\u{1}\u{1}0\n";
    let answer = csv(&target, "quotes", &headers, body).await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let rows = target.rows("SELECT id, name, qty FROM t ORDER BY id").await;
    assert_eq!(rows, ["1,a\u{1}\"b\"\nc,5", "2,NULL,NULL", "3,,7"]);
    let answer = csv(&target, "deletes", &headers, "\\N\u{1}1\u{1}\\N\u{1}1\n8\u{1}3\u{1}x\u{1}0\n").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT id, qty FROM t ORDER BY id").await, ["2,NULL", "3,8"]);
}

#[tokio::test]
async fn csv_with_a_head_spaces_and_escapes() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let headers =
        [("column_separator", ","), ("skip_header", "1"), ("trim_space", "true"), ("row_delimiter", "\\x02")];
    let answer = csv(&target, "head", &headers, "id,name,qty\u{2} 1 , a ,2\u{2}").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let answer = csv(&target, "escape", &[("column_separator", ","), ("escape", "\\")], "2,b\\,c,3\n").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.rows("SELECT name, qty FROM t ORDER BY id").await, ["a,2", "b,c,3"]);
}

#[tokio::test]
async fn csv_lines_that_do_not_fit_are_told_of() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let answer = csv(&target, "bad", &[("column_separator", ",")], "1,a,2\n2,b\n3,c,many\n").await;
    assert_eq!(answer.text("Message"), "too many filtered rows");
    assert_eq!(answer.number("NumberFilteredRows"), 2);
    let log = super::error_logs::error_log(&target, &answer.text("ErrorURL")).await;
    assert!(log.contains("Row: 2,b\n") && log.contains("Row: 3,c,many\n"), "{log}");
    let allowed = [("column_separator", ","), ("max_filter_ratio", "0.7")];
    let answer = csv(&target, "some", &allowed, "1,a,2\n2,b\n3,c,many\n").await;
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.count("t").await, 1);
}
