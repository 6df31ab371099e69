//! Rows that were read and checked but are not visible yet.

/// One value, ready to be bound. Text lives in the body or in the scratch text of its [`Staged`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Real(f64),
    /// `start..end` of the request body.
    Body(u32, u32),
    /// `start..end` of the scratch text: what had to be rewritten (escapes, dates, nested values).
    Scratch(u32, u32),
}

/// The rows of one request body, in arrival order.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) body: String,
    pub(crate) scratch: String,
    /// The columns that each row brings. By name, since the table may be altered before the rows are written.
    pub(crate) columns: Vec<String>,
    /// `columns.len()` cells for each row.
    pub(crate) cells: Vec<Cell>,
    /// For each row whether it deletes; empty when none does.
    pub(crate) deletes: Vec<bool>,
    pub(crate) rows: u64,
    /// Rows left out because of their data.
    pub(crate) filtered: u64,
    /// Why, for the first rows of them, as lines of the error log.
    pub(crate) reasons: Vec<String>,
    /// Bytes received.
    pub(crate) bytes: u64,
    pub(crate) mode: WriteMode,
}

/// How a row meets an existing row with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum WriteMode {
    /// It replaces the row; columns that the load does not bring get their defaults.
    #[default]
    Replace,
    /// Only the columns of the load change (`partial_update`).
    Partial,
    /// As `Replace`, if this column of the new row is not smaller than that of the old (`merge_condition`).
    IfNotSmaller(String),
    /// Both conditions at once.
    PartialIfNotSmaller(String),
}

impl Staged {
    /// The text of a cell; `None` for a cell that is no text.
    pub(crate) fn text(&self, cell: Cell) -> Option<&str> {
        match cell {
            Cell::Null | Cell::Int(_) | Cell::Real(_) => None,
            Cell::Body(start, end) => self.body.get(start as usize..end as usize),
            Cell::Scratch(start, end) => self.scratch.get(start as usize..end as usize),
        }
    }
}
