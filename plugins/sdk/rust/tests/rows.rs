//! What a plugin does to its records, and which columns come back for it.

use serde::Deserialize;
use tidemill_sdk::testing::{Answer, Harness, Input};
use tidemill_sdk::{
    BatchError, CODE_NO_TABLE, MARK_DELETE, MARK_KEY, MARK_VALUE, Output, Record, Reject, Rows, Setup,
    TableId, Transform,
};

/// Does what each value says: words that are done from left to right.
struct Scripted {
    tables: Vec<TableId>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    wants: bool,
    tables: Vec<String>,
    own: bool,
}

impl Transform for Scripted {
    type Config = Config;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, String> {
        if config.wants {
            setup.want_key().want_timestamp().want_position().want_headers();
        }
        let tables = config.tables.iter().map(|name| setup.table(name)).collect();
        if config.own {
            setup.own_table();
        }
        Ok(Self { tables })
    }

    fn begin_batch(&mut self, source: &str) -> Result<(), BatchError> {
        match source {
            "unavailable" => Err(BatchError::Retry("not now".to_owned())),
            "unknown" => Err(BatchError::Fatal("never".to_owned())),
            _ => Ok(()),
        }
    }

    fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
        let script = if record.has_value() { record.text()? } else { "keep" };
        for word in script.split_whitespace() {
            match word {
                "keep" => _ = out.keep(),
                "drop" => out.drop(),
                "row" => _ = out.replace(b"{}"),
                "line" => _ = out.replace(b"{}\n"),
                "json" => _ = out.replace_json(&[1, 2])?,
                "unserialisable" => _ = out.replace_json(&std::collections::BTreeMap::from([((), 1)]))?,
                "table0" => _ = out.keep().table(self.tables[0]),
                "table1" => _ = out.replace(b"[1]").table(self.tables[0]).table(self.tables[1]),
                "delete" => _ = out.keep().delete(),
                "upsert" => _ = out.keep().upsert(),
                "key" => _ = out.keep().key(b"first").key(b"second"),
                "no_key" => _ = out.keep().no_key(),
                "time" => _ = out.keep().timestamp_us(77),
                "header" => _ = out.keep().header("added", b"1"),
                "headers" => _ = out.keep().clear_headers().header("a", b"1").header("b", b"2"),
                "reject" => return Err(Reject::new("asked", "as asked")),
                _ => return Err(Reject::new("script", word)),
            }
        }
        Ok(())
    }
}

fn run(config: &str, inputs: &[Input]) -> Answer {
    Harness::<Scripted>::new(config).unwrap().run(inputs.iter().cloned())
}

fn scripts(scripts: &[&str]) -> Vec<Input> {
    scripts.iter().map(Input::value).collect()
}

#[test]
fn filtering_returns_nothing_but_the_inputs() {
    let answer = run("{}", &scripts(&["keep", "drop", "", "keep keep", "drop"]));
    assert_eq!(answer.columns, Rows { inputs: vec![0, 3, 3], ..Rows::default() });
}

#[test]
fn the_first_replaced_value_brings_the_kept_ones_along() {
    let answer = run("{}", &scripts(&["keep", "keep row", "line", "keep", "json"]));
    assert_eq!(answer.columns.inputs, [0, 1, 1, 2, 3, 4]);
    assert_eq!(answer.values(), ["keep", "keep row", "{}", "{}", "keep", "[1,2]"]);
    let values = answer.columns.values.unwrap();
    assert_eq!(values.data, b"keep\nkeep row\n{}\n{}\nkeep\n[1,2]\n", "each row ends in one line feed");
    assert_eq!(answer.columns.marks, None);
}

#[test]
fn a_reject_takes_back_the_rows_of_its_record_and_of_no_other() {
    let config = r#"{"wants":true,"tables":["a","b"],"own":true}"#;
    let everything = "row key time header delete table1 reject";
    let answer = run(config, &scripts(&["row key time header delete table1", everything, "keep", "reject"]));
    let undisturbed = run(config, &scripts(&["row key time header delete table1", "drop", "keep", "drop"]));
    assert_eq!(answer.rows, undisturbed.rows);
    assert_eq!(answer.columns.inputs, [0, 0, 0, 0, 0, 0, 2]);
    let rejects: Vec<_> =
        answer.rejects.iter().map(|(input, reject)| (*input, reject.code.as_str())).collect();
    assert_eq!(rejects, [(1, "asked"), (3, "asked")]);
}

