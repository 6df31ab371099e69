use super::*;
use crate::record::{BytesColumn, MARK_KEY};

fn targets(models: &[TableModel]) -> Targets {
    Targets {
        tables: models.iter().map(|model| Target { model: (*model).into() }).collect(),
        own: Some(0),
        row_bytes_max: 100,
        names: std::sync::Arc::default(),
    }
}

/// A chunk of values (none = tombstone) at offsets 10, 11, …
fn chunk(values: &[Option<&str>], line_feeds: bool) -> Columns {
    let mut columns = Columns::default();
    for (place, value) in values.iter().enumerate() {
        let mut bytes = value.unwrap_or_default().as_bytes().to_vec();
        if line_feeds {
            bytes.push(b'\n');
        }
        columns.values.push(&bytes);
        columns.keys.push(b"k");
        columns.marks.push(if value.is_some() { MARK_VALUE | MARK_KEY } else { MARK_DELETE | MARK_KEY });
        columns.timestamps.push(0);
        columns.partitions.push(0);
        columns.offsets.push(10 + place as i64);
    }
    columns
}

fn bodies(built: &Built) -> Vec<(TableIndex, &str)> {
    built.segments.iter().map(|one| (one.table, std::str::from_utf8(&one.body).unwrap())).collect()
}

fn codes(built: &Built) -> Vec<(u32, &str)> {
    built.rejects.iter().map(|reject| (reject.input, reject.code.as_str())).collect()
}

#[test]
fn values_that_nobody_touched_are_the_segment_as_they_are() {
    let mut columns = chunk(&[Some("{\"a\":1}"), Some("{}")], true);
    let address = columns.values.data.as_ptr();
    let own = targets(&[TableModel::Duplicate]);
    let built = build(&mut columns, &mut Transformed::default(), &own, true, &mut Vec::new());
    assert_eq!(bodies(&built), [(0, "{\"a\":1}\n{}\n")]);
    assert_eq!(built.segments[0].body.as_ptr(), address);
    assert_eq!(built.segments[0].index.deltas, [FIRST_ROW, 1 | FIRST_ROW]);
    assert_eq!((built.segments[0].index.base, built.kept), (10, 2));
}

#[test]
fn a_plugins_column_with_line_feeds_is_the_segment_as_it_is() {
    let mut columns = chunk(&[Some("x"), Some("y"), Some("z")], false);
    let mut values = BytesColumn::default();
    ["{\"n\":1}\n", "{\"n\":2}\n", "{\"n\":3}\n"].iter().for_each(|row| values.push(row.as_bytes()));
    let address = values.data.as_ptr();
    let mut transformed = Transformed {
        inputs: Some(vec![0, 2, 2]),
        marks: Some(vec![MARK_VALUE; 3]),
        values: Some(values),
        ..Transformed::default()
    };
    let own = targets(&[TableModel::Duplicate]);
    let built = build(&mut columns, &mut transformed, &own, false, &mut Vec::new());
    assert_eq!(built.segments[0].body.as_ptr(), address);
    assert_eq!(built.segments[0].index.deltas, [FIRST_ROW, 2 | FIRST_ROW, 2]);
    assert_eq!(built.kept, 2);
}

#[test]
fn values_that_a_plugin_kept_are_copied_once_into_spare_memory() {
    let mut columns = chunk(&[Some("{\"a\":1}"), Some("{\"a\":2}"), Some("{\"a\":3}")], false);
    let mut spare = Vec::with_capacity(1000);
    let address = spare.as_ptr();
    let mut kept = Transformed { inputs: Some(vec![0, 2]), ..Transformed::default() };
    let own = targets(&[TableModel::Duplicate]);
    let built = build(&mut columns, &mut kept, &own, false, &mut spare);
    assert_eq!(bodies(&built), [(0, "{\"a\":1}\n{\"a\":3}\n")]);
    assert_eq!(built.segments[0].body.as_ptr(), address);
    assert_eq!((built.segments[0].index.deltas.as_slice(), built.kept), (&[FIRST_ROW, 2 | FIRST_ROW][..], 2));
    let mut columns = chunk(&[Some("{\"a\":1}"), Some(" ")], false);
    let mut kept = Transformed { inputs: Some(vec![0, 1]), ..Transformed::default() };
    let built = build(&mut columns, &mut kept, &own, false, &mut spare);
    assert_eq!((bodies(&built), codes(&built)), (vec![(0, "{\"a\":1}\n")], vec![(1, "empty")]));
}

#[test]
fn deletes_and_upserts_of_one_chunk_name_their_op() {
    let mut columns = chunk(&[Some("{\"id\":1}"), Some("{ }"), Some("{\"id\":3} \n")], false);
    columns.marks[1] |= MARK_DELETE;
    columns.marks[2] |= MARK_DELETE;
    let own = targets(&[TableModel::Primary]);
    let built = build(&mut columns, &mut Transformed::default(), &own, false, &mut Vec::new());
    assert_eq!(bodies(&built), [(0, "{\"id\":1,\"__op\":0}\n{ \"__op\":1}\n{\"id\":3,\"__op\":1}\n")]);
}

