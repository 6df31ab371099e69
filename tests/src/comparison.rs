//! Whether a table of StarRocks equals the table of PostgreSQL that it follows: row for row, cell for cell.

use crate::{postgres::Postgres, wait_until, warehouse::Warehouse};
use std::{cmp::Ordering, fmt, time::Duration};

/// What a failing test shows of all that differs.
const DIFFERENCES_SHOWN: usize = 5;
/// What is shown of a long cell, in characters.
const CELL_SHOWN: usize = 60;

/// A cell's text, made comparable.
pub type Normalise = fn(String) -> String;

/// A column of both tables, and how the texts of its cells become equal where values are.
#[derive(Clone, Debug)]
pub struct Column {
    name: String,
    of_source: Normalise,
    of_loaded: Normalise,
}

impl Column {
    /// Whose texts are the same on both sides.
    #[must_use]
    pub fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), of_source: |text| text, of_loaded: |text| text }
    }

    /// Whose texts differ between PostgreSQL (`of_source`) and StarRocks (`of_loaded`).
    #[must_use]
    pub fn normalised(name: &str, of_source: Normalise, of_loaded: Normalise) -> Self {
        Self { name: name.to_owned(), of_source, of_loaded }
    }

    /// By PostgreSQL's type, `t` and `f` are StarRocks' 1 and 0.
    fn of_type(name: &str, data_type: &str) -> Self {
        match data_type {
            "boolean" => {
                Self { of_source: |text| if text == "t" { "1" } else { "0" }.to_owned(), ..Self::plain(name) }
            }
            _ => Self::plain(name),
        }
    }
}

/// Two tables that are to be equal.
#[derive(Clone, Debug)]
pub struct Comparison {
    source: String,
    destination: String,
    /// In the order of the key.
    key: Vec<Column>,
    others: Vec<Column>,
}

/// A row as far as it is compared: the cells of the key, then the others.
type Cells = Vec<Option<String>>;

/// What is not equal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Difference {
    /// A row of the source is not in StarRocks.
    Missing(Cells),
    /// A row of StarRocks is not in the source.
    Foreign(Cells),
    /// A key is there more than once in StarRocks.
    Repeated(Cells),
    /// The rows of one key differ in a column.
    Cell {
        /// The cells of the key.
        key: Cells,
        /// The column.
        column: String,
        /// What PostgreSQL has, normalised.
        source: Option<String>,
        /// What StarRocks has, normalised.
        loaded: Option<String>,
    },
}

impl Comparison {
    /// Of these columns. Tables are named as SQL names them: `public.account`, `shop.account`.
    #[must_use]
    pub fn new(source: &str, destination: &str, key: Vec<Column>, others: Vec<Column>) -> Self {
        Self { source: source.to_owned(), destination: destination.to_owned(), key, others }
    }

    /// Of all columns that the source has now; the key is the source's primary key.
    ///
    /// # Panics
    /// When the source has no such table, or it has no primary key.
    #[must_use]
    pub fn of(postgres: &Postgres, source: &str, destination: &str) -> Self {
        let columns = postgres.rows(&format!(
            "SELECT a.attname, format_type(a.atttypid, NULL), array_position(i.indkey::int2[], a.attnum) IS NOT NULL \
             FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
             WHERE a.attrelid = '{source}'::regclass AND a.attnum > 0 AND NOT a.attisdropped \
             ORDER BY array_position(i.indkey::int2[], a.attnum), a.attnum"
        ));
        let mut comparison = Self::new(source, destination, Vec::new(), Vec::new());
        for row in columns {
            let [Some(name), Some(data_type), Some(in_key)] = row.as_slice() else { panic!("{row:?}") };
            let column = Column::of_type(name, data_type);
            if in_key == "t" { comparison.key.push(column) } else { comparison.others.push(column) }
        }
        assert!(!comparison.key.is_empty(), "{source} has no primary key");
        comparison
    }

    /// With another way to compare a column.
    ///
    /// # Panics
    /// When there is no column of that name.
    #[must_use]
    pub fn with(mut self, column: Column) -> Self {
        let own = self.key.iter_mut().chain(&mut self.others).find(|own| own.name == column.name);
        match own {
            Some(own) => *own = column,
            None => panic!("{} has no column {}", self.source, column.name),
        }
        self
    }

    /// Waits until the tables are equal. The source is read once: it must be at rest.
    ///
    /// # Panics
    /// When they are not within `seconds`, with the first differences.
    pub fn until_equal(&self, seconds: u64, postgres: &Postgres, warehouse: &Warehouse) {
        let source = self.of_source(postgres);
        let mut last = Err("it was not read".to_owned());
        let outcome = wait_until(Duration::from_secs(seconds), || {
            // A table or column that is still to be made is a difference like any other.
            last = self.of_loaded(warehouse).map(|loaded| self.differences_of(&source, &loaded));
            last.as_ref().is_ok_and(Vec::is_empty).then_some(())
        });
        let Err(late) = outcome else { return };
        match last {
            Ok(differences) => {
                panic!("{} differs from {} in {}{late}", self.destination, self.source, shown(&differences))
            }
            Err(refused) => panic!("{} cannot be read: {refused}: {late}", self.destination),
        }
    }

