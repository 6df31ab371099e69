//! Which columns partial rows lack: few different sets, so each is kept once.

use super::RowError;

/// Sets that are told apart for one layout. Each needs loads of its own, so a table with more is in trouble anyway.
pub(super) const COLUMN_SETS_MAX: usize = 4096;

/// A set of columns, see [`ColumnSets::missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnSetId(u16);

/// The sets of columns that updates of one [`Layout`](super::Layout) have left out. Kept by whoever appends
/// the rows, and thrown away with the layout.
#[derive(Debug, Clone, Default)]
pub struct ColumnSets {
    sets: Vec<Box<[u16]>>,
    /// Those of the row that is being appended.
    current: Vec<u16>,
}

impl ColumnSets {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places, in the layout, of the columns that rows of this set lack; growing.
    pub fn missing(&self, id: ColumnSetId) -> &[u16] {
        self.sets.get(usize::from(id.0)).map_or(&[], |set| set)
    }

    /// Number of sets.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether no row was a partial one.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    pub(super) fn begin(&mut self) {
        self.current.clear();
    }

    pub(super) fn leave_out(&mut self, place: u16) {
        self.current.push(place);
    }

    pub(super) fn end(&mut self) -> Result<Option<ColumnSetId>, RowError> {
        if self.current.is_empty() {
            return Ok(None);
        }
        // A handful: the same columns are out of line in most rows of a table.
        let place = match self.sets.iter().position(|set| **set == *self.current) {
            Some(place) => place,
            None if self.sets.len() == COLUMN_SETS_MAX => return Err(RowError::ColumnSets),
            None => {
                self.sets.push(self.current.as_slice().into());
                self.sets.len() - 1
            }
        };
        Ok(Some(ColumnSetId(place as u16)))
    }
}
