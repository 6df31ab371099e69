use super::*;
use crate::sink::starrocks::query;
use crate::source::postgres::kind::TypeInfo;

/// `numeric(precision, scale)` as `atttypmod`.
fn numeric(precision: i32, scale: i32) -> i32 {
    (precision << 16 | scale & 0x7ff) + 4
}

fn column(name: &str, type_oid: u32, type_modifier: i32) -> Column {
    Column {
        name: name.to_owned(),
        number: 0,
        type_oid,
        type_modifier,
        type_name: String::new(),
        not_null: false,
        primary_key: None,
        in_identity: false,
        may_be_toasted: false,
    }
}

fn key(name: &str, type_oid: u32, type_modifier: i32, place: u16) -> Column {
    Column {
        primary_key: Some(place),
        in_identity: true,
        not_null: true,
        ..column(name, type_oid, type_modifier)
    }
}

/// A table with numbered columns.
fn table(columns: Vec<Column>) -> Table {
    let numbered = (1..).zip(columns).map(|(number, column)| Column { number, ..column });
    let name = TableName::new("public", "orders");
    Table { oid: 1, name, identity: Identity::Default, columns: numbered.collect() }
}

fn types() -> Types {
    let mut types = Types::new();
    let info = |oid, name: &str, kind, base, base_modifier| TypeInfo {
        oid,
        name: name.to_owned(),
        schema: "public".to_owned(),
        kind,
        category: 'U',
        element: 0,
        base,
        base_modifier,
        delimiter: ',',
    };
    types.add(info(20_001, "mood", 'e', 0, -1));
    types.add(info(20_002, "price", 'd', 1700, numeric(12, 3)));
    types.add(info(20_003, "vector", 'b', 0, -1));
    types.add(info(20_004, "hstore", 'b', 0, -1));
    types
}

#[test]
fn each_type_has_its_column_type_in_and_out_of_the_key() {
    let check = |oid: u32, modifier: i32, value: &str, in_key: Option<&str>| {
        let column = column("c", oid, modifier);
        let written = |in_key| column_type(&column, &types(), in_key).map(|it| it.to_string());
        assert_eq!(written(false).as_deref(), Ok(value), "{oid} {modifier}");
        assert_eq!(written(true).ok().as_deref(), in_key, "{oid} {modifier}");
    };
    let text = "VARCHAR(1048576)";
    let key_text = Some("VARCHAR(128)");
    check(16, -1, "BOOLEAN", Some("BOOLEAN"));
    check(21, -1, "SMALLINT", Some("SMALLINT"));
    check(23, -1, "INT", Some("INT"));
    check(20, -1, "BIGINT", Some("BIGINT"));
    check(26, -1, "BIGINT", Some("BIGINT"));
    check(700, -1, "FLOAT", None);
    check(701, -1, "DOUBLE", None);
    check(1700, numeric(10, 2), "DECIMAL(10, 2)", Some("VARCHAR(13)"));
    check(1700, numeric(38, 0), "DECIMAL(38, 0)", Some("VARCHAR(41)"));
    check(1700, numeric(39, 0), text, None);
    check(1700, -1, text, None);
    // Thousands only, and thousandths only.
    check(1700, numeric(2, -3), "DECIMAL(5, 0)", Some("VARCHAR(8)"));
    check(1700, numeric(3, 5), "DECIMAL(5, 5)", Some("VARCHAR(8)"));
    check(1700, numeric(38, -3), text, None);
    check(20_002, -1, "DECIMAL(12, 3)", Some("VARCHAR(15)"));
    check(790, -1, "DECIMAL(19, 2)", Some("VARCHAR(22)"));
    check(1043, 10 + 4, "VARCHAR(40)", Some("VARCHAR(40)"));
    check(1042, 1 + 4, "VARCHAR(4)", Some("VARCHAR(4)"));
    check(1043, 10_485_760 + 4, text, key_text);
    check(1043, -1, text, key_text);
    check(25, -1, text, key_text);
    check(19, -1, "VARCHAR(64)", Some("VARCHAR(64)"));
    check(2950, -1, "VARCHAR(36)", Some("VARCHAR(36)"));
    check(17, -1, text, key_text);
    check(1082, -1, "DATE", Some("DATE"));
    check(1114, -1, "DATETIME", Some("DATETIME"));
    check(1184, 3, "DATETIME", Some("DATETIME"));
    check(1083, -1, "VARCHAR(16)", Some("VARCHAR(16)"));
    check(1186, -1, "VARCHAR(64)", Some("VARCHAR(64)"));
    check(1560, 8, "VARCHAR(8)", Some("VARCHAR(8)"));
    check(1562, -1, text, key_text);
    check(3802, -1, "JSON", None);
    check(1007, -1, "JSON", None);
    check(20_001, -1, "VARCHAR(255)", Some("VARCHAR(255)"));
    check(20_003, -1, "ARRAY<FLOAT>", None);
    check(20_004, -1, text, key_text);
    check(99_999, -1, text, key_text);
}