    /// What differs now.
    ///
    /// # Panics
    /// When either table cannot be read.
    #[must_use]
    pub fn differences(&self, postgres: &Postgres, warehouse: &Warehouse) -> Vec<Difference> {
        let source = self.of_source(postgres);
        let loaded = self.of_loaded(warehouse).unwrap_or_else(|refused| panic!("{refused}"));
        self.differences_of(&source, &loaded)
    }

    fn columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().chain(&self.others)
    }

    fn select(&self, quote: char, table: &str) -> String {
        let names: Vec<String> =
            self.columns().map(|column| format!("{quote}{}{quote}", column.name)).collect();
        format!("SELECT {} FROM {table}", names.join(", "))
    }

    fn of_source(&self, postgres: &Postgres) -> Vec<Cells> {
        let rows = postgres.rows(&self.select('"', &self.source));
        self.sorted(rows, |column| column.of_source)
    }

    fn of_loaded(&self, warehouse: &Warehouse) -> Result<Vec<Cells>, String> {
        let rows = warehouse.attempt(&self.select('`', &self.destination))?;
        Ok(self.sorted(rows, |column| column.of_loaded))
    }

    /// Sorted here, by the text of the key: the two sides' own orders of text need not be the same.
    fn sorted(&self, mut rows: Vec<Cells>, normalise: impl Fn(&Column) -> Normalise) -> Vec<Cells> {
        for row in &mut rows {
            for (cell, column) in row.iter_mut().zip(self.columns()) {
                *cell = cell.take().map(normalise(column));
            }
        }
        rows.sort_unstable_by(|one, other| self.key_of(one).cmp(self.key_of(other)));
        rows
    }

    fn key_of<'a>(&self, row: &'a Cells) -> &'a [Option<String>] {
        &row[..self.key.len()]
    }

    /// Walks through both in the order of the key.
    fn differences_of(&self, source: &[Cells], loaded: &[Cells]) -> Vec<Difference> {
        let mut differences = Vec::new();
        let (mut source, mut loaded) = (source.iter().peekable(), loaded.iter().peekable());
        loop {
            let order = match (source.peek(), loaded.peek()) {
                (None, None) => return differences,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(own), Some(other)) => self.key_of(own).cmp(self.key_of(other)),
            };
            let own = source.next_if(|_| order.is_le());
            let other = loaded.next_if(|_| order.is_ge());
            match (own, other) {
                (Some(own), Some(other)) => differences.extend(self.cells(own, other)),
                (Some(own), None) => differences.push(Difference::Missing(self.key_of(own).to_vec())),
                (None, Some(other)) => differences.push(Difference::Foreign(self.key_of(other).to_vec())),
                (None, None) => return differences,
            }
            while let Some(again) =
                loaded.next_if(|next| other.is_some_and(|other| self.key_of(other) == self.key_of(next)))
            {
                differences.push(Difference::Repeated(self.key_of(again).to_vec()));
            }
        }
    }

    /// The columns in which two rows of one key differ.
    fn cells(&self, source: &Cells, loaded: &Cells) -> Vec<Difference> {
        let key = self.key_of(source);
        let different =
            self.columns().zip(source.iter().zip(loaded)).filter(|(_, (own, other))| own != other);
        let difference =
            |(column, (source, loaded)): (&Column, (&Option<String>, &Option<String>))| Difference::Cell {
                key: key.to_vec(),
                column: column.name.clone(),
                source: source.clone(),
                loaded: loaded.clone(),
            };
        different.map(difference).collect()
    }
}

/// The first few, one a line.
fn shown(differences: &[Difference]) -> String {
    let lines = differences.iter().take(DIFFERENCES_SHOWN).map(|difference| format!("\n  {difference}"));
    let more = differences.len().saturating_sub(DIFFERENCES_SHOWN);
    let rest = if more > 0 { format!("\n  and {more} more\n") } else { "\n".to_owned() };
    format!("{} places:{}{rest}", differences.len(), lines.collect::<String>())
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells =
            |key: &[Option<String>]| key.iter().map(|cell| brief(cell, 0)).collect::<Vec<_>>().join(", ");
        match self {
            Self::Missing(key) => write!(out, "({}) is missing", cells(key)),
            Self::Foreign(key) => write!(out, "({}) is not in the source", cells(key)),
            Self::Repeated(key) => write!(out, "({}) is there again", cells(key)),
            Self::Cell { key, column, source, loaded } => {
                let at = first_difference(source.as_deref(), loaded.as_deref());
                write!(out, "({}) {column}: {} became {}", cells(key), brief(source, at), brief(loaded, at))
            }
        }
    }
}

/// The place, in characters, of the first character that differs.
fn first_difference(one: Option<&str>, other: Option<&str>) -> usize {
    match (one, other) {
        (Some(one), Some(other)) => {
            one.chars().zip(other.chars()).take_while(|(one, other)| one == other).count()
        }
        (None, _) | (_, None) => 0,
    }
}

