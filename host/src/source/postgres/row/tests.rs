use super::*;
use crate::source::postgres::copy_text::CopyText;
use crate::source::postgres::kind::Types;
use crate::source::postgres::pgoutput::{Message, Relation, RelationColumn};
use crate::source::postgres::table::{Column, Identity, Table, TableName};

const INT4: u32 = 23;
const TEXT: u32 = 25;
const FLOAT8: u32 = 701;
const DATE: u32 = 1082;

fn column(name: &str, type_oid: u32, key: Option<u16>) -> Column {
    Column {
        name: name.to_owned(),
        number: 7,
        type_oid,
        type_modifier: -1,
        type_name: format!("type {type_oid}"),
        not_null: key.is_some(),
        primary_key: key,
        in_identity: key.is_some(),
        may_be_toasted: type_oid == TEXT,
    }
}

fn table(identity: Identity, columns: &[(&str, u32, Option<u16>)]) -> Table {
    Table {
        oid: 1,
        name: TableName::new("public", "t"),
        identity,
        columns: columns.iter().map(|(name, oid, key)| column(name, *oid, *key)).collect(),
    }
}

/// A table `id, name, note` with key `id`.
fn notes(identity: Identity) -> Layout {
    let table = table(identity, &[("id", INT4, Some(0)), ("name", TEXT, None), ("note", TEXT, None)]);
    Layout::of_table(&table, &Types::new())
}

