use super::*;
use crate::source::postgres::kind::Types;
use crate::source::postgres::table::{Identity, TableName};

const TEXT: u32 = 25;
const INT: u32 = 23;
const BIGINT: u32 = 20;

/// `name` `number` `type`.
fn columns(columns: &[(&str, i16, u32)]) -> Vec<Remembered> {
    let column = |(name, number, type_oid): &(&str, i16, u32)| Remembered {
        name: (*name).to_owned(),
        number: *number,
        type_oid: *type_oid,
        type_modifier: -1,
    };
    columns.iter().map(column).collect()
}

/// The table of these columns, of which the first is the key; the stream tells no numbers.
fn told(columns: &[(&str, u32)]) -> Table {
    let column = |(place, (name, type_oid)): (usize, &(&str, u32))| Column {
        name: (*name).to_owned(),
        number: 0,
        type_oid: *type_oid,
        type_modifier: -1,
        type_name: String::new(),
        not_null: place == 0,
        primary_key: (place == 0).then_some(0),
        in_identity: place == 0,
        may_be_toasted: true,
    };
    Table {
        oid: 1,
        name: TableName::new("public", "t"),
        identity: Identity::Default,
        columns: columns.iter().enumerate().map(column).collect(),
    }
}

/// StarRocks' columns, of which the first is the key; all others are wide strings, or of the type behind a colon.
fn warehouse(names: &[&str]) -> Vec<WarehouseColumn> {
    let column = |(place, text): (usize, &&str)| {
        let (name, sql_type) = text.split_once(':').unwrap_or((text, "varchar(1048576)"));
        WarehouseColumn {
            name: name.to_owned(),
            sql_type: if place == 0 { "bigint".to_owned() } else { sql_type.to_owned() },
            nullable: place > 0,
            key: place == 0,
        }
    };
    names.iter().enumerate().map(column).collect()
}

const ID: (&str, i16, u32) = ("id", 1, BIGINT);
const TOLD_ID: (&str, u32) = ("id", BIGINT);

/// What the stream told, what is remembered and is there, and StarRocks' columns.
struct Case<'a> {
    told: &'a [(&'a str, u32)],
    remembered: &'a [(&'a str, i16, u32)],
    now: &'a [(&'a str, i16, u32)],
    warehouse: &'a [&'a str],
}

impl Case<'_> {
    fn reading(&self) -> Reading {
        let (remembered, now) = (columns(self.remembered), columns(self.now));
        read(told(self.told), &remembered, &now, &warehouse(self.warehouse))
    }

    /// Names under which rows are loaded, and what halts.
    fn check(&self, loaded: &[&str], halts: &[&str], followed: &[(&str, i16, u32)]) {
        let reading = self.reading();
        let names: Vec<&str> = reading.table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, loaded);
        let (types, warehouse) = (Types::new(), warehouse(self.warehouse));
        let comparison = Comparison {
            table: &reading.table,
            types: &types,
            database: "shop",
            name: "t",
            warehouse: &warehouse,
            before: Some(&reading.before),
        };
        let difference = reading.difference(comparison);
        let what: Vec<&str> = difference.incompatible.iter().map(|misfit| misfit.what.as_str()).collect();
        assert_eq!(what, halts);
        assert_eq!(reading.followed, columns(followed));
    }
}

#[test]
fn a_table_as_it_was_stays_so() {
    let remembered = [ID, ("a", 2, TEXT)];
    Case {
        told: &[TOLD_ID, ("a", TEXT)],
        remembered: &remembered,
        now: &remembered,
        warehouse: &["id", "a"],
    }
    .check(&["id", "a"], &[], &remembered);
}

