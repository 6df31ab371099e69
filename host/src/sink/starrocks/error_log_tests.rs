use super::*;

/// Entries as StarRocks writes them: from its sources, its issues and the tests of its Flink connector.
const LOG: &str = "Error: Value ''1753389251'' is out of range. The type of 'created' is DATETIME. Row: [13, '94', '1753389251', 0]
Error: Invalid argument: Value length is beyond the capacity. column=name, capacity=5
be/src/exec/json_scanner.cpp:588 _construct_column(val, column.get(), type). Row: {\"id\":1,\"name\":\"abcdef\"}
Error: Invalid argument: Value is overflow. column=qty, value=3000000000. Row: {\"id\":2,\"qty\":3000000000}
Error: Invalid argument: Unable to cast string value to BIGINT. value=many, more, column=qty. Row: {\"id\":3}
Error: NULL value in non-nullable column 'id'. Row: [NULL, 'a', 0]
Error: String 'DTX2P1-UPK3BP1-PMS2P11'(length=22) is too long. The max length of 'symbol' is 20. Row: 
Error: Decimal '123.4' is out of range. The type of 'price' is DECIMAL32(4,2)'. Row: 
Error: Value count does not match column count. Expect 2, but got 1. Row: 0,aaaa
Error: The field (name = qty, pos = 2) is out of range. Type: INT, Value: many. Row: 3\u{1}c\u{1}many
Reason: column_name[country], the length of input is too long than schema. first 32 bytes of input str: [USA] schema length: 1; actual length: 3; . src line []; 
";

#[test]
fn every_kind_of_entry_is_understood() {
    let misfit = |column: &str, value: &str| {
        Some(Blemish::Misfit { column: column.to_owned(), value: value.to_owned() })
    };
    let too_long = |column: &str, bytes_max| Some(Blemish::TooLong { column: column.to_owned(), bytes_max });
    let expected = [
        (misfit("created", "1753389251"), Some("[13, '94', '1753389251', 0]")),
        (too_long("name", 5), Some("{\"id\":1,\"name\":\"abcdef\"}")),
        (misfit("qty", "3000000000"), Some("{\"id\":2,\"qty\":3000000000}")),
        (misfit("qty", "many, more"), Some("{\"id\":3}")),
        (Some(Blemish::Null { column: "id".to_owned() }), Some("[NULL, 'a', 0]")),
        (too_long("symbol", 20), None),
        (misfit("price", "123.4"), None),
        (None, Some("0,aaaa")),
        (misfit("qty", "many"), Some("3\u{1}c\u{1}many")),
        (too_long("country", 1), None),
    ];
    let found = complaints(LOG);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (blemish, row)) in found.iter().zip(expected) {
        assert_eq!((&found.blemish, found.row.as_deref()), (&blemish, row), "{found:?}");
        assert!(!found.reason.contains("json_scanner") && !found.reason.contains("Row:"), "{found:?}");
    }
    assert_eq!(
        found[1].reason,
        "Invalid argument: Value length is beyond the capacity. column=name, capacity=5"
    );
}

#[test]
fn what_is_no_log_has_no_entries() {
    for text in ["", "<html>404</html>\n", "Row: x\nerror: y\n", "Error:"] {
        assert_eq!(complaints(text), [], "{text:?}");
    }
    let odd = complaints("Error: something new\nError: . Row: \nError: Value '. Row: x\n");
    assert_eq!(odd.len(), 3);
    assert!(odd.iter().all(|complaint| complaint.blemish.is_none()), "{odd:?}");
}

fn check(entry: &str, row: &str, keys: Keys, expected: bool) {
    let complaint = &complaints(entry)[0];
    assert_eq!(matching(row.as_bytes(), complaint, keys), expected, "{entry} / {row}");
}

#[test]
fn rows_are_found_by_the_fault_that_the_reason_names() {
    let check = |entry: &str, row: &str, expected| check(entry, row, Keys::AreColumns, expected);
    let null = "Error: NULL value in non-nullable column 'id'. Row: [NULL, 'a']";
    check(null, "{\"id\":null,\"name\":\"b\"}\n", true);
    check(null, "{\"name\":\"b\"}", true);
    check(null, "{\"id\":0}", false);
    let long = "Error: String 'aaa...'(length=130) is too long. The max length of 'name' is 5. Row: ";
    check(long, "{\"name\":\"abcdef\"}", true);
    check(long, "{\"name\":\"\\u00e9\\u00e9\\u00e9\"}", true);
    check(long, "{\"name\":\"\\u00e9\\u00e9\"}", false);
    check(long, "{\"name\":123456}", true);
    check(long, "{\"title\":\"abcdef\"}", false);
    let day = "Error: Value ''2026-02-30'' is out of range. The type of 'day' is DATE. Row: [1]";
    check(day, "{\"day\":\"2026-02-30\"}", true);
    check(day, "{\"day\":\"2026-02-28\",\"name\":\"2026-02-30\"}", false);
    let overflow = "Error: Invalid argument: Value is overflow. column=qty, value=3e+09. Row: {}";
    check(overflow, "{\"qty\":3000000000.0}", true);
    check(overflow, "{\"qty\":\"3e9\"}", true);
    check(overflow, "{\"qty\":3000000001}", false);
    let exact = "Error: Value ''170141183460469231731687303715884105728'' is out of range. The type of 'n' is LARGEINT. Row: [1]";
    check(exact, "{\"n\":170141183460469231731687303715884105728}", true);
    check(exact, "{\"n\":170141183460469231731687303715884105727}", false);
}

#[test]
fn rows_behind_a_mapping_are_found_as_they_were_sent_only() {
    let entry =
        "Error: Invalid argument: Value is overflow. column=amount, value=9. Row: {\"a\": 9, \"b\": [1]}";
    check(entry, "{\"b\":[1],\"a\":9}\n", Keys::AreMapped, true);
    check(entry, "{\"a\":9,\"b\":[2]}", Keys::AreMapped, false);
    check(entry, "{\"amount\":9}", Keys::AreMapped, false);
    let null = "Error: NULL value in non-nullable column 'id'. Row: [NULL, 'a']";
    check(null, "{\"key\":null}", Keys::AreMapped, false);
    let cut = "Error: Invalid argument: odd. Row: {\"name\":\"a long beginning of a ro...";
    check(cut, "{\"name\":\"a long beginning of a row\"}", Keys::AreMapped, true);
    check("Error: Invalid argument: odd. Row: {\"name\":...", "{\"name\":1}", Keys::AreMapped, false);
    let csv = "Error: Value count does not match column count. Expect 2, but got 1. Row: 1\u{1}a";
    check(csv, "1\u{1}a\n", Keys::AreColumns, true);
    check(csv, "2\u{1}a\n", Keys::AreColumns, false);
}

fn named(rows: &[&str], log: &str, filtered: Option<u64>) -> Vec<usize> {
    let rows = rows.iter().map(|row| row.as_bytes());
    culprits(rows, &complaints(log), Keys::AreColumns, filtered).into_keys().collect()
}

#[test]
fn all_rows_with_the_same_fault_are_named_and_no_other() {
    let rows = [
        "{\"id\":1}",
        "{\"id\":null}",
        "{\"id\":2,\"qty\":\"x\"}",
        "{\"name\":\"a\"}",
        "{\"id\":3,\"qty\":\"x\"}",
    ];
    let log = "Error: NULL value in non-nullable column 'id'. Row: [NULL]\n\
               Error: Invalid argument: Unable to cast string value to BIGINT. value=x, column=qty. Row: {}\n";
    assert_eq!(named(&rows, log, Some(4)), [1, 2, 3, 4]);
    assert_eq!(named(&rows, log, Some(3)), [0; 0], "more than StarRocks counted: the log is not understood");
    assert_eq!(named(&rows, "", Some(4)), [0; 0]);
}

/// The answers of transactions do not say how many rows were filtered. A log that is not full has an entry for each.
#[test]
fn rows_that_nobody_counted_are_at_most_the_entries_of_a_log_that_is_not_full() {
    let rows: Vec<String> = (0..80).map(|id| format!("{{\"id\":\"no {id}\"}}")).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let entry = |id| {
        format!(
            "Error: Invalid argument: Unable to cast string value to BIGINT. value=no {id}, column=id. Row: {{}}\n"
        )
    };
    let log = |entries| (0..entries).map(entry).collect::<String>();
    assert_eq!(named(&rows, &log(3), None), [0, 1, 2]);
    let twice = [&rows[..], &rows[..1]].concat();
    assert_eq!(named(&twice, &log(3), None), [0; 0], "a fourth row would have an entry of its own");
    assert_eq!(named(&twice, &log(50), None).len(), 51, "a full log is silent about the others");
    // One more entry than rows were filtered, and a good row that has what it says.
    let forging = [
        r#"{"id":null,"name":"x\nError: NULL value in non-nullable column 'qty'. Row: [1]"}"#,
        r#"{"id":2}"#,
    ];
    let forged = "Error: NULL value in non-nullable column 'id'. Row: [NULL, 'x\nError: NULL value in non-nullable column \
                  'qty'. Row: [1]']\n";
    assert_eq!(complaints(forged).len(), 2);
    assert_eq!(named(&forging, forged, None), [0; 0]);
    let escaped = [r#"{"id":null,"name":"x\u000AReason: "}"#, r#"{"id":2}"#];
    assert_eq!(named(&escaped, "Error: NULL value in non-nullable column 'id'. Row: []\n", None), [0; 0]);
}

#[test]
fn a_shown_row_that_fits_different_rows_names_none() {
    let log = "Error: Invalid argument: odd. Row: {\"name\":\"the same beginning \n";
    let rows = ["{\"name\":\"the same beginning 1\"}", "{\"name\":\"the same beginning 2\"}"];
    assert_eq!(named(&rows, log, Some(2)), [0; 0]);
    assert_eq!(named(&rows[..1], log, Some(2)), [0]);
    assert_eq!(named(&[rows[0], rows[0]], log, Some(2)), [0, 1], "equal rows are all meant");
}

#[test]
fn a_value_that_looks_like_an_entry_blames_nobody() {
    // A text with a line feed in it, shown without escapes.
    let log = "Error: Value ''a\nError: NULL value in non-nullable column 'qty'. Row: x'' is out of range. \
               The type of 'day' is DATE. Row: [1, NULL, 'a']\n";
    let rows = ["{\"id\":1,\"day\":\"a\"}", "{\"id\":2}", "{\"id\":3}"];
    assert_eq!(named(&rows, log, Some(1)), [0; 0]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read(log in "(Error: |Value '|' is out of range|\\. Row: |NULL|column=|[a-z'\\]\\[,\n ]|é){0,40}", row in ".{0,40}") {
        let complaints = complaints(&log);
        proptest::prop_assert!(culprits([row.as_bytes()], &complaints, Keys::AreColumns, Some(1)).len() <= 1);
    }

    #[test]
    fn a_log_that_nobody_counted_names_no_more_rows_than_it_has_entries(
        entries in proptest::collection::vec("Error: NULL value in non-nullable column 'id'\\. Row: (\\[NULL\\]|)", 0..60),
        rows in proptest::collection::vec("\\{(\"note\":\"(\\\\nError: |x)\"|)\\}", 0..60),
    ) {
        let complaints = complaints(&entries.join("\n"));
        let named = culprits(rows.iter().map(String::as_bytes), &complaints, Keys::AreColumns, None);
        proptest::prop_assert!(named.len() <= complaints.len() || complaints.len() >= ENTRIES_MAX);
        let forges = rows.iter().any(|row| row.contains("nError: "));
        proptest::prop_assert!(!forges || named.is_empty());
    }
}