/// An update as the stream has it: `?` unchanged, `-` NULL, fields parted by a space.
fn update(old: Option<(char, &str)>, new: &str) -> Vec<u8> {
    let mut bytes = b"U\0\0\0\x01".to_vec();
    let old = old.map(|(mark, fields)| (mark, fields.to_owned()));
    for (mark, fields) in old.into_iter().chain([('N', new.to_owned())]) {
        bytes.push(mark as u8);
        let fields: Vec<&str> = fields.split(' ').collect();
        bytes.extend((fields.len() as u16).to_be_bytes());
        for field in fields {
            match field {
                "-" => bytes.push(b'n'),
                "?" => bytes.push(b'u'),
                text => {
                    bytes.push(b't');
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
    }
    bytes
}

/// Row, columns that it lacks, key, and the old key if it is another one.
type Appending = Result<(String, Vec<String>, String, Option<String>), RowError>;

fn append(layout: &Layout, sets: &mut ColumnSets, bytes: &[u8]) -> Appending {
    let Ok(Message::Update(update)) = Message::decode(bytes) else { panic!("no update") };
    let before = b"before".to_vec();
    let (mut row, mut key, mut replaced) = (before.clone(), Vec::new(), before.clone());
    let appended = layout.append_row(update.new, update.old.as_ref(), sets, &mut row);
    if appended.is_err() {
        assert_eq!(row, before, "a failure leaves nothing behind");
    }
    let appended = appended?;
    layout.append_key(update.new, update.old.as_ref(), &mut key)?;
    let another = layout.append_replaced_key(&update, &key, &mut replaced)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    assert!(another || replaced == before);
    let missing = appended.missing.map(|id| sets.missing(id).to_vec()).unwrap_or_default();
    let missing = missing.iter().map(|place| layout.columns()[usize::from(*place)].name.clone()).collect();
    Ok((text(&row[6..]), missing, text(&key), another.then(|| text(&replaced[6..]))))
}

fn check(
    identity: Identity,
    old: Option<(char, &str)>,
    new: &str,
    row: &str,
    missing: &[&str],
    old_key: Option<&str>,
) {
    let (told, lacking, key, replaced) =
        append(&notes(identity), &mut ColumnSets::new(), &update(old, new)).expect("a row");
    assert_eq!((told.as_str(), key.as_str()), (row, r#"{"id":1}"#));
    assert_eq!(lacking, missing);
    assert_eq!(replaced.as_deref(), old_key);
}

#[test]
fn a_row_has_what_is_told_of_it() {
    let whole = r#"{"id":1,"name":"Ann","note":null}"#;
    check(Identity::Default, None, "1 Ann -", whole, &[], None);
    check(Identity::Default, None, "1 ? -", r#"{"id":1,"note":null}"#, &["name"], None);
    check(Identity::Default, None, "1 ? ?", r#"{"id":1}"#, &["name", "note"], None);
    // NULL in the key's tuple says nothing of the other columns.
    check(
        Identity::Default,
        Some(('K', "2 - -")),
        "1 Ann ?",
        r#"{"id":1,"name":"Ann"}"#,
        &["note"],
        Some(r#"{"id":2}"#),
    );
    // The key's tuple may come although the key is the same: it was stored out of line.
    check(Identity::Default, Some(('K', "1 - -")), "? Ann -", whole, &[], None);
    check(
        Identity::Full,
        Some(('O', "1 Bob long")),
        "1 Ann ?",
        r#"{"id":1,"name":"Ann","note":"long"}"#,
        &[],
        None,
    );
    check(Identity::Full, Some(('O', "2 Ann -")), "1 Ann ?", whole, &[], Some(r#"{"id":2}"#));
}

#[test]
fn the_first_column_may_be_the_one_that_is_left_out() {
    let table =
        table(Identity::Default, &[("note", TEXT, None), ("id", INT4, Some(0)), ("name", TEXT, None)]);
    let layout = Layout::of_table(&table, &Types::new());
    let (row, missing, key, _) =
        append(&layout, &mut ColumnSets::new(), &update(None, "? 1 Ann")).expect("a row");
    assert_eq!((row.as_str(), key.as_str()), (r#"{"id":1,"name":"Ann"}"#, r#"{"id":1}"#));
    assert_eq!(missing, ["note"]);
}

#[test]
fn sets_of_columns_are_told_apart_and_kept_once() {
    let (layout, mut sets) = (notes(Identity::Default), ColumnSets::new());
    let mut ids = Vec::new();
    for fields in ["1 a b", "1 ? b", "1 a ?", "2 ? b", "1 ? ?"] {
        let bytes = update(None, fields);
        let Ok(Message::Update(update)) = Message::decode(&bytes) else { panic!("no update") };
        ids.push(layout.append_row(update.new, None, &mut sets, &mut Vec::new()).expect("a row").missing);
    }
    assert_eq!(ids[0], None);
    assert_eq!(ids[1], ids[3]);
    assert_eq!(sets.len(), 3);
    let present = |id: Option<ColumnSetId>| -> Vec<&str> {
        layout.present(sets.missing(id.expect("a partial row"))).collect()
    };
    assert_eq!(present(ids[1]), ["id", "note"]);
    assert_eq!(present(ids[2]), ["id", "name"]);
    assert_eq!(present(ids[4]), ["id"]);
}

#[test]
fn too_many_sets_of_columns_end_it() {
    let columns: Vec<(String, u32)> = (0..13).map(|place| (format!("c{place}"), TEXT)).collect();
    let columns: Vec<(&str, u32, Option<u16>)> =
        columns.iter().map(|(name, oid)| (name.as_str(), *oid, None)).collect();
    let layout = Layout::of_table(&table(Identity::Default, &columns), &Types::new());
    let (mut sets, mut out) = (ColumnSets::new(), Vec::new());
    for set in 1..=column_sets::COLUMN_SETS_MAX + 1 {
        let fields: Vec<&str> = (0..13).map(|bit| if set >> bit & 1 == 1 { "?" } else { "x" }).collect();
        let bytes = update(None, &fields.join(" "));
        let Ok(Message::Update(update)) = Message::decode(&bytes) else { panic!("no update") };
        out.clear();
        let appended = layout.append_row(update.new, None, &mut sets, &mut out);
        if set <= column_sets::COLUMN_SETS_MAX {
            assert!(appended.is_ok_and(|appended| appended.missing.is_some()));
        } else {
            assert_eq!((appended, out.len()), (Err(RowError::ColumnSets), 0));
        }
    }
}

#[test]
fn what_is_no_row_is_refused_and_says_why() {
    let check = |layout: &Layout, old: Option<(char, &str)>, new: &str, expected: &str| {
        let error = append(layout, &mut ColumnSets::new(), &update(old, new)).expect_err("no row");
        assert_eq!(error.to_string(), expected);
    };
    let layout = notes(Identity::Default);
    check(&layout, None, "1 Ann", "the row has 2 columns, the table 3");
    check(&layout, None, "1 Ann - -", "the row has 4 columns, the table 3");
    check(&layout, Some(('K', "1")), "1 Ann -", "the row has 1 columns, the table 3");
    check(&layout, None, "- Ann -", "key column id is NULL");
    check(&layout, None, "? Ann -", "key column id is stored out of line and not told");
    check(&layout, None, "x Ann -", "column id");
    let far = table(Identity::Default, &[("day", DATE, Some(0)), ("f", FLOAT8, None)]);
    let far = Layout::of_table(&far, &Types::new());
    check(
        &far,
        None,
        "infinity 1",
        "key column day has a value that StarRocks cannot hold (infinity or a far year)",
    );
    // The identity is another column than the key.
    let other = layout.keyed_by(&["name"]).expect("a column");
    check(
        &other,
        Some(('K', "1 - -")),
        "1 Ann -",
        "key column name is not in the table's replica identity, so its old value is not told",
    );
}

#[test]
fn values_that_became_null_are_counted() {
    let layout = Layout::of_table(
        &table(Identity::Default, &[("id", INT4, Some(0)), ("f", FLOAT8, None), ("d", DATE, None)]),
        &Types::new(),
    );
    let bytes = update(None, "1 NaN infinity");
    let Ok(Message::Update(update)) = Message::decode(&bytes) else { panic!("no update") };
    let mut out = Vec::new();
    let appended = layout.append_row(update.new, None, &mut ColumnSets::new(), &mut out).expect("a row");
    assert_eq!((appended.nulled, appended.missing), (2, None));
    assert_eq!(out, br#"{"id":1,"f":null,"d":null}"#);
}

#[test]
fn copy_and_stream_give_equal_rows_and_keys() {
    let layout = Layout::of_table(
        &table(Identity::Default, &[("b", TEXT, Some(1)), ("a\"\n", INT4, Some(0)), ("c", 1007, None)]),
        &Types::new(),
    );
    let (mut row, mut key, mut copied, mut copied_key) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let bytes = update(None, "x\"\t\\y 7 {1,NULL}");
    let Ok(Message::Update(update)) = Message::decode(&bytes) else { panic!("no update") };
    let streamed = layout.append_row(update.new, None, &mut ColumnSets::new(), &mut row).expect("a row");
    layout.append_key(update.new, None, &mut key).expect("a key");
    let mut copy = CopyText::new();
    let line = copy.row(b"x\"\\t\\\\y\t7\t{1,NULL}");
    assert_eq!(layout.append_copied(&line, &mut copied).expect("a row"), streamed);
    layout.append_copied_key(&line, &mut copied_key).expect("a key");
    let text = String::from_utf8(row).expect("UTF-8");
    assert_eq!(text, r#"{"b":"x\"\t\\y","a\"\n":7,"c":[1,null]}"#);
    assert_eq!(text.as_bytes(), copied);
    // In the order of the table, not of the key.
    assert_eq!(String::from_utf8(key.clone()).expect("UTF-8"), r#"{"b":"x\"\t\\y","a\"\n":7}"#);
    assert_eq!(key, copied_key);
}

fn deleted(layout: &Layout, mark: char, fields: &str) -> String {
    let bytes = update(Some((mark, fields)), fields);
    let Ok(Message::Update(update)) = Message::decode(&bytes) else { panic!("no update") };
    let mut out = Vec::new();
    layout.append_old_key(&update.old.expect("an old row"), &mut out).expect("a key");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn a_delete_has_the_key_and_nothing_else() {
    assert_eq!(deleted(&notes(Identity::Default), 'K', "1 - -"), r#"{"id":1}"#);
    assert_eq!(deleted(&notes(Identity::Full), 'O', "1 Ann -"), r#"{"id":1}"#);
    let keyed = notes(Identity::Full).keyed_by(&["name"]).expect("a column");
    assert_eq!(deleted(&keyed, 'O', "1 Ann -"), r#"{"name":"Ann"}"#);
    // Without a key there is what is told.
    let keyless = notes(Identity::Full).keyed_by(&[]).expect("no column");
    assert_eq!(deleted(&keyless, 'O', "1 Ann -"), r#"{"id":1,"name":"Ann","note":null}"#);
    let keyless = notes(Identity::Default).keyed_by(&[]).expect("no column");
    assert_eq!(deleted(&keyless, 'K', "1 - -"), r#"{"id":1}"#);
    let error = notes(Identity::Full).keyed_by(&["nobody"]).expect_err("no such column");
    assert_eq!(error.to_string(), "public.t has no column nobody");
}

fn relation<'a>(identity: Identity, columns: &[(&'a str, u32, bool)]) -> Relation<'a> {
    let column = |(name, type_oid, in_identity): &(&'a str, u32, bool)| RelationColumn {
        in_identity: *in_identity,
        name,
        type_oid: *type_oid,
        type_modifier: -1,
    };
    Relation { id: 1, schema: "public", name: "t", identity, columns: columns.iter().map(column).collect() }
}

#[test]
fn the_stream_and_the_catalogue_are_joined_by_name() {
    // `gone` is in the stream only, `fresh` in the catalogue only, `name` has another type by now.
    let relation = relation(
        Identity::Default,
        &[("gone", TEXT, false), ("b", INT4, true), ("a", INT4, true), ("name", INT4, false)],
    );
    let catalogue = table(
        Identity::Default,
        &[("a", INT4, Some(0)), ("b", INT4, Some(1)), ("name", TEXT, None), ("fresh", TEXT, None)],
    );
    let told = table_of(&relation, Some(&catalogue));
    let names: Vec<(&str, i16, &str)> = told
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.number, column.type_name.as_str()))
        .collect();
    assert_eq!(names, [("gone", 0, ""), ("b", 7, "type 23"), ("a", 7, "type 23"), ("name", 7, "")]);
    let key: Vec<&str> = key_columns(&told).iter().map(|column| column.name.as_str()).collect();
    assert_eq!(key, ["a", "b"]);
    let alone = table_of(&relation, None);
    let key: Vec<&str> = key_columns(&alone).iter().map(|column| column.name.as_str()).collect();
    assert_eq!(key, ["b", "a"]);
    assert_eq!(Layout::of(&relation, None, &Types::new()).columns().len(), 4);
}

#[test]
fn the_key_is_the_primary_key_if_the_identity_tells_it() {
    let names = |table: &Table| -> Vec<String> {
        key_columns(table).iter().map(|column| column.name.clone()).collect()
    };
    let columns = [("b", INT4, Some(1)), ("a", INT4, Some(0)), ("k", INT4, None)];
    for identity in [Identity::Default, Identity::Full, Identity::Index, Identity::Nothing] {
        assert_eq!(names(&table(identity, &columns)), ["a", "b"]);
    }
    let mut by_index = table(Identity::Index, &columns);
    by_index.columns[0].in_identity = false;
    by_index.columns[2].in_identity = true;
    assert_eq!(names(&by_index), ["a", "k"]);
    assert!(names(&table(Identity::Full, &[("a", INT4, None)])).is_empty());
}