#[test]
fn a_column_that_was_renamed_while_nobody_looked_halts_where_the_stream_tells_of_it() {
    let (old, new) = ([ID, ("a", 2, TEXT), ("c", 3, TEXT)], [ID, ("b", 2, TEXT), ("c", 3, TEXT)]);
    let (told_old, told_new) = ([TOLD_ID, ("a", TEXT), ("c", TEXT)], [TOLD_ID, ("b", TEXT), ("c", TEXT)]);
    let there = &["id", "a", "c"][..];
    // What comes before it goes where it went.
    Case { told: &told_old, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "a", "c"],
        &[],
        &old,
    );
    Case { told: &told_new, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "b", "c"],
        &["column a of public.t is now called b"],
        &new,
    );
    // Mended. Rows of the old shape that are read again go to the new column.
    let there = &["id", "b", "c"][..];
    Case { told: &told_new, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "b", "c"],
        &[],
        &new,
    );
    Case { told: &told_old, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "b", "c"],
        &[],
        &[ID, ("b", 2, TEXT), ("c", 3, TEXT)],
    );
    Case { told: &told_old, remembered: &new, now: &new, warehouse: there }.check(
        &["id", "b", "c"],
        &[],
        &new,
    );
}

#[test]
fn a_column_that_was_renamed_twice_is_known_by_its_neighbours() {
    let old = [ID, ("a", 2, TEXT), ("z", 3, TEXT)];
    let now = [ID, ("c", 2, TEXT), ("z", 3, TEXT)];
    Case {
        told: &[TOLD_ID, ("b", TEXT), ("z", TEXT)],
        remembered: &old,
        now: &now,
        warehouse: &["id", "a", "z"],
    }
    .check(
        &["id", "b", "z"],
        &["column a of public.t is now called b"],
        &[ID, ("b", 2, TEXT), ("z", 3, TEXT)],
    );
}

#[test]
fn a_dropped_column_halts_unless_starrocks_has_none_any_more() {
    let (old, new) = ([ID, ("a", 2, TEXT)], [ID]);
    let there = &["id", "a"][..];
    Case { told: &[TOLD_ID, ("a", TEXT)], remembered: &old, now: &new, warehouse: there }.check(
        &["id", "a"],
        &[],
        &old,
    );
    Case { told: &[TOLD_ID], remembered: &old, now: &new, warehouse: there }.check(
        &["id"],
        &["column a of public.t was dropped"],
        &new,
    );
    // Dropped, or kept under another name.
    for there in [&["id"][..], &["id", "a_dropped"]] {
        Case { told: &[TOLD_ID], remembered: &old, now: &new, warehouse: there }.check(&["id"], &[], &new);
        Case { told: &[TOLD_ID, ("a", TEXT)], remembered: &new, now: &new, warehouse: there }.check(
            &["id", "a"],
            &[],
            &new,
        );
    }
    // Copied anew since, with a column of StarRocks' own of that name.
    Case { told: &[TOLD_ID, ("a", TEXT)], remembered: &new, now: &new, warehouse: there }.check(
        &["id", "a"],
        &[],
        &new,
    );
    Case { told: &[TOLD_ID], remembered: &new, now: &new, warehouse: there }.check(&["id"], &[], &new);
}

#[test]
fn a_column_that_only_starrocks_has_never_halts() {
    let remembered = [ID, ("a", 2, TEXT)];
    Case {
        told: &[TOLD_ID, ("a", TEXT)],
        remembered: &remembered,
        now: &remembered,
        warehouse: &["id", "a", "loaded_at:datetime"],
    }
    .check(&["id", "a"], &[], &remembered);
}

#[test]
fn a_column_that_was_added_later_is_remembered_though_the_stream_is_behind() {
    let both = [ID, ("a", 2, TEXT)];
    Case { told: &[TOLD_ID], remembered: &both, now: &both, warehouse: &["id", "a"] }.check(
        &["id"],
        &[],
        &both,
    );
    Case { told: &[TOLD_ID], remembered: &[ID], now: &both, warehouse: &["id"] }.check(&["id"], &[], &[ID]);
    Case { told: &[TOLD_ID, ("a", TEXT)], remembered: &[ID], now: &both, warehouse: &["id"] }.check(
        &["id", "a"],
        &[],
        &both,
    );
}

