//! What a source table and its StarRocks table no longer have in common.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::column_type::{ColumnType, column_type};
use super::fit::{Fit, fit};
use super::{type_name, warehouse_name};
use crate::sink::starrocks::create_table::quoted;
use crate::sink::starrocks::query;
use crate::source::postgres::kind::Types;
use crate::source::postgres::table::{Column, Table};

/// A source column as it was when the table was last found to fit. Its JSON stands in the positions table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its name.
    pub name: String,
    /// `pg_attribute.attnum`; 0 if it was not known.
    pub number: i16,
    /// `pg_type.oid`.
    #[serde(rename = "type")]
    pub type_oid: u32,
    /// `atttypmod`.
    #[serde(rename = "modifier")]
    pub type_modifier: i32,
}

/// Two tables to be compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The source table as it is.
    pub table: &'a Table,
    /// What is known of its types.
    pub types: &'a Types,
    /// StarRocks' database.
    pub database: &'a str,
    /// StarRocks' table.
    pub name: &'a str,
    /// Its columns as they are.
    pub warehouse: &'a [query::Column],
    /// The source's columns as they were, if anybody remembers. Without them a renamed, dropped or retyped
    /// column cannot be told from one that was never there or always so.
    pub before: Option<&'a [Remembered]>,
}

/// What is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Columns that StarRocks lacks, with the statements that add them.
    pub added: Vec<Added>,
    /// What has to be mended by a person before anything is loaded.
    pub incompatible: Vec<Incompatible>,
    /// Columns of StarRocks that the source does not have and never had: plugins or defaults fill them.
    pub unfed: Vec<String>,
    /// Both tables, column by column, for whoever has to mend them.
    pub side_by_side: String,
}

/// A column to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its name.
    pub column: String,
    /// `ALTER TABLE … ADD COLUMN …`, for StarRocks.
    pub sql: String,
}

/// A column that keeps the table from being loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incompatible {
    /// Its name, in the source if it is there.
    pub column: String,
    /// What is wrong.
    pub what: String,
    /// What to do, with the SQL for StarRocks.
    pub hint: String,
}

impl Remembered {
    /// What is to be remembered of `table`.
    pub fn of(table: &Table) -> Vec<Remembered> {
        let remembered = |column: &Column| Remembered {
            name: column.name.clone(),
            number: column.number,
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
        };
        table.columns.iter().map(remembered).collect()
    }

    fn is(&self, column: &Column) -> bool {
        self.number != 0 && self.number == column.number
    }
}

