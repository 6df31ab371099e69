use super::*;
use crate::fault::FaultKind;
use crate::sink::starrocks::query;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::pgoutput::Message;
use crate::source::postgres::table::Identity;
use crate::source::postgres::warehouse_table::Remembered;

fn column(name: &str, number: i16) -> Column {
    Column {
        name: name.to_owned(),
        number,
        type_oid: if number == 1 { 20 } else { 25 },
        type_modifier: -1,
        type_name: if number == 1 { "bigint" } else { "text" }.to_owned(),
        not_null: number == 1,
        primary_key: (number == 1).then_some(0),
        in_identity: number == 1,
        may_be_toasted: number != 1,
    }
}

/// `t (id, body, note)`, all of which StarRocks has.
fn followed() -> Followed {
    let columns = vec![column("id", 1), column("body", 2), column("note", 3)];
    let name = TableName::new("public", "t");
    let table = Table { oid: 7, name, identity: Identity::Default, columns };
    let there = |column: &Column| query::Column {
        name: column.name.clone(),
        sql_type: "varchar(1048576)".to_owned(),
        nullable: column.number != 1,
        key: column.number == 1,
    };
    Followed {
        remembered: Remembered::of(&table),
        warehouse: table.columns.iter().map(there).collect(),
        table,
        destination: 0,
        warehouse_table: "t".to_owned(),
        key: vec!["id".to_owned()],
        copied_upto: Lsn(0),
    }
}

fn source(name: &str, columns: &[(i16, &str)]) -> Source {
    let columns = columns.iter().map(|(number, name)| (*number, (*name).to_owned())).collect();
    Source { name: TableName::new("public", name), columns }
}

fn layout(followed: &Followed) -> Layout {
    Layout::of_table(&followed.table, &Types::new())
}

/// An update that gives the key the value `it's 9` and leaves the rest alone.
fn asked(source: &Source, followed: &Followed) -> String {
    let bytes = b"U\0\0\0\x07N\0\x03t\0\0\0\x06it's 9uu";
    let Ok(Message::Update(update)) = Message::decode(bytes) else { panic!("it is an update") };
    let layout = layout(followed);
    let names = names_now(source, followed, &layout).expect("all that is needed is there");
    statement(source, &names, &layout, &update)
}

#[test]
fn columns_and_table_are_asked_for_by_the_names_that_they_have_now() {
    let followed = followed();
    let as_it_was = source("t", &[(1, "id"), (2, "body"), (3, "note")]);
    let expected = r#"SELECT "id", "body", "note" FROM "public"."t" WHERE "id" = 'it''s 9'"#;
    assert_eq!(asked(&as_it_was, &followed), expected);
    // `body` is another column now.
    let renamed = source("Other", &[(1, "key"), (2, "text"), (3, "note"), (4, "body")]);
    let expected = r#"SELECT "key", "text", "note" FROM "public"."Other" WHERE "key" = 'it''s 9'"#;
    assert_eq!(asked(&renamed, &followed), expected);
}

#[test]
fn a_column_that_is_gone_here_and_there_is_left_out() {
    let without_note = source("t", &[(1, "id"), (2, "body")]);
    let expected = r#"SELECT "id", "body" FROM "public"."t" WHERE "id" = 'it''s 9'"#;
    let mut dropped = followed();
    dropped.warehouse.retain(|there| there.name != "note");
    assert_eq!(asked(&without_note, &dropped), expected);
    // StarRocks has a column of that name which nothing of the source feeds: the table was copied anew since.
    let mut own = followed();
    own.remembered.retain(|known| known.name != "note");
    assert_eq!(asked(&without_note, &own), expected);
}

#[test]
fn a_column_that_only_starrocks_still_has_halts_with_both_tables() {
    let followed = followed();
    let check = |source: &Source, gone: &str, words: &[&str]| {
        let layout = layout(&followed);
        let column = names_now(source, &followed, &layout).expect_err("it is needed");
        assert_eq!(column.name, gone);
        let fault = lost(column, source, &followed, "shop");
        assert_eq!(fault.kind, FaultKind::Halt);
        for word in words {
            assert!(fault.story().contains(word), "{word:?} is not in {}", fault.story());
        }
    };
    let words = [
        "public.t was changed, and its note, which such a change leaves out, cannot be read back",
        "ALTER TABLE `shop`.`t` DROP COLUMN `note`; or, to keep its values, ALTER TABLE `shop`.`t` RENAME COLUMN `note` TO \
         `note_dropped`; or copy the table anew: tidemill resync <file> public.t",
        "text text",
        "-                       note varchar(1048576)",
    ];
    check(&source("t", &[(1, "id"), (2, "text")]), "note", &words);
    check(
        &source("t", &[(2, "body"), (3, "note")]),
        "id",
        &["make table t anew with the source's key, and copy the table anew"],
    );
}