#[test]
fn a_statement_has_the_key_first_and_everything_else_nullable() {
    let table = table(vec![
        column("note", 25, -1),
        key("line", 21, -1, 1),
        Column { not_null: true, ..column("at", 1184, -1) },
        key("order`id", 20, -1, 0),
    ]);
    assert_eq!(
        create_table(&table, &Types::new(), "shop", "orders").as_deref(),
        Ok(
            "CREATE TABLE IF NOT EXISTS `shop`.`orders` (`order``id` BIGINT NOT NULL, `line` SMALLINT NOT NULL, \
            `note` VARCHAR(1048576) NULL, `at` DATETIME NULL) PRIMARY KEY(`order``id`, `line`) \
            DISTRIBUTED BY HASH(`order``id`, `line`)"
        )
    );
}

#[test]
fn all_reasons_against_a_table_are_told_at_once() {
    let table = table(vec![
        key("f", 701, -1, 0),
        key("n", 1700, -1, 1),
        column("Name", 25, -1),
        column("name", 25, -1),
        column("__OP", 25, -1),
    ]);
    let refusals = create_table(&table, &Types::new(), "shop", "orders").expect_err("no table");
    let what: Vec<&str> = refusals.iter().map(|refusal| refusal.what.as_str()).collect();
    assert_eq!(
        what,
        [
            "columns Name and name of public.orders are one name to StarRocks, which ignores case",
            "column __OP of public.orders has a name that StarRocks reserves",
            "key column f of public.orders is of type 701: StarRocks has no floating-point keys",
            "key column n of public.orders is of type 1700: numeric without a precision, or of more than 38 digits, \
             has no exact key type in StarRocks",
        ]
    );
    assert!(
        refusals[0].hint.starts_with("ALTER TABLE \"public\".\"orders\" RENAME COLUMN \"name\" TO <name>")
    );
}

#[test]
fn the_key_has_to_be_in_the_replica_identity() {
    let check = |table: &Table, key: &[&str], expected: Result<(), (&str, &str)>| {
        let told = check_key(table, key).map_err(|refusal| (refusal.what, refusal.hint));
        let expected = expected.map_err(|(what, hint)| (what.to_owned(), hint.to_owned()));
        assert_eq!(told, expected, "{key:?} {:?}", table.identity);
    };
    let with = |identity| Table {
        identity,
        ..table(vec![key("id", 23, -1, 0), key("line", 23, -1, 1), column("k", 23, -1)])
    };
    check(&with(Identity::Default), &["id"], Ok(()));
    check(&with(Identity::Default), &["line", "id"], Ok(()));
    check(&with(Identity::Full), &["k"], Ok(()));
    let full = "ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL";
    let or = "; or create the StarRocks table with a key of the identity's columns";
    check(
        &with(Identity::Default),
        &["id", "k"],
        Err((
            "StarRocks' key column k is not in the replica identity of public.orders (id, line), so a change of it is \
             not told",
            &format!("{full}{or}"),
        )),
    );
    let mut by_index = with(Identity::Index);
    by_index.columns[0].in_identity = false;
    by_index.columns[1].in_identity = false;
    by_index.columns[2].in_identity = true;
    check(&by_index, &["k"], Ok(()));
    let default = "ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY DEFAULT";
    check(
        &by_index,
        &["id"],
        Err((
            "StarRocks' key column id is not in the replica identity of public.orders (k), so a change of it is not told",
            &format!("{default}{or}"),
        )),
    );
    check(
        &with(Identity::Nothing),
        &["id"],
        Err(("public.orders has REPLICA IDENTITY NOTHING, so its updates and deletes fail", default)),
    );
    let lacking = "create the StarRocks table with a key of columns that the source has";
    check(
        &with(Identity::Full),
        &["x"],
        Err(("StarRocks' key column x is no published column of public.orders", lacking)),
    );
    check(
        &with(Identity::Full),
        &[],
        Err((
            "public.orders has no key by which its rows could be told apart",
            "ALTER TABLE \"public\".\"orders\" ADD PRIMARY KEY (<columns>); or leave the table out",
        )),
    );
}