#[test]
fn a_reject_before_a_column_was_begun_leaves_it_whole() {
    let answer = run(r#"{"wants":true}"#, &scripts(&["keep", "keep", "keep time reject", "time"]));
    assert_eq!(answer.columns.timestamps, Some(vec![0, 0, 77]));
    assert_eq!(answer.columns.inputs, [0, 1, 3]);
}

#[test]
fn what_cannot_be_serialised_leaves_no_trace() {
    let answer = run("{}", &scripts(&["row", "row unserialisable", "row"]));
    assert_eq!(answer.values(), ["{}", "{}"]);
    assert_eq!((answer.rejects[0].0, answer.rejects[0].1.code.as_str()), (1, "parse"));
}

#[test]
fn each_row_has_the_table_that_was_named_last_or_the_own_one() {
    let answer = run(r#"{"tables":["a","b"],"own":true}"#, &scripts(&["keep", "table0", "table1", "keep"]));
    let tables: Vec<_> = answer.rows.iter().map(|row| row.table.as_deref()).collect();
    assert_eq!(tables, [None, Some("a"), Some("b"), None]);
    let answer = run(r#"{"tables":["a"],"own":true}"#, &scripts(&["keep", "keep"]));
    assert_eq!(answer.columns.tables, None, "nothing was routed");
}

#[test]
fn a_row_without_a_table_is_a_reject_where_there_is_no_own_one() {
    let answer = run(r#"{"tables":["a","b"]}"#, &scripts(&["table0", "table0 keep", "drop", "table1"]));
    assert_eq!(answer.columns.tables, Some(vec![0, 1]));
    assert_eq!(answer.columns.inputs, [0, 3]);
    assert_eq!((answer.rejects[0].0, answer.rejects[0].1.code.as_str()), (1, CODE_NO_TABLE));
}

#[test]
fn marks_are_returned_only_if_one_differs() {
    let tombstone = Input::tombstone().key("k");
    let answer = run("{}", &[Input::value("upsert"), tombstone.clone(), Input::value("delete").delete()]);
    assert_eq!(answer.columns.marks, None);
    let answer = run("{}", &[Input::value("keep"), tombstone, Input::value("delete upsert row").delete()]);
    let (delete, value) = (MARK_DELETE, MARK_VALUE);
    let marks = [value, delete | MARK_KEY, delete | value, value, delete | value];
    assert_eq!(answer.columns.marks, Some(marks.to_vec()));
    assert_eq!(answer.values()[1], "", "a row without a value stays without one, and without a line feed");
}

#[test]
fn keys_times_and_headers_are_those_of_the_record_unless_they_are_set() {
    let input = |script: &str| Input::value(script).key("k").timestamp_us(5).header("h", "v");
    let inputs: Vec<Input> = ["keep", "key", "no_key", "time", "header", "headers", "keep"].map(input).into();
    let answer = run(r#"{"wants":true}"#, &inputs);
    let keys: Vec<_> = answer.rows.iter().map(|row| row.key.as_deref()).collect();
    let (k, second): (Option<&[u8]>, Option<&[u8]>) = (Some(b"k"), Some(b"second"));
    assert_eq!(keys, [k, second, None, k, k, k, k]);
    let times: Vec<_> = answer.rows.iter().map(|row| row.timestamp_us).collect();
    assert_eq!(times, [5, 5, 5, 77, 5, 5, 5]);
    let headers: Vec<_> = answer
        .rows
        .iter()
        .map(|row| row.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(headers, ["h", "h", "h", "h", "h added", "a b", "h"]);
}

#[test]
fn a_plugin_sees_what_it_wants() {
    struct Seeing;
    impl Transform for Seeing {
        type Config = serde::de::IgnoredAny;

        fn configure(_: Self::Config, setup: &mut Setup) -> Result<Self, String> {
            setup.want_key().want_timestamp().want_position().want_headers();
            Ok(Self)
        }

        fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
            let (partition, offset) = (record.partition(), record.offset());
            let seen = (record.source(), record.key(), record.timestamp_us(), partition, offset);
            out.replace_json(&(seen, record.header("h"), record.is_delete(), record.has_value()))?;
            Ok(())
        }
    }
    let mut seeing = Harness::<Seeing>::new("{}").unwrap().source("orders");
    let full =
        Input::value("{}").key("A").timestamp_us(-3).position(7, 1000).header("h", "1").header("h", "2");
    let answer = seeing.run([full, Input::tombstone()]);
    assert_eq!(
        answer.values(),
        [r#"[["orders",[65],-3,7,1000],[50],false,true]"#, r#"[["orders",null,null,0,1],null,true,false]"#]
    );
}

#[test]
fn a_whole_batch_can_fail() {
    for (source, expected) in [
        ("unavailable", BatchError::Retry("not now".to_owned())),
        ("unknown", BatchError::Fatal("never".to_owned())),
    ] {
        let mut plugin = Harness::<Scripted>::new("{}").unwrap().source(source);
        assert_eq!(plugin.try_run(["keep"]).err(), Some(expected));
    }
}

#[test]
#[should_panic(expected = "setup.want_key()")]
fn a_key_that_was_not_asked_for_is_a_mistake_and_not_an_absent_key() {
    run("{}", &scripts(&["key"]));
}

#[test]
#[should_panic(expected = "setup.want_timestamp()")]
fn a_time_that_was_not_asked_for_is_a_mistake() {
    run("{}", &scripts(&["time"]));
}
