//! What one instance may take: memory over all of its linear memories, tables, and their number.

use std::fmt;

use wasmtime::ResourceLimiter;

/// Elements of one table: function pointers; the largest JavaScript engines need some ten thousand.
pub(super) const TABLE_ELEMENTS_MAX: usize = 32_768;
/// Tables of one component: language run-times bring two or three.
pub(super) const TABLES_MAX: usize = 16;
/// Linear memories of one component: one, or two where components were composed. They share the one limit in bytes.
pub(super) const MEMORIES_MAX: usize = 2;
/// Core instances of one component: an interpreter with its shared libraries has about thirty.
pub(super) const CORE_INSTANCES_MAX: usize = 64;

/// Counts the bytes of all linear memories of one instance and refuses growth beyond the cap.
///
/// Refusal is a trap and not the `-1` that WebAssembly knows: a guest that gets `-1` aborts and the reason is lost.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    cap_bytes: u64,
    used_bytes: u64,
}

impl MemoryLimit {
    pub(super) fn new(cap_bytes: u64) -> Self {
        Self { cap_bytes, used_bytes: 0 }
    }

    /// Bytes of all linear memories. They never shrink.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }
}

/// The guest wanted more than it may have.
#[derive(Debug)]
pub(super) enum Exceeded {
    /// Linear memory, in bytes.
    Memory { wanted: u64, cap: u64 },
    /// Table elements.
    Table { wanted: usize, cap: usize },
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { wanted, cap } => {
                write!(f, "wanted {wanted} bytes of memory, {cap} are allowed")
            }
            Self::Table { wanted, cap } => write!(f, "wanted {wanted} table elements, {cap} are allowed"),
        }
    }
}

impl std::error::Error for Exceeded {}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = desired.saturating_sub(current) as u64;
        let wanted = self.used_bytes.saturating_add(grown);
        if wanted > self.cap_bytes {
            return Err(Exceeded::Memory { wanted, cap: self.cap_bytes }.into());
        }
        self.used_bytes = wanted;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // The pool's slot or the machine had no more: as final for this instance as our own limit.
        Err(error.context(Exceeded::Memory { wanted: self.used_bytes, cap: self.cap_bytes }))
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS_MAX {
            return Err(Exceeded::Table { wanted: desired, cap: TABLE_ELEMENTS_MAX }.into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_of_an_instance_share_one_cap() {
        let mut limit = MemoryLimit::new(300);
        assert!(limit.memory_growing(0, 100, None).unwrap());
        assert!(limit.memory_growing(0, 150, None).unwrap());
        assert_eq!(limit.used_bytes(), 250);
        let refused = limit.memory_growing(150, 201, None).unwrap_err();
        assert_eq!(refused.to_string(), "wanted 301 bytes of memory, 300 are allowed");
        assert_eq!(limit.used_bytes(), 250, "a refused growth took nothing");
    }

    #[test]
    fn a_table_has_a_limit() {
        let mut limit = MemoryLimit::new(0);
        assert!(limit.table_growing(0, TABLE_ELEMENTS_MAX, None).unwrap());
        assert!(limit.table_growing(0, TABLE_ELEMENTS_MAX + 1, None).is_err());
    }
}
