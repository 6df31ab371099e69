use super::*;

fn common(records_max: u64) -> Common {
    Common {
        source: "events".into(),
        gathering: Gathering::default(),
        headers: Vec::new(),
        arrived: std::time::Instant::now(),
        arrived_us: 7,
        records_max,
    }
}

fn values(body: &[u8], format: Format) -> Result<Vec<String>, Unfit> {
    let chunks = read(body, format, &common(1_000_000), &mut |_| true)?;
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).expect("JSON is UTF-8");
    Ok(chunks.iter().flat_map(|chunk| chunk.values.iter().map(text).collect::<Vec<_>>()).collect())
}

#[track_caller]
fn check(format: Format, body: &str, expected: &[&str]) {
    assert_eq!(values(body.as_bytes(), format).expect("valid"), expected, "{body}");
}

#[track_caller]
fn refused(format: Format, body: impl AsRef<[u8]>, line: u64, byte: u64, what: &str) {
    match values(body.as_ref(), format).expect_err(what) {
        Unfit::Malformed(said) => {
            assert_eq!((said.line, said.byte, said.what.as_str()), (line, byte, what));
        }
        other @ (Unfit::TooMany { .. } | Unfit::NoRoom) => panic!("{other:?}"),
    }
}

const ALL: [Format; 3] = [Format::Json, Format::Lines, Format::Guess];

