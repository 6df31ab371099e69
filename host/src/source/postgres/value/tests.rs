use proptest::prelude::*;

use super::*;
use crate::source::postgres::copy_text::CopyText;
use crate::source::postgres::kind::Types;

fn array_of(element: Kind) -> Kind {
    Kind::Array { element: Box::new(element), delimiter: b',' }
}

/// The JSON form; checks that it is JSON of one line.
fn json(kind: &Kind, text: &[u8]) -> Result<(String, Noted), ValueError> {
    // What is there before stays.
    let mut out = b"[".to_vec();
    let noted = append_json(kind, text, &mut out)?;
    let out = String::from_utf8(out).expect("UTF-8");
    assert!(!out.contains('\n'), "{out}");
    serde_json::from_str::<Box<serde_json::value::RawValue>>(&format!("{out}]")).expect("JSON");
    Ok((out[1..].to_owned(), noted))
}

fn exact(kind: &Kind, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(
            json(kind, text.as_bytes()),
            Ok(((*expected).to_owned(), Noted::Exact)),
            "{kind:?} {text}"
        );
    }
}

fn nulled(kind: &Kind, cases: &[&str]) {
    for text in cases {
        assert_eq!(json(kind, text.as_bytes()), Ok(("null".to_owned(), Noted::Nulled)), "{kind:?} {text}");
    }
}

fn refused(kind: &Kind, cases: &[&str]) {
    for text in cases {
        let refused = json(kind, text.as_bytes());
        assert!(matches!(refused, Err(ValueError::Unreadable { .. })), "{kind:?} {text}: {refused:?}");
    }
}

