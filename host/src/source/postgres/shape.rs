//! Which columns of StarRocks a table's rows go to while either table changes: what the stream tells (of then), the
//! catalogue (of now), and what is remembered of the columns that were followed last. Pure.
//!
//! The stream tells no column numbers (`pg_attribute.attnum`), which alone survive a rename; and it may be read again from
//! before a change that StarRocks' table has seen already. What is remembered says which source column fed which of
//! StarRocks' columns. A change halts where the stream tells of it and not where the catalogue does: everything before it
//! is then loaded in the shape that it has.

use std::collections::HashSet;

use super::table::{Column, Table};
use super::warehouse_table::{Comparison, Difference, Remembered};
use crate::sink::starrocks::query::Column as WarehouseColumn;

/// A table as the stream told of it, read with what else is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    /// The table, with numbers as far as they can be told. Columns that were renamed since have the name that StarRocks
    /// has, if that is the later one.
    pub(super) table: Table,
    /// The same with the types that the columns have now.
    later: Table,
    /// What was remembered and is not newer than the stream: differences from it are news.
    pub(super) before: Vec<Remembered>,
    /// What is to be remembered if the table fits.
    pub(super) followed: Vec<Remembered>,
}

/// Reads what the stream told of a table. `now` is the catalogue's; columns that are not published are not in it.
pub(super) fn read(
    mut table: Table,
    remembered: &[Remembered],
    now: &[Remembered],
    warehouse: &[WarehouseColumn],
) -> Reading {
    number(&mut table, remembered, now);
    let told = Remembered::of(&table);
    rename_as_loaded(&mut table, remembered, now, warehouse);
    let before = remembered.iter().filter(|before| is_news(before, &told, now)).cloned().collect();
    let followed = followed(&table, &told, remembered, now);
    Reading { later: with_types_of(&table, now), table, before, followed }
}

/// The table as the catalogue has it, but in the shape in which it was followed last: what has changed since comes by the
/// stream.
pub(super) fn as_followed(
    table: &Table,
    remembered: &[Remembered],
    warehouse: &[WarehouseColumn],
) -> Reading {
    let now = Remembered::of(table);
    let mut shaped = table.clone();
    for column in &mut shaped.columns {
        let Some(before) = by_number(remembered, column.number) else { continue };
        if (column.type_oid, column.type_modifier) != (before.type_oid, before.type_modifier) {
            column.type_name.clear();
        }
        (column.type_oid, column.type_modifier) = (before.type_oid, before.type_modifier);
        if has(warehouse, &before.name) || !has(warehouse, &column.name) {
            column.name.clone_from(&before.name);
        }
    }
    // A new column with the name of one that is gone comes when the stream tells that the other one is gone.
    shaped.columns.retain(|column| {
        by_number(remembered, column.number).is_some() || by_name(remembered, &column.name).is_none()
    });
    Reading {
        later: with_types_of(&shaped, &now),
        table: shaped,
        before: Vec::new(),
        followed: remembered.to_vec(),
    }
}

impl Reading {
    /// Puts the names of types in, for people, where the catalogue's column has the type that the stream told. `names` are
    /// those of the types of `now`.
    pub(super) fn name_types(&mut self, now: &[Remembered], names: &[String]) {
        for column in self.table.columns.iter_mut().chain(&mut self.later.columns) {
            let same = |(it, _): &(&Remembered, &String)| {
                (it.number, it.type_oid, it.type_modifier)
                    == (column.number, column.type_oid, column.type_modifier)
            };
            if let Some((_, name)) = now.iter().zip(names).find(same) {
                column.type_name.clone_from(name);
            }
        }
    }

    /// How the table differs from StarRocks'. A column whose values have changed their type since the stream told of it
    /// fits in either type: values of the other one are StarRocks' to refuse, row by row.
    pub(super) fn difference(&self, comparison: Comparison<'_>) -> Difference {
        let mut difference = Comparison { table: &self.table, ..comparison }.difference();
        if self.later != self.table {
            let later = Comparison { table: &self.later, ..comparison }.difference();
            difference
                .incompatible
                .retain(|misfit| later.incompatible.iter().any(|it| it.column == misfit.column));
        }
        difference
    }

    /// Whether the catalogue's `table` has a column of this name, and the same one.
    pub(super) fn agrees_on(&self, name: &str, table: &Table) -> bool {
        let number = |table: &Table| table.columns.iter().find(|it| it.name == name).map(|it| it.number);
        number(&self.table).is_some_and(|found| Some(found) == number(table))
    }
}

fn by_number(columns: &[Remembered], number: i16) -> Option<&Remembered> {
    columns.iter().find(|column| number != 0 && column.number == number)
}

fn by_name<'a>(columns: &'a [Remembered], name: &str) -> Option<&'a Remembered> {
    columns.iter().find(|column| column.name == name)
}

fn has(warehouse: &[WarehouseColumn], name: &str) -> bool {
    warehouse.iter().any(|column| column.name == name)
}

/// Whether both are one column in one shape, as far as the stream tells of columns.
fn alike(one: &Remembered, other: &Remembered) -> bool {
    (&one.name, one.type_oid, one.type_modifier) == (&other.name, other.type_oid, other.type_modifier)
}

/// Whether the stream told of exactly these columns, in this order.
pub(super) fn are(told: &[Remembered], columns: &[Remembered]) -> bool {
    told.len() == columns.len() && told.iter().zip(columns).all(|(one, other)| alike(one, other))
}