#[test]
fn a_retyped_column_halts_where_the_stream_tells_of_it_and_old_values_do_not() {
    let (old, new) = ([ID, ("a", 2, INT)], [ID, ("a", 2, TEXT)]);
    let (told_old, told_new) = ([TOLD_ID, ("a", INT)], [TOLD_ID, ("a", TEXT)]);
    let why = "column a of public.t is now of type 25, which does not go into StarRocks' int: it holds whole numbers";
    Case { told: &told_old, remembered: &old, now: &new, warehouse: &["id", "a:int"] }.check(
        &["id", "a"],
        &[],
        &old,
    );
    Case { told: &told_new, remembered: &old, now: &new, warehouse: &["id", "a:int"] }.check(
        &["id", "a"],
        &[why],
        &new,
    );
    // The other way round: texts of before come again after StarRocks was mended.
    for remembered in [&old, &new] {
        Case { told: &told_new, remembered: &new, now: &old, warehouse: &["id", "a:int"] }.check(
            &["id", "a"],
            &[],
            &new,
        );
        Case { told: &told_old, remembered, now: &old, warehouse: &["id", "a:int"] }.check(
            &["id", "a"],
            &[],
            &old,
        );
    }
}

#[test]
fn a_column_that_was_dropped_and_added_anew_is_another_one() {
    let (old, new) = ([ID, ("a", 2, TEXT), ("z", 3, TEXT)], [ID, ("z", 3, TEXT), ("a", 4, TEXT)]);
    let there = &["id", "a", "z"][..];
    Case { told: &[TOLD_ID, ("a", TEXT), ("z", TEXT)], remembered: &old, now: &new, warehouse: there }.check(
        &["id", "a", "z"],
        &[],
        &old,
    );
    let told_new = [TOLD_ID, ("z", TEXT), ("a", TEXT)];
    Case { told: &told_new, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "z", "a"],
        &["column a of public.t was dropped and added anew; StarRocks still has the old one's values"],
        &new,
    );
    Case { told: &told_new, remembered: &old, now: &new, warehouse: &["id", "z"] }.check(
        &["id", "z", "a"],
        &[],
        &new,
    );
}

#[test]
fn names_that_changed_places_go_where_they_went() {
    let (old, new) = ([ID, ("a", 2, TEXT), ("b", 3, TEXT)], [ID, ("b", 2, TEXT), ("a", 3, TEXT)]);
    let told_old = [TOLD_ID, ("a", TEXT), ("b", TEXT)];
    let there = &["id", "a", "b"][..];
    Case { told: &told_old, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "a", "b"],
        &[],
        &old,
    );
    let told_new = [TOLD_ID, ("b", TEXT), ("a", TEXT)];
    let halts = ["column a of public.t is now called b", "column b of public.t is now called a"];
    Case { told: &told_new, remembered: &old, now: &new, warehouse: there }.check(
        &["id", "b", "a"],
        &halts,
        &new,
    );
    // Copied anew in the new shape; what was told in the old one comes again.
    Case { told: &told_old, remembered: &new, now: &new, warehouse: there }.check(
        &["id", "b", "a"],
        &[],
        &new,
    );
}

/// A start looks at the table in the shape in which it was followed last.
#[test]
fn a_start_adds_what_is_new_and_not_what_was_renamed() {
    let now = told(&[TOLD_ID, ("b", TEXT), ("again", TEXT), ("fresh", TEXT)]);
    let mut now = Table { columns: now.columns, ..now };
    for (column, number) in now.columns.iter_mut().zip([1, 2, 5, 6]) {
        column.number = number;
    }
    let remembered = columns(&[ID, ("a", 2, TEXT), ("gone", 3, TEXT), ("again", 4, TEXT)]);
    let check = |names: &[&str], expected: &[&str]| {
        let there = warehouse(names);
        let shaped = as_followed(&now, &remembered, &there);
        let types = Types::new();
        let comparison = Comparison {
            table: &now,
            types: &types,
            database: "shop",
            name: "t",
            warehouse: &there,
            before: None,
        };
        let difference = shaped.difference(comparison);
        assert_eq!(difference.incompatible, []);
        let added = difference.added.iter().map(|added| added.column.as_str());
        let added: Vec<&str> = added.filter(|name| shaped.agrees_on(name, &now)).collect();
        assert_eq!(added, expected, "{names:?}");
    };
    check(&["id", "a", "gone", "again"], &["fresh"]);
    // Mended, before the stream has told of it.
    check(&["id", "b"], &["fresh"]);
    // Nothing there for it in either name.
    check(&["id", "fresh"], &[]);
}