#[test]
fn booleans_and_integers() {
    exact(&Kind::Bool, &[("t", "true"), ("f", "false")]);
    refused(&Kind::Bool, &["", "true", "x", "tf"]);
    exact(
        &Kind::Integer,
        &[
            ("0", "0"),
            ("-32768", "-32768"),
            ("2147483647", "2147483647"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("9223372036854775807", "9223372036854775807"),
            ("4294967295", "4294967295"),
        ],
    );
    refused(&Kind::Integer, &["", "-", "+1", "01", "-01", "1.0", "1e3", " 1", "1 ", "0x1", "NaN"]);
}

#[test]
fn fractions() {
    exact(
        &Kind::Float,
        &[
            ("1.1", "1.1"),
            ("0", "0"),
            ("-0", "-0"),
            ("1e+20", "1e+20"),
            ("-1e-300", "-1e-300"),
            ("1.7976931348623157e+308", "1.7976931348623157e+308"),
            ("5e-324", "5e-324"),
            ("3.4028235e+38", "3.4028235e+38"),
        ],
    );
    nulled(&Kind::Float, &["NaN", "Infinity", "-Infinity"]);
    refused(&Kind::Float, &["", ".5", "5.", "1e", "1e+", "nan", "inf", "1,5", "--1", "1.5.5"]);
    exact(
        &Kind::Numeric,
        &[
            ("99.50", "\"99.50\""),
            ("-0.00", "\"-0.00\""),
            ("0.000000000000000000001", "\"0.000000000000000000001\""),
            (
                "12345678901234567890123456789012345678901234567890.1",
                "\"12345678901234567890123456789012345678901234567890.1\"",
            ),
        ],
    );
    nulled(&Kind::Numeric, &["NaN", "Infinity", "-Infinity"]);
    refused(&Kind::Numeric, &["", "1,5", "\"", "abc"]);
    exact(
        &Kind::Money,
        &[
            ("$0.00", "\"0.00\""),
            ("$1,234.56", "\"1234.56\""),
            ("-$0.50", "\"-0.50\""),
            ("-$92,233,720,368,547,758.08", "\"-92233720368547758.08\""),
        ],
    );
    refused(&Kind::Money, &["", "$", "1.234,56 €", "($1.00)", "$1.00-"]);
}

#[test]
fn text_is_escaped_and_nothing_else_is_done_to_it() {
    exact(
        &Kind::Text,
        &[
            ("", "\"\""),
            ("plain", "\"plain\""),
            ("ab   ", "\"ab   \""),
            ("a \"b\" \\ /", "\"a \\\"b\\\" \\\\ /\""),
            ("line\nfeed\r\ttab\u{8}\u{c}", "\"line\\nfeed\\r\\ttab\\b\\f\""),
            ("\u{1}\u{1f}\u{7f}", "\"\\u0001\\u001f\u{7f}\""),
            ("é € 😀 \u{2028}", "\"é € 😀 \u{2028}\""),
            ("24:00:00", "\"24:00:00\""),
            ("00:00:00-15:59", "\"00:00:00-15:59\""),
            ("P-1Y-2M3DT-4H-5M-6.7S", "\"P-1Y-2M3DT-4H-5M-6.7S\""),
            ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
            ("[1,10)", "\"[1,10)\""),
            ("{[1,3),[5,7)}", "\"{[1,3),[5,7)}\""),
            ("(1,\"a,b\")", "\"(1,\\\"a,b\\\")\""),
            ("\"a\"=>\"1\", \"b\"=>NULL", "\"\\\"a\\\"=>\\\"1\\\", \\\"b\\\"=>NULL\""),
        ],
    );
    for length in 0..40 {
        for place in 0..length {
            let mut text = "a".repeat(length);
            text.replace_range(place..=place, "\"");
            let expected = format!("\"{}\"", text.replace('"', "\\\""));
            exact(&Kind::Text, &[(&text, &expected)]);
        }
    }
}

#[test]
fn what_is_not_utf8_is_refused_with_its_place() {
    let check = |kind: &Kind, text: &[u8], at: usize| {
        assert_eq!(json(kind, text), Err(ValueError::NotUtf8 { at }), "{kind:?}");
    };
    check(&Kind::Text, b"caf\xe9", 3);
    check(&Kind::Text, b"0123456789abcdef\xff", 16);
    check(&Kind::Json, b"{\"a\":\"\xe9\"}", 6);
    check(&array_of(Kind::Text), b"{a,\xe9}", 3);
    check(&array_of(Kind::Text), b"{a,\"\xe9\"}", 4);
}

#[test]
fn bytes_are_hexadecimal() {
    exact(&Kind::Bytea, &[("\\x", "\"\""), ("\\xdeadbeef00", "\"deadbeef00\"")]);
    refused(&Kind::Bytea, &["", "dead", "\\336\\255", "\\xDE", "\\xzz", "x00"]);
}

#[test]
fn days_and_times_are_as_starrocks_reads_them() {
    exact(&Kind::Date, &[("2024-02-29", "\"2024-02-29\""), ("0001-01-01", "\"0001-01-01\"")]);
    exact(&Kind::Date, &[("9999-12-31", "\"9999-12-31\"")]);
    nulled(
        &Kind::Date,
        &["infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "5874897-12-31", "4713-01-01 BC"],
    );
    refused(&Kind::Date, &["", "29/02/2024", "2024-2-29", "2024-02-29 ", "02-29-2024", " BC", "Infinity"]);
    exact(
        &Kind::Timestamp,
        &[
            ("2024-02-29 12:34:56", "\"2024-02-29 12:34:56\""),
            ("2024-02-29 12:34:56.123456", "\"2024-02-29 12:34:56.123456\""),
            ("2024-02-29 12:34:56.5", "\"2024-02-29 12:34:56.5\""),
        ],
    );
    nulled(
        &Kind::Timestamp,
        &["infinity", "-infinity", "0044-03-15 10:00:00 BC", "294276-12-31 23:59:59.999999"],
    );
    refused(
        &Kind::Timestamp,
        &["", "2024-02-29", "2024-02-29T12:34:56", "2024-02-29 12:34:56.", "2024-02-29 12:34:56.1234567"],
    );
    refused(
        &Kind::Timestamp,
        &["29/02/2024 16:04:56 IST", "2024-02-29 12:34:56+00", "2024-02-29 12:34:56.5x"],
    );
    exact(
        &Kind::TimestampTz,
        &[
            ("2024-02-29 10:34:56+00", "\"2024-02-29 10:34:56\""),
            ("2024-02-29 10:34:56.123456+00", "\"2024-02-29 10:34:56.123456\""),
        ],
    );
    nulled(
        &Kind::TimestampTz,
        &["infinity", "-infinity", "0044-03-15 10:00:00+00 BC", "12024-01-01 00:00:00+00"],
    );
    // Another zone than the one that is pinned is not taken for UTC.
    refused(
        &Kind::TimestampTz,
        &["2024-02-29 10:34:56", "2024-02-29 10:34:56+01", "1890-01-01 00:00:00+00:53:28"],
    );
}

#[test]
fn json_is_embedded_on_one_line() {
    exact(
        &Kind::Json,
        &[
            ("null", "null"),
            (
                "{\"a\": 1.50, \"a\": 123456789012345678901234567890}",
                "{\"a\": 1.50, \"a\": 123456789012345678901234567890}",
            ),
            ("{\n  \"a\": \"x\\ny\",\r\n\t\"b\": []\n}", "{  \"a\": \"x\\ny\",\t\"b\": []}"),
            ("\"text\"", "\"text\""),
        ],
    );
    refused(&Kind::Json, &["", " \n"]);
    let deep = format!("{}\n{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut out = Vec::new();
    assert_eq!(append_json(&Kind::Json, deep.as_bytes(), &mut out), Ok(Noted::Exact));
    assert_eq!(out.len(), 200_000);
}

#[test]
fn arrays() {
    exact(
        &array_of(Kind::Integer),
        &[
            ("{}", "[]"),
            ("{1}", "[1]"),
            ("{1,NULL,3}", "[1,null,3]"),
            ("{{1,2},{3,4}}", "[[1,2],[3,4]]"),
            ("{{{{{{7}}}}}}", "[[[[[[7]]]]]]"),
            ("[2:3]={7,8}", "[7,8]"),
            ("[-1:0][0:0]={{7},{8}}", "[[7],[8]]"),
        ],
    );
    exact(
        &array_of(Kind::Text),
        &[
            ("{\"a,b\",\"q\\\"x\",NULL,\"NULL\",\"\"}", "[\"a,b\",\"q\\\"x\",null,\"NULL\",\"\"]"),
            ("{\"back\\\\slash\",\"{}\",plain}", "[\"back\\\\slash\",\"{}\",\"plain\"]"),
            ("{\"\\\\\\\"\",\"\\\"\"}", "[\"\\\\\\\"\",\"\\\"\"]"),
            ("{\"two words\",nullable,é}", "[\"two words\",\"nullable\",\"é\"]"),
            ("{{\"a\",NULL},{NULL,\"b\"}}", "[[\"a\",null],[null,\"b\"]]"),
            ("{\"line\nfeed\"}", "[\"line\\nfeed\"]"),
        ],
    );
    exact(&array_of(Kind::Bool), &[("{t,f,NULL}", "[true,false,null]")]);
    exact(&array_of(Kind::Numeric), &[("{1.50,-2}", "[\"1.50\",\"-2\"]")]);
    exact(&array_of(Kind::Bytea), &[("{\"\\\\x6162\",\"\\\\x\"}", "[\"6162\",\"\"]")]);
    exact(&array_of(Kind::Money), &[("{\"$1,234.50\",$2.00}", "[\"1234.50\",\"2.00\"]")]);
    exact(
        &array_of(Kind::TimestampTz),
        &[("{\"2024-02-29 10:34:56+00\",NULL}", "[\"2024-02-29 10:34:56\",null]")],
    );
    exact(
        &array_of(Kind::Json),
        &[("{\"{\\\"a\\\": [1, \\\"x\\\"]}\",\"null\",NULL,7}", "[{\"a\": [1, \"x\"]},null,null,7]")],
    );
    exact(&array_of(Kind::Vector), &[("{\"[1,2.5]\"}", "[[1,2.5]]")]);
    // A domain over an array.
    exact(&array_of(array_of(Kind::Text)), &[("{\"{1,\\\"a \\\\\\\"b\\\"}\"}", "[[\"1\",\"a \\\"b\"]]")]);
    exact(&Types::new().kind(1020), &[("{(1,1),(0,0);(2,2),(1,1)}", "[\"(1,1),(0,0)\",\"(2,2),(1,1)\"]")]);
}

#[test]
fn an_element_without_a_form_is_null_and_noted() {
    let floats = json(&array_of(Kind::Float), b"{1.5,NaN,-Infinity}");
    assert_eq!(floats, Ok(("[1.5,null,null]".to_owned(), Noted::Nulled)));
    let dates = json(&array_of(Kind::Date), b"{\"0044-03-15 BC\",2024-02-29}");
    assert_eq!(dates, Ok(("[null,\"2024-02-29\"]".to_owned(), Noted::Nulled)));
}

#[test]
fn what_is_no_array_is_refused() {
    refused(
        &array_of(Kind::Text),
        &[
            "",
            "1",
            "{",
            "}",
            "{1",
            "{1,",
            "{1,}",
            "{,1}",
            "{1}}",
            "{1}x",
            "{{1}",
            "{\"a}",
            "{\"a\\",
            "{\"a\"b}",
            "{a\"b\"}",
            "{a\\b}",
            "{1{2}}",
            "{1,,2}",
            "[1:2]",
            "[1:2]{1}",
            "[x]={1}",
            "{{{{{{{1}}}}}}}",
        ],
    );
    let error = json(&array_of(Kind::Integer), b"{1,x}").expect_err("no integer");
    assert_eq!(error.to_string(), "no integer at byte 3");
}

#[test]
fn vectors() {
    exact(&Kind::Vector, &[("[1,2,3]", "[1,2,3]"), ("[-0.5,1e-05]", "[-0.5,1e-05]"), ("[]", "[]")]);
    refused(&Kind::Vector, &["", "[", "[1,]", "[1;2]", "{1:1}/5", "[NaN]"]);
}

#[test]
fn the_corpus_is_read_without_a_panic() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/value");
    let (types, mut values) = (Types::new(), 0);
    for file in std::fs::read_dir(&folder).expect("the corpus is checked in") {
        let bytes = std::fs::read(file.expect("an entry").path()).expect("a readable file");
        let mut copy = CopyText::new();
        for line in bytes.split(|byte| *byte == b'\n') {
            for field in copy.row(line).fields().flatten() {
                values += 1;
                for oid in
                    [16, 20, 701, 1700, 790, 25, 17, 1082, 1114, 1184, 1007, 1022, 1231, 1009, 1001, 1185]
                {
                    let _ = json(&types.kind(oid), field);
                }
            }
        }
    }
    assert!(values >= 25, "{values} values in {}", folder.display());
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let scalar = prop::sample::select(vec![
        Kind::Bool,
        Kind::Integer,
        Kind::Float,
        Kind::Numeric,
        Kind::Money,
        Kind::Text,
        Kind::Bytea,
        Kind::Date,
        Kind::Timestamp,
        Kind::TimestampTz,
        Kind::Vector,
    ]);
    scalar.prop_recursive(2, 3, 1, |kind| kind.prop_map(array_of))
}

proptest! {
    #[test]
    fn any_bytes_become_json_or_are_refused(kind in any_kind(), text in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = json(&kind, &text);
    }

    #[test]
    fn any_likely_bytes_become_json_or_are_refused(kind in any_kind(), text in "[-+0-9tfNULaneI{}\\[\\]\",;:.$\\\\x= BC\n]{0,30}") {
        let _ = json(&kind, text.as_bytes());
    }

    #[test]
    fn text_comes_back_as_it_went(text in any::<String>()) {
        let (json, noted) = json(&Kind::Text, text.as_bytes()).expect("UTF-8");
        prop_assert_eq!(noted, Noted::Exact);
        prop_assert_eq!(serde_json::from_str::<String>(&json).expect("a string"), text);
    }

    #[test]
    fn arrays_of_text_come_back_as_they_went(elements in prop::collection::vec(prop::option::of(any::<String>()), 1..8)) {
        // Every element in quotes, which Postgres reads as well.
        let quoted = elements.iter().map(|element| match element {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        });
        let text = format!("{{{}}}", quoted.collect::<Vec<_>>().join(","));
        let (json, _) = json(&array_of(Kind::Text), text.as_bytes()).expect("an array");
        prop_assert_eq!(serde_json::from_str::<Vec<Option<String>>>(&json).expect("strings"), elements);
    }
}