#[test]
fn an_object_is_a_record_in_every_format() {
    for format in ALL {
        check(
            format,
            r#" {"a": 1.50, "a": "x\n", "b": {"c": []}} "#,
            &[r#"{"a": 1.50, "a": "x\n", "b": {"c": []}}"#],
        );
        check(format, "\u{feff}{\"a\":\"é\"}\r\n", &["{\"a\":\"é\"}"]);
    }
}

#[test]
fn the_elements_of_an_array_are_records() {
    for format in [Format::Json, Format::Guess] {
        check(format, "\n[{\"a\":1} ,\r\n {\"b\":\r\n2}]\n", &["{\"a\":1}", "{\"b\":2}"]);
        check(format, "[]", &[]);
    }
}

#[test]
fn lines_are_records_and_blank_ones_are_not() {
    check(Format::Lines, "{\"a\":1}\r\n\n  \n{\"b\":2}\n{\"c\":3}", &["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
    check(Format::Guess, "{\"a\":1}\n{\"b\":\n2}{\"c\":3}", &["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
}

#[test]
fn a_mistake_has_its_line_and_byte_in_the_body() {
    refused(Format::Lines, "{\"a\":1}\n{\"a\":}\n", 2, 13, "expected value");
    refused(Format::Lines, "{\"a\":NaN}", 1, 5, "expected value");
    refused(Format::Lines, "{}\n\n[1]\n", 3, 4, "a record is an array and not an object");
    refused(Format::Json, "[{\"a\":1},\n 7]", 2, 11, "a record is a number and not an object");
    refused(Format::Json, "[{\"a\":1},\n{\"a\" 1}]", 2, 15, "expected `:`");
    refused(Format::Json, "{\"a\":1}\n{\"a\":2}", 2, 8, "trailing characters");
    refused(Format::Json, "\"text\"", 1, 0, "a record is a string and not an object");
    refused(Format::Guess, "\u{feff}{}\nnull", 2, 6, "a record is null and not an object");
    refused(Format::Lines, b"{}\n{\"a\":\"\xff\"}", 2, 9, "a byte that is not UTF-8");
    for format in ALL {
        refused(format, "", 1, 0, "the body is empty");
        refused(
            format,
            "{\"a\":\"b\nc\"}".replace('\n', "\u{1}"),
            1,
            // serde_json names the byte before the one that a string must not have.
            6,
            "control character (\\u0000-\\u001F) found while parsing a string",
        );
    }
}

#[test]
fn a_body_that_is_cut_short_is_refused_at_its_end() {
    for (format, body) in
        [(Format::Json, "[{\"a\":1},{\"b\""), (Format::Lines, "{}\n{\"a\":1"), (Format::Guess, "{\"a\":")]
    {
        match values(body.as_bytes(), format).expect_err("cut short") {
            Unfit::Malformed(said) => {
                assert!(said.what.starts_with("EOF while parsing"), "{said:?}");
                assert!(said.byte + 1 >= body.len() as u64, "{said:?}");
            }
            other @ (Unfit::TooMany { .. } | Unfit::NoRoom) => panic!("{other:?}"),
        }
    }
}

#[test]
fn deep_nesting_is_refused_and_no_overflow() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    check(Format::Json, &nested(DEPTH_MAX - 1), &[&nested(DEPTH_MAX - 1)]);
    refused(Format::Lines, nested(DEPTH_MAX), 1, 132, "more than 128 objects and arrays within each other");
    // Brackets in strings are text.
    let text = format!("{{\"a\":\"{}\\\"{}\"}}", "[".repeat(500), "{".repeat(500));
    check(Format::Json, &text, &[&text]);
    for body in [nested(5_000_000), "[".repeat(5_000_000), "{\"a\":".repeat(3_000_000)] {
        for format in ALL {
            assert!(matches!(values(body.as_bytes(), format), Err(Unfit::Malformed(_))));
        }
    }
}

#[test]
fn there_are_limits_of_records_and_of_room() {
    let read = |body: &str, limit| read(body.as_bytes(), Format::Guess, &common(limit), &mut |_| true);
    assert_eq!(read("{}\n{}", 2).map(|chunks| chunks[0].len()), Ok(2));
    for body in ["{}\n{}\n{}", "[{},{},{}]"] {
        assert_eq!(read(body, 2).err(), Some(Unfit::TooMany { limit: 2 }));
    }
    let no_room = super::read(b"{}", Format::Json, &common(2), &mut |_| false);
    assert_eq!(no_room.err(), Some(Unfit::NoRoom));
}

#[test]
fn chunks_are_cut_and_records_numbered_through() {
    let body = "{\"number\":12345}\n".repeat(CHUNK_RECORDS_MAX * 2 + 5);
    let chunks = read(body.as_bytes(), Format::Lines, &common(u64::MAX), &mut |_| true).expect("valid");
    assert_eq!(
        chunks.iter().map(Columns::len).collect::<Vec<_>>(),
        [CHUNK_RECORDS_MAX, CHUNK_RECORDS_MAX, 5]
    );
    let offsets: Vec<i64> = chunks.iter().flat_map(|chunk| chunk.offsets.clone()).collect();
    assert_eq!(offsets, (0..CHUNK_RECORDS_MAX as i64 * 2 + 5).collect::<Vec<_>>());
    let large = format!("{{\"a\":\"{}\"}}\n", "x".repeat(CHUNK_BYTES_MAX)).repeat(3);
    let chunks = read(large.as_bytes(), Format::Lines, &common(u64::MAX), &mut |_| true).expect("valid");
    assert_eq!(chunks.len(), 3);
}

#[test]
fn columns_that_are_wanted_are_filled() {
    let gathering =
        Gathering { keys: true, headers: true, timestamps: true, partitions: true, line_feeds: true };
    let headers = vec![(b"x-trace".to_vec(), b"42".to_vec())];
    let common = Common { gathering, headers, ..common(10) };
    let chunks = read(b"[{\"a\":1},{\"b\":\n2}]", Format::Json, &common, &mut |_| true).expect("valid");
    let [chunk] = chunks.as_slice() else { panic!("one chunk") };
    assert_eq!(chunk.source(), "events");
    assert_eq!(chunk.values.iter().collect::<Vec<_>>(), [&b"{\"a\":1}\n"[..], b"{\"b\":2}\n"]);
    assert_eq!((chunk.marks.as_slice(), chunk.keys.len()), (&[MARK_VALUE, MARK_VALUE][..], 2));
    assert_eq!((chunk.timestamps.as_slice(), chunk.partitions.as_slice()), (&[7, 7][..], &[0, 0][..]));
    assert_eq!(chunk.headers.pairs(1).collect::<Vec<_>>(), [(&b"x-trace"[..], &b"42"[..])]);
}

proptest::proptest! {
    /// What serde_json reads is read, as the same values; what it does not read is refused.
    #[test]
    fn lines_agree_with_a_parser(body in "(\\{\"a\":[0-9tnul\\[\\]{}\",. \r\n-]{0,12}\\}\n?|[ \n\r]|\\[|\\]|,){0,6}") {
        let objects: Result<Vec<serde_json::Map<String, serde_json::Value>>, _> = body
            .split('\n')
            .filter(|line| !line.trim().is_empty())
            .map(serde_json::from_str)
            .collect();
        match (values(body.as_bytes(), Format::Lines), objects) {
            (Ok(values), Ok(objects)) => {
                proptest::prop_assert_eq!(values.len(), objects.len());
                for (value, object) in values.iter().zip(objects) {
                    proptest::prop_assert!(!value.contains('\n'));
                    let again: serde_json::Map<_, _> = serde_json::from_str(value).expect("valid");
                    proptest::prop_assert_eq!(again, object);
                }
            }
            (Err(Unfit::Malformed(said)), objects) => {
                proptest::prop_assert!(said.byte as usize <= body.len());
                proptest::prop_assert!(objects.is_err() || body.trim().is_empty(), "{:?} {:?}", body, said);
            }
            (said, objects) => proptest::prop_assert!(false, "{:?} {:?} {:?}", body, said, objects.is_ok()),
        }
    }
}