#[test]
fn rows_that_cannot_be_loaded_are_refused_one_by_one() {
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(100));
    let values = [Some("{\"a\":1}"), None, Some(""), Some(long.as_str()), Some("{\"a\":2}"), Some("[1]")];
    let mut columns = chunk(&values, true);
    columns.marks[5] |= MARK_DELETE;
    let primary = targets(&[TableModel::Primary]);
    let built = build(&mut columns, &mut Transformed::default(), &primary, true, &mut Vec::new());
    assert_eq!(bodies(&built), [(0, "{\"a\":1,\"__op\":0}\n{\"a\":2,\"__op\":0}\n")]);
    assert_eq!(codes(&built), [(1, "no_value"), (2, "empty"), (3, "oversize"), (5, "not_an_object")]);
    assert_eq!(built.kept, 2);
    let mut columns = chunk(&[None], true);
    let duplicate = targets(&[TableModel::Duplicate]);
    let built = build(&mut columns, &mut Transformed::default(), &duplicate, true, &mut Vec::new());
    assert_eq!(codes(&built), [(0, "delete")]);
}

#[test]
fn routed_rows_go_to_their_tables_in_order() {
    let mut columns = chunk(&[Some("{\"a\":1}"), Some("{\"a\":2}"), Some("{\"a\":3}")], false);
    let mut both = targets(&[TableModel::Duplicate, TableModel::Duplicate]);
    let routes = vec![Some(1), None, Some(1)];
    let mut transformed = Transformed { tables: Some(routes.clone()), ..Transformed::default() };
    let built = build(&mut columns, &mut transformed, &both, false, &mut Vec::new());
    assert_eq!(bodies(&built), [(1, "{\"a\":1}\n{\"a\":3}\n"), (0, "{\"a\":2}\n")]);
    both.own = None;
    let mut transformed = Transformed { tables: Some(routes), ..Transformed::default() };
    let built = build(&mut columns, &mut transformed, &both, false, &mut Vec::new());
    assert_eq!(codes(&built), [(1, "unrouted")]);
}

#[test]
fn a_record_that_was_refused_in_part_counts_once() {
    let reject = |input| RecordReject { input, code: "bad".into(), message: "no".into() };
    let mut columns = chunk(&[Some("{\"a\":1}"), Some("{\"a\":2}"), Some("{\"a\":3}")], false);
    // Record 0 has two rows, one of which a destination refuses. Of record 1 plugins refused a row, and
    // another is kept. Of record 2 two plugins refused a row each.
    let mut values = BytesColumn::default();
    [&b"{}"[..], b"", b"{}"].iter().for_each(|row| values.push(row));
    let mut transformed = Transformed {
        inputs: Some(vec![0, 0, 1]),
        marks: Some(vec![MARK_VALUE; 3]),
        values: Some(values),
        rejects: vec![(reject(1), "p".into()), (reject(2), "p".into()), (reject(2), "q".into())],
        ..Transformed::default()
    };
    let own = targets(&[TableModel::Duplicate]);
    let built = build(&mut columns, &mut transformed, &own, false, &mut Vec::new());
    assert_eq!(bodies(&built), [(0, "{}\n{}\n")]);
    assert_eq!(codes(&built), [(0, "empty")]);
    assert_eq!((built.kept, built.refused), (0, 3));
    assert_eq!(built.segments[0].index.deltas, [0, 1]);
}

#[test]
fn a_value_of_white_space_is_refused_and_not_sent_as_no_row() {
    let mut columns = chunk(&[Some("{\"a\":1}"), Some("  "), Some(" {\"a\":2}")], true);
    let own = targets(&[TableModel::Duplicate]);
    let built = build(&mut columns, &mut Transformed::default(), &own, true, &mut Vec::new());
    assert_eq!(bodies(&built), [(0, "{\"a\":1}\n{\"a\":2}\n")]);
    assert_eq!(codes(&built), [(1, "empty")]);
}

#[test]
fn a_delete_into_a_table_that_was_not_there_is_told_apart() {
    let mut targets = targets(&[TableModel::Primary]);
    targets.tables[0].model = Model::default();
    let mut deletes = chunk(&[Some(r#"{"id":1}"#), Some(r#"{"id":2}"#)], false);
    deletes.marks[1] |= MARK_DELETE;
    let built = build(&mut deletes, &mut Transformed::default(), &targets, false, &mut Vec::new());
    assert_eq!(built.unknown, Some(0));
    assert_eq!(built.rejects.iter().map(|reject| reject.input).collect::<Vec<_>>(), [1]);
    assert!(built.rejects[0].message.contains("was not there"), "{}", built.rejects[0].message);
    assert!(targets.unknown_model(0).story().contains("start the pipeline again"));
    let mut rows = chunk(&[Some(r#"{"id":1}"#)], false);
    let built = build(&mut rows, &mut Transformed::default(), &targets, false, &mut Vec::new());
    assert_eq!((built.unknown, built.rejects.len()), (None, 0));
    targets.tables[0].model = TableModel::Primary.into();
    let mut deletes = chunk(&[Some(r#"{"id":1}"#)], false);
    deletes.marks[0] |= MARK_DELETE;
    let built = build(&mut deletes, &mut Transformed::default(), &targets, false, &mut Vec::new());
    assert_eq!((built.unknown, built.rejects.len()), (None, 0));
}
