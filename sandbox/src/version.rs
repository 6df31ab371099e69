//! Versions of a table: every committed load adds one, compaction merges them.

/// The versions of one table's tablets; every load touches all tablets, so one counter serves them all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    /// Versions made by loads and not yet merged away. The empty version 1 of a new tablet is not counted.
    pub(crate) now: u64,
    /// Loads committed since the table was made.
    pub(crate) total: u64,
    pub(crate) rows_loaded: u64,
    pub(crate) bytes_loaded: u64,
    pub(crate) refused_too_many: u64,
}

impl Versions {
    /// Versions as a tablet counts them, with the empty one it starts with.
    pub(crate) fn tablet_count(&self) -> u64 {
        self.now + 1
    }

    /// Whether a new load may write; counts the refusal when it may not.
    ///
    /// # Errors
    /// The number of versions, when it is past `limit`.
    pub(crate) fn admit(&mut self, limit: u32) -> Result<(), u64> {
        if self.tablet_count() > u64::from(limit) {
            self.refused_too_many += 1;
            return Err(self.tablet_count());
        }
        Ok(())
    }

    pub(crate) fn commit(&mut self, rows: u64, bytes: u64) {
        self.now += 1;
        self.total += 1;
        self.rows_loaded += rows;
        self.bytes_loaded += bytes;
    }

    /// Merges up to `merge_max` of the versions into one.
    pub(crate) fn compact(&mut self, merge_max: u32) {
        let merged = self.now.min(u64::from(merge_max));
        if merged >= 2 {
            self.now -= merged - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Versions;

    #[test]
    fn refuses_past_the_limit_and_recovers_by_compaction() {
        let mut versions = Versions::default();
        for _ in 0..1000 {
            assert_eq!(versions.admit(1000), Ok(()));
            versions.commit(1, 10);
        }
        assert_eq!(versions.admit(1000), Err(1001));
        assert_eq!(versions.refused_too_many, 1);
        versions.compact(100);
        assert_eq!((versions.now, versions.total), (901, 1000));
        assert_eq!(versions.admit(1000), Ok(()));
    }

    #[test]
    fn a_single_version_is_not_compacted() {
        let mut versions = Versions { now: 1, ..Versions::default() };
        versions.compact(100);
        assert_eq!(versions.now, 1);
    }
}
