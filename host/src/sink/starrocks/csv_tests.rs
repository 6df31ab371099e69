use super::*;

fn writer(columns: &[&str], ops: bool) -> CsvWriter {
    CsvWriter::new(columns.iter().map(|name| (*name).to_owned()).collect(), ops)
}

/// One row of columns `a`, `b` and `c` without ops; `|` stands for the separator.
fn check(row: &str, expected: &str) {
    let mut out = Vec::new();
    writer(&["a", "b", "c"], false).append_row(row.as_bytes(), &mut out).expect(row);
    assert_eq!(String::from_utf8_lossy(&out).replace('\u{1}', "|"), expected, "{row}");
}

#[test]
fn values_are_written_as_starrocks_reads_them() {
    check(r#"{"a":1,"b":"x","c":null}"#, "1|x|\\N\n");
    check(r#"{"c":-1.50e3,"a":true,"b":false}"#, "1|0|-1.50e3\n");
    check(
        r#" { "b" : 12345678901234567890.123 , "z": [1, {"a": 2}] } "#,
        "\\N|12345678901234567890.123|\\N\n",
    );
    check(r#"{"a":{"x": [1, "a b"] },"b":[],"c":{}}"#, "\"{\"\"x\"\":[1,\"\"a b\"\"]}\"|[]|{}\n");
    check(r#"{"a":"","b":"\u00e9\ud83d\ude00","c":"é"}"#, "|é😀|é\n");
    check(r#"{"a":"a\nb","b":"say \"hi\"","c":"a\u0001b"}"#, "\"a\nb\"|\"say \"\"hi\"\"\"|\"a|b\"\n");
    check(r#"{"a":"\\","b":"N\\N","c":"\r"}"#, "\\|N\\N|\"\r\"\n");
    check(r#"{"a":1,"a":2,"\u0062":3}"#, "2|3|\\N\n");
    check("{}", "\\N|\\N|\\N\n");
}

#[test]
fn ops_are_the_last_column_of_every_line() {
    let mut out = Vec::new();
    let mut writer = writer(&["id"], true);
    for row in
        ["{\"id\":1}", "{\"id\":2,\"__op\":1}", "{\"__op\":\"0\",\"id\":3}", "{\"id\":4,\"__op\":\"x\"}"]
    {
        writer.append_row(row.as_bytes(), &mut out).expect(row);
    }
    assert_eq!(out, b"1\x010\n2\x011\n3\x010\n4\x01x\n");
    let mut out = Vec::new();
    self::writer(&["id"], false).append_row(br#"{"id":1,"__op":1}"#, &mut out).expect("a row");
    assert_eq!(out, b"1\n", "a table without ops");
}

#[test]
fn a_lone_empty_text_is_no_blank_line() {
    let mut out = Vec::new();
    writer(&["a"], false).append_row(br#"{"a":""}"#, &mut out).expect("a row");
    assert_eq!(out, b"\"\"\n");
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let mut out = b"before\n".to_vec();
    let mut writer = writer(&["a", "b"], false);
    for row in ["[1]", "{\"a\":1", "{\"a\":1}{}", "nonsense", "", "{\"a\":\"\u{1}\"}"] {
        let refused = writer.append_row(row.as_bytes(), &mut out);
        assert!(matches!(refused, Err(NotCsv::NotAnObject(_))), "{row}: {refused:?}");
    }
    let refused = writer.append_row(br#"{"a":"x","b":"\\N"}"#, &mut out).expect_err("means NULL");
    assert!(refused.to_string().contains("`b`"), "{refused}");
    let refused = writer.append_row(b"{\"a\":\"\xff\"}", &mut out);
    assert!(matches!(refused, Err(NotCsv::NotAnObject(_))), "{refused:?}");
    assert_eq!(out, b"before\n");
}

#[test]
fn a_segment_is_written_row_by_row() {
    let write = |segment: &str| {
        let mut out = Vec::new();
        let written = writer(&["a"], false).write_segment(segment.as_bytes(), &mut out);
        written.map(|()| String::from_utf8(out).expect("text"))
    };
    let many = "{\"a\":1}\n".repeat(3 * WRITE_BYTES);
    assert_eq!(write(&many).expect("rows").len(), 2 * 3 * WRITE_BYTES);
    let lines = "{\"a\":1}\n\n { \"a\"\n : [\n2] }\r\n{\"a\":3}";
    assert_eq!(write(lines).expect("rows"), "1\n[2]\n3\n");
    for broken in ["{\"a\":1}\n{\"a\":\n", "{\"a\":1}{\"a\":2}\n", "{\"a\":1}\n[1]\n"] {
        assert!(matches!(write(broken), Err(NotWritten::Row(_))), "{broken}");
    }
}

/// Splits as StarRocks does: the opposite of the writer.
fn split(line: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = vec![Vec::new()];
    let (mut quoted, mut at) = (false, 0);
    while at < line.len() {
        let byte = line[at];
        let field = fields.last_mut().expect("one is there");
        if quoted && byte == ENCLOSE && line.get(at + 1) == Some(&ENCLOSE) {
            field.push(ENCLOSE);
            at += 1;
        } else if quoted && byte == ENCLOSE {
            quoted = false;
        } else if !quoted && byte == ENCLOSE && field.is_empty() {
            quoted = true;
        } else if !quoted && byte == COLUMN_SEPARATOR {
            fields.push(Vec::new());
        } else {
            field.push(byte);
        }
        at += 1;
    }
    assert!(!quoted, "a quote is open");
    fields
}

proptest::proptest! {
    #[test]
    fn texts_come_back(a in "[ -~\n\t\r\u{1}\"é\\\\]{0,12}", b in ".{0,12}") {
        proptest::prop_assume!(a != "\\N" && b != "\\N");
        let row = serde_json::json!({ "b": b, "a": a }).to_string();
        let mut out = Vec::new();
        writer(&["a", "b"], true).append_row(row.as_bytes(), &mut out).expect("a row");
        let fields = split(out.strip_suffix(b"\n").expect("a line"));
        proptest::prop_assert_eq!(fields, vec![a.into_bytes(), b.into_bytes(), b"0".to_vec()]);
    }
}