impl Comparison<'_> {
    /// Compares them.
    pub fn difference(&self) -> Difference {
        let mut difference = Difference {
            added: Vec::new(),
            incompatible: Vec::new(),
            unfed: Vec::new(),
            side_by_side: self.side_by_side(),
        };
        for column in &self.table.columns {
            let before = self.before_of(column);
            if let Some(renamed) = before.and_then(|before| self.renamed(column, &before.name)) {
                difference.incompatible.push(renamed);
                continue;
            }
            match self.warehouse.iter().find(|there| there.name == column.name) {
                Some(there) => difference.incompatible.extend(self.misfit(column, there, before)),
                None => match self.warehouse.iter().find(|there| same_but_case(&there.name, &column.name)) {
                    Some(there) => difference.incompatible.push(self.misspelt(column, &there.name)),
                    None => difference.added.push(self.added(column)),
                },
            }
        }
        self.without_source(&mut difference);
        difference
    }

    fn before_of(&self, column: &Column) -> Option<&Remembered> {
        self.before?.iter().find(|before| before.is(column))
    }

    /// The column had another name, which StarRocks' column still has.
    fn renamed(&self, column: &Column, old: &str) -> Option<Incompatible> {
        let stays = old != column.name && self.warehouse.iter().any(|there| there.name == old);
        stays.then(|| {
            let taken = self.warehouse.iter().any(|there| there.name == column.name);
            let hint = if taken {
                format!(
                    "StarRocks has a column {} already; load the table anew: tidemill resync <file> {}",
                    column.name, self.table.name
                )
            } else {
                self.alter(&format!("RENAME COLUMN {} TO {}", quoted(old), quoted(&column.name)))
            };
            let what = format!("column {old} of {} is now called {}", self.table.name, column.name);
            Incompatible { column: column.name.clone(), what, hint }
        })
    }

    /// Rows name columns, and StarRocks takes no other spelling there.
    fn misspelt(&self, column: &Column, there: &str) -> Incompatible {
        Incompatible {
            column: column.name.clone(),
            what: format!("column {} of {} is spelt {there} in StarRocks", column.name, self.table.name),
            hint: self.alter(&format!("RENAME COLUMN {} TO {}", quoted(there), quoted(&column.name))),
        }
    }

    fn added(&self, column: &Column) -> Added {
        let sql_type = ColumnType::of_value(column, self.types);
        let sql = self.alter(&format!("ADD COLUMN {} {sql_type} NULL", quoted(&column.name)));
        Added { column: column.name.clone(), sql }
    }

    /// Why values of `column` cannot go into the column of that name that is there.
    fn misfit(
        &self,
        column: &Column,
        there: &query::Column,
        before: Option<&Remembered>,
    ) -> Option<Incompatible> {
        let incompatible =
            |what: String, hint: String| Incompatible { column: column.name.clone(), what, hint };
        let namesake = self.before.and_then(|before| before.iter().find(|it| it.name == column.name));
        if namesake.is_some_and(|it| it.number != 0 && column.number != 0 && it.number != column.number) {
            let what = format!(
                "column {} of {} was dropped and added anew; StarRocks still has the old one's values",
                column.name, self.table.name
            );
            return Some(incompatible(what, self.alter(&format!("DROP COLUMN {}", quoted(&column.name)))));
        }
        let actual = ColumnType::parse(&there.sql_type);
        let kind = self.types.kind(column.type_oid);
        let wanted = column_type(column, self.types, there.key)
            .unwrap_or_else(|_no_key| ColumnType::of_value(column, self.types));
        let retyped = before.is_some_and(|before| {
            (before.type_oid, before.type_modifier) != (column.type_oid, column.type_modifier)
        });
        let why = match fit(&kind, &wanted, &actual) {
            Fit::All => None,
            Fit::Some(why) => retyped.then_some(why),
            Fit::None(why) => Some(why),
        };
        if let Some(why) = why {
            let is_now = if retyped { "is now" } else { "is" };
            let what = format!(
                "column {} of {} {is_now} {}, which does not go into StarRocks' {}: {why}",
                column.name,
                self.table.name,
                type_name(column),
                there.sql_type
            );
            return Some(incompatible(what, self.retype(column, &wanted, there.key)));
        }
        if !there.key && !there.nullable {
            let what = format!(
                "column {} is NOT NULL in StarRocks, so a delete, which tells the key only, would be refused",
                column.name
            );
            let hint = self.alter(&format!("MODIFY COLUMN {} {actual} NULL", quoted(&column.name)));
            return Some(incompatible(what, hint));
        }
        None
    }

    fn retype(&self, column: &Column, wanted: &ColumnType, key: bool) -> String {
        if key {
            return format!(
                "key columns cannot be changed: create a new StarRocks table and load it: tidemill resync <file> {}",
                self.table.name
            );
        }
        self.alter(&format!("MODIFY COLUMN {} {wanted} NULL", quoted(&column.name)))
    }

    /// Columns that only StarRocks has.
    fn without_source(&self, difference: &mut Difference) {
        for there in self.warehouse {
            let in_source = |name: &str| self.table.columns.iter().any(|column| column.name == name);
            if in_source(&there.name) || self.is_spoken_of(&there.name) {
                continue;
            }
            let was = self.before.and_then(|before| before.iter().find(|before| before.name == there.name));
            let incompatible =
                |what: String, hint: String| Incompatible { column: there.name.clone(), what, hint };
            if there.key {
                let what = format!("StarRocks' key column {} is not in {}", there.name, self.table.name);
                let hint = "create the StarRocks table with a key of columns that the source has".to_owned();
                difference.incompatible.push(incompatible(what, hint));
            } else if was.is_some() {
                let what = format!("column {} of {} was dropped", there.name, self.table.name);
                difference.incompatible.push(incompatible(what, self.drop_or_keep(&there.name)));
            } else if !there.nullable {
                let what = format!("column {} is NOT NULL in StarRocks and nothing feeds it", there.name);
                let hint = self.alter(&format!(
                    "MODIFY COLUMN {} {} NULL",
                    quoted(&there.name),
                    ColumnType::parse(&there.sql_type)
                ));
                difference.incompatible.push(incompatible(what, hint));
            } else {
                difference.unfed.push(there.name.clone());
            }
        }
    }

    /// What to do about a column that the source has no more.
    pub fn drop_or_keep(&self, column: &str) -> String {
        let name = quoted(column);
        format!(
            "{}; or, to keep its values, {}",
            self.alter(&format!("DROP COLUMN {name}")),
            self.alter(&format!("RENAME COLUMN {name} TO {}", quoted(&format!("{column}_dropped"))))
        )
    }

    /// Whether a source column was matched with it by number or in another spelling.
    fn is_spoken_of(&self, there: &str) -> bool {
        self.table.columns.iter().any(|column| {
            let renamed = self.before_of(column).is_some_and(|before| before.name == there);
            let exact = self.warehouse.iter().any(|there| there.name == column.name);
            renamed || (!exact && same_but_case(there, &column.name))
        })
    }

    fn alter(&self, change: &str) -> String {
        format!("ALTER TABLE {} {change}", warehouse_name(self.database, self.name))
    }

    /// Source columns with those of the same name, then what only StarRocks has.
    pub fn side_by_side(&self) -> String {
        let mut lines = vec![(self.table.name.to_string(), format!("{}.{}", self.database, self.name))];
        let there = |there: &query::Column| {
            let key = if there.key { " key" } else { "" };
            let null = if there.nullable { "" } else { " not null" };
            format!("{} {}{key}{null}", there.name, there.sql_type)
        };
        for column in &self.table.columns {
            let key = if column.primary_key.is_some() { " key" } else { "" };
            let null = if column.not_null { " not null" } else { "" };
            let twin = self.warehouse.iter().find(|there| there.name == column.name);
            lines.push((
                format!("{} {}{key}{null}", column.name, type_name(column)),
                twin.map_or_else(|| "-".to_owned(), there),
            ));
        }
        let lone = |name: &str| self.table.columns.iter().all(|column| column.name != name);
        lines.extend(self.warehouse.iter().filter(|it| lone(&it.name)).map(|it| ("-".to_owned(), there(it))));
        let width = lines.iter().map(|(left, _)| left.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (left, right) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{left:width$}  {right}");
        }
        text
    }
}

fn same_but_case(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}