/// A column as `DESC` gives it: a star marks the key, an exclamation mark NOT NULL.
fn there(name: &str, sql_type: &str) -> query::Column {
    query::Column {
        name: name.trim_end_matches(['*', '!']).to_owned(),
        sql_type: sql_type.to_owned(),
        nullable: !name.ends_with(['*', '!']),
        key: name.ends_with('*'),
    }
}

fn compare(table: &Table, warehouse: &[(&str, &str)], before: Option<&Table>) -> Difference {
    let warehouse: Vec<query::Column> =
        warehouse.iter().map(|(name, sql_type)| there(name, sql_type)).collect();
    let before = before.map(Remembered::of);
    let types = types();
    let (database, name) = ("shop", "orders");
    Comparison { table, types: &types, database, name, warehouse: &warehouse, before: before.as_deref() }
        .difference()
}

fn told(difference: &Difference) -> Vec<(&str, &str)> {
    difference.incompatible.iter().map(|it| (it.what.as_str(), it.hint.as_str())).collect()
}

#[test]
fn a_table_as_it_was_created_has_no_difference() {
    // Types in the two spellings that StarRocks and the sandbox have.
    let table = table(vec![
        key("id", 20, -1, 0),
        column("n", 1700, numeric(10, 2)),
        column("b", 16, -1),
        column("v", 20_003, -1),
    ]);
    for warehouse in [
        [("id*", "bigint"), ("n", "decimal64(10, 2)"), ("b", "boolean"), ("v", "array<float>")],
        [("id*", "bigint(20)"), ("n", "decimal(10, 2)"), ("b", "tinyint(1)"), ("v", "ARRAY<FLOAT>")],
    ] {
        let difference = compare(&table, &warehouse, Some(&table));
        assert_eq!((difference.added, difference.incompatible, difference.unfed), (vec![], vec![], vec![]));
    }
}

#[test]
fn what_the_source_has_more_is_added_and_what_it_never_had_is_left_alone() {
    let table = table(vec![key("id", 20, -1, 0), column("fresh", 1043, 14)]);
    let difference = compare(&table, &[("id*", "bigint"), ("loaded_at", "datetime")], None);
    let added = Added {
        column: "fresh".to_owned(),
        sql: "ALTER TABLE `shop`.`orders` ADD COLUMN `fresh` VARCHAR(40) NULL".to_owned(),
    };
    assert_eq!((difference.added, difference.unfed), (vec![added], vec!["loaded_at".to_owned()]));
    assert!(difference.incompatible.is_empty());
    assert_eq!(
        difference.side_by_side.lines().collect::<Vec<_>>(),
        [
            "public.orders               shop.orders",
            "id of type 20 key not null  id bigint key not null",
            "fresh of type 1043          -",
            "-                           loaded_at datetime",
        ]
    );
}