/// A cell, and of a long one the part around a place.
fn brief(cell: &Option<String>, place: usize) -> String {
    let Some(text) = cell else { return "NULL".to_owned() };
    let length = text.chars().count();
    if length <= CELL_SHOWN {
        return format!("{text:?}");
    }
    let begin = place.saturating_sub(CELL_SHOWN / 4);
    let part: String = text.chars().skip(begin).take(CELL_SHOWN).collect();
    format!("{part:?} (from character {begin} of {length})")
}

#[cfg(test)]
mod tests {
    use super::{Column, Comparison, Difference, shown};
    use crate::{postgres::Postgres, warehouse::Warehouse};

    fn row(cells: &[&str]) -> Vec<Option<String>> {
        cells.iter().map(|cell| Some((*cell).to_owned())).collect()
    }

    fn check(loaded: &[&[&str]], expected: &[&str]) {
        let comparison = Comparison::new(
            "public.t",
            "shop.t",
            vec![Column::plain("a"), Column::plain("b")],
            vec![Column::plain("note")],
        );
        let source = [row(&["1", "1", "x"]), row(&["1", "2", "y"]), row(&["2", "1", "z"])];
        let loaded: Vec<_> = loaded.iter().map(|cells| row(cells)).collect();
        let differences = comparison.differences_of(&source, &loaded);
        assert_eq!(differences.iter().map(Difference::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_difference_is_seen_and_named() {
        let (first, second, third): (&[&str], &[&str], &[&str]) =
            (&["1", "1", "x"], &["1", "2", "y"], &["2", "1", "z"]);
        check(&[first, second, third], &[]);
        check(&[second, third], &[r#"("1", "1") is missing"#]);
        check(&[first, second], &[r#"("2", "1") is missing"#]);
        check(&[first, &["1", "2", "Y"], third], &[r#"("1", "2") note: "y" became "Y""#]);
        check(&[first, second, second, third], &[r#"("1", "2") is there again"#]);
        check(&[&["0", "9", "x"], first, second, third], &[r#"("0", "9") is not in the source"#]);
        check(&[first, second, third, &["3", "0", "x"]], &[r#"("3", "0") is not in the source"#]);
    }

    #[test]
    fn a_long_cell_is_shown_around_what_differs() {
        let (source, mut loaded) = ("a".repeat(100_000), "a".repeat(100_000));
        loaded.replace_range(50_000..50_001, "b");
        let difference = Difference::Cell {
            key: row(&["7"]),
            column: "body".to_owned(),
            source: Some(source),
            loaded: Some(loaded),
        };
        let text = shown(&vec![difference; 9]);
        assert!(text.contains(r#"aab"#) && text.contains("(from character 49985 of 100000)"), "{text}");
        assert!(
            text.starts_with("9 places:\n  (\"7\") body: ") && text.ends_with("\n  and 4 more\n"),
            "{text}"
        );
        assert!(text.len() < 3_000);
    }

    #[test]
    fn tables_are_read_on_both_sides() {
        let postgres = Postgres::shared("comparison");
        postgres.run(
            "CREATE TABLE t (note text, gone int, b int, \"When\" timestamptz, yes boolean, a bigint, PRIMARY KEY (a, b));
             ALTER TABLE t DROP COLUMN gone;
             INSERT INTO t VALUES (NULL, 1, '2024-05-06 07:08:09.25+00', true, 10), (E'two\nlines', 2, NULL, false, 9)",
        );
        let warehouse = Warehouse::start();
        let comparison = Comparison::of(&postgres, "public.t", "shop.t").with(Column::normalised(
            "When",
            |text| text.replace("+00", ""),
            |text| text.trim_end_matches('0').to_owned(),
        ));
        warehouse.execute(
            "CREATE TABLE shop.t (a BIGINT NOT NULL, b INT NOT NULL, note VARCHAR(100), `When` DATETIME, yes BOOLEAN) \
             PRIMARY KEY(a, b) DISTRIBUTED BY HASH(a)",
        );
        warehouse.execute("INSERT INTO shop.t VALUES (9, 2, 'two\nlines', NULL, 0)");
        assert_eq!(comparison.differences(&postgres, &warehouse), [Difference::Missing(row(&["10", "1"]))]);
        warehouse.execute("INSERT INTO shop.t VALUES (10, 1, NULL, '2024-05-06 07:08:09.250000', 1)");
        comparison.until_equal(5, &postgres, &warehouse);
    }

    #[test]
    #[should_panic(expected = "shop.t differs from public.t in 1 places:\n  (\"1\") is missing")]
    fn a_table_that_stays_behind_fails_the_test() {
        let postgres = Postgres::shared("comparison_late");
        postgres.run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let warehouse = Warehouse::start();
        warehouse.execute("CREATE TABLE shop.t (id INT NOT NULL) PRIMARY KEY(id) DISTRIBUTED BY HASH(id)");
        Comparison::of(&postgres, "public.t", "shop.t").until_equal(1, &postgres, &warehouse);
    }
}