/// Finds the columns' numbers. The stream tells columns in the order of their numbers, which grow and are never used
/// again; what a name does not tell may follow from its neighbours. 0 is left where nothing does.
fn number(table: &mut Table, remembered: &[Remembered], now: &[Remembered]) {
    let told = Remembered::of(table);
    let known = [now, remembered].into_iter().find(|known| are(&told, known));
    for (place, column) in table.columns.iter_mut().enumerate() {
        let same = |it: &&Remembered| it.type_oid == column.type_oid;
        let named = || {
            let now = by_name(now, &column.name).filter(same);
            now.or_else(|| by_name(remembered, &column.name))
        };
        let found = match known {
            Some(known) => known.get(place),
            None => named(),
        };
        column.number = found.map_or(0, |found| found.number);
    }
    drop_disordered(&mut table.columns);
    let mut candidates: Vec<i16> = now.iter().chain(remembered).map(|column| column.number).collect();
    candidates.sort_unstable();
    candidates.dedup();
    fill_gaps(&mut table.columns, &candidates);
}

/// Numbers that break the order were found by names that mean another column now.
fn drop_disordered(columns: &mut [Column]) {
    let numbers: Vec<i16> = columns.iter().map(|column| column.number).collect();
    for (place, column) in columns.iter_mut().enumerate() {
        let number = column.number;
        let (earlier, later) = (numbers.iter().take(place), numbers.iter().skip(place + 1));
        let breaks = earlier.clone().any(|other| *other >= number)
            || later.clone().any(|other| *other != 0 && *other <= number);
        if number != 0 && breaks {
            column.number = 0;
        }
    }
}

/// Between two known neighbours as many columns as there are numbers can only be those.
fn fill_gaps(columns: &mut [Column], candidates: &[i16]) {
    let mut place = 0;
    let mut after = 0;
    while let Some(column) = columns.get(place) {
        if column.number != 0 {
            after = column.number;
            place += 1;
            continue;
        }
        let rest = columns.get(place..).unwrap_or_default();
        let length = rest.iter().take_while(|column| column.number == 0).count();
        let until = rest.get(length).map_or(i16::MAX, |column| column.number);
        let fitting: Vec<i16> =
            candidates.iter().copied().filter(|number| *number > after && *number < until).collect();
        if fitting.len() == length {
            for (column, number) in columns.iter_mut().skip(place).zip(fitting) {
                column.number = number;
            }
        }
        place += length;
    }
}

/// Gives columns that were renamed since the stream told of them the later name, where StarRocks has that one already.
fn rename_as_loaded(
    table: &mut Table,
    remembered: &[Remembered],
    now: &[Remembered],
    warehouse: &[WarehouseColumn],
) {
    let name_of = |column: &Column| {
        let later = by_number(now, column.number).filter(|now| now.name != column.name)?;
        let fed = by_number(remembered, column.number).filter(|before| has(warehouse, &before.name));
        let loaded_as_later = match fed {
            Some(fed) => fed.name == later.name,
            // Somebody has renamed it in StarRocks, and the stream has not told of it yet.
            None => !has(warehouse, &column.name) && has(warehouse, &later.name),
        };
        loaded_as_later.then(|| later.name.clone())
    };
    let names: Vec<String> =
        table.columns.iter().map(|column| name_of(column).unwrap_or_else(|| column.name.clone())).collect();
    let different: HashSet<&String> = names.iter().collect();
    if different.len() == names.len() {
        for (column, name) in table.columns.iter_mut().zip(names) {
            column.name = name;
        }
    }
}

/// Whether a difference of the stream from `before` is news. It is none where the stream is behind: what it tells is
/// neither what was followed last nor what is there now.
fn is_news(before: &Remembered, told: &[Remembered], now: &[Remembered]) -> bool {
    let is_now = if before.number == 0 { by_name(now, &before.name) } else { by_number(now, before.number) };
    let told = by_number(told, before.number)
        .or_else(|| by_name(told, &before.name).filter(|told| told.number == 0 || before.number == 0));
    match (told, is_now) {
        // It was added later than what the stream tells of.
        (None, Some(_)) => false,
        (None, None) | (Some(_), None) => true,
        (Some(told), Some(is_now)) => alike(told, is_now) || !alike(before, is_now),
    }
}

/// What is to be remembered: what the stream told, and what it is too far behind to tell.
fn followed(
    table: &Table,
    told: &[Remembered],
    remembered: &[Remembered],
    now: &[Remembered],
) -> Vec<Remembered> {
    let mut followed = Vec::with_capacity(table.columns.len());
    let is_known = |name: &str| by_name(remembered, name).is_some() || by_name(now, name).is_some();
    for (loaded, told) in Remembered::of(table).into_iter().zip(told) {
        let (before, is_now) = (by_number(remembered, told.number), by_number(now, told.number));
        match (before, is_now) {
            (Some(before), Some(is_now)) if alike(before, is_now) => followed.push(before.clone()),
            // It was dropped before anything was remembered: the stream is behind.
            (None, None) if told.number != 0 || !is_known(&told.name) => {}
            (Some(_), _) | (None, _) => followed.push(loaded),
        }
    }
    let untold = remembered.iter().filter(|before| {
        by_number(told, before.number).is_none()
            && by_number(now, before.number).is_some()
            && by_name(&followed, &before.name).is_none()
    });
    let untold: Vec<Remembered> = untold.cloned().collect();
    followed.extend(untold);
    followed.sort_by_key(|column| column.number);
    followed
}

fn with_types_of(table: &Table, now: &[Remembered]) -> Table {
    let mut later = table.clone();
    for column in &mut later.columns {
        let Some(now) = by_number(now, column.number) else { continue };
        if (column.type_oid, column.type_modifier) != (now.type_oid, now.type_modifier) {
            (column.type_oid, column.type_modifier) = (now.type_oid, now.type_modifier);
            column.type_name.clear();
        }
    }
    later
}

#[cfg(test)]
mod tests;