#[test]
fn a_dropped_a_renamed_and_a_retyped_column_are_told_by_their_numbers() {
    let before = table(vec![
        key("id", 20, -1, 0),
        column("old_name", 25, -1),
        column("gone", 25, -1),
        column("size", 23, -1),
        column("code", 1043, 5 + 4),
        column("again", 25, -1),
    ]);
    let mut after = before.clone();
    after.columns[1].name = "new_name".to_owned();
    after.columns[3].type_oid = 20;
    after.columns[4].type_modifier = 50 + 4;
    after.columns[5].number = 9;
    after.columns.remove(2);
    let text = "varchar(1048576)";
    let warehouse = [
        ("id*", "bigint"),
        ("old_name", text),
        ("gone", text),
        ("size", "int"),
        ("code", "varchar(20)"),
        ("again", text),
    ];
    let difference = compare(&after, &warehouse, Some(&before));
    assert_eq!(
        told(&difference),
        [
            (
                "column old_name of public.orders is now called new_name",
                "ALTER TABLE `shop`.`orders` RENAME COLUMN `old_name` TO `new_name`"
            ),
            (
                "column size of public.orders is now of type 20, which does not go into StarRocks' int: it holds smaller \
                 numbers",
                "ALTER TABLE `shop`.`orders` MODIFY COLUMN `size` BIGINT NULL"
            ),
            (
                "column code of public.orders is now of type 1043, which does not go into StarRocks' varchar(20): it holds \
                 shorter text",
                "ALTER TABLE `shop`.`orders` MODIFY COLUMN `code` VARCHAR(200) NULL"
            ),
            (
                "column again of public.orders was dropped and added anew; StarRocks still has the old one's values",
                "ALTER TABLE `shop`.`orders` DROP COLUMN `again`"
            ),
            (
                "column gone of public.orders was dropped",
                "ALTER TABLE `shop`.`orders` DROP COLUMN `gone`; or, to keep its values, ALTER TABLE `shop`.`orders` \
                 RENAME COLUMN `gone` TO `gone_dropped`"
            ),
        ]
    );
    assert!(difference.added.is_empty() && difference.unfed.is_empty());
    // Nobody remembers: a new name is a new column, and smaller columns are the owner's choice.
    let difference = compare(&after, &warehouse, None);
    assert_eq!(told(&difference), []);
    assert_eq!(difference.added.len(), 1);
    assert_eq!(difference.unfed, ["old_name", "gone"]);
    // As the hints say.
    let mended = [
        ("id*", "bigint"),
        ("new_name", text),
        ("gone_dropped", text),
        ("size", "bigint"),
        ("code", "varchar(200)"),
    ];
    let difference = compare(&after, &mended, Some(&before));
    assert_eq!(told(&difference), []);
    assert_eq!(difference.added.len(), 1);
    assert_eq!(difference.unfed, ["gone_dropped"]);
}

#[test]
fn names_that_changed_places_are_not_loaded_into_each_other() {
    let before = table(vec![key("id", 20, -1, 0), column("a", 25, -1), column("b", 25, -1)]);
    let mut after = before.clone();
    after.columns[1].name = "b".to_owned();
    after.columns[2].name = "a".to_owned();
    let text = "varchar(1048576)";
    let difference = compare(&after, &[("id*", "bigint"), ("a", text), ("b", text)], Some(&before));
    assert_eq!(difference.incompatible.len(), 2);
    assert!(difference.incompatible.iter().all(|it| it.hint.contains("tidemill resync")));
}

#[test]
fn what_cannot_be_loaded_is_told_without_any_memory() {
    let table = table(vec![
        key("id", 20, -1, 0),
        column("Name", 25, -1),
        column("at", 1114, -1),
        column("doc", 3802, -1),
        column("flag", 16, -1),
        column("strict", 25, -1),
    ]);
    let text = "varchar(1048576)";
    let warehouse = [
        ("id*", "bigint"),
        ("region*", "int"),
        ("name", text),
        ("at", "bigint"),
        ("doc", "array<int>"),
        ("flag", "int"),
        ("strict!", text),
        ("filled!", "int"),
    ];
    let difference = compare(&table, &warehouse, None);
    let what: Vec<&str> = difference.incompatible.iter().map(|it| it.what.as_str()).collect();
    assert_eq!(
        what,
        [
            "column Name of public.orders is spelt name in StarRocks",
            "column at of public.orders is of type 1114, which does not go into StarRocks' bigint: it holds whole numbers",
            "column flag of public.orders is of type 16, which does not go into StarRocks' int: it holds whole numbers",
            "column strict is NOT NULL in StarRocks, so a delete, which tells the key only, would be refused",
            "StarRocks' key column region is not in public.orders",
            "column filled is NOT NULL in StarRocks and nothing feeds it",
        ]
    );
    assert_eq!(difference.incompatible[0].hint, "ALTER TABLE `shop`.`orders` RENAME COLUMN `name` TO `Name`");
    assert_eq!(
        difference.incompatible[3].hint,
        "ALTER TABLE `shop`.`orders` MODIFY COLUMN `strict` VARCHAR(1048576) NULL"
    );
}

#[test]
fn a_retyped_key_column_needs_a_new_table() {
    let before = table(vec![key("id", 23, -1, 0)]);
    let mut after = before.clone();
    after.columns[0].type_oid = 20;
    let difference = compare(&after, &[("id*", "int")], Some(&before));
    assert!(difference.incompatible[0].hint.contains("tidemill resync <file> public.orders"));
    // StarRocks' key may be wide enough already.
    assert!(compare(&after, &[("id*", "bigint")], Some(&before)).incompatible.is_empty());
}
