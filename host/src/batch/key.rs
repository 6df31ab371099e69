//! Hashes of keys, by which rows of one key are found in a batch.
//!
//! They only tell which rows to look at: whether two keys are one is decided by their text. Who chooses keys must
//! still not be able to make all of them collide, or every row of every batch would be looked at; so the hash has a
//! random key of the process's own. All lanes share it: rows of one key come by any of them.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher};
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

/// The process's own key: it differs from start to start, and nothing outlives the process.
static SECRET: LazyLock<(u64, SharedSeed)> =
    LazyLock::new(|| (rand::random(), SharedSeed::from_u64(rand::random())));

/// Hashes keys. Made once for many of them.
#[derive(Debug)]
pub struct KeyHasher(SeedableRandomState);

impl Default for KeyHasher {
    fn default() -> Self {
        let (seed, shared) = &*SECRET;
        KeyHasher(SeedableRandomState::with_seed(*seed, shared))
    }
}

impl KeyHasher {
    /// The hash of a key: the same for equal keys, for as long as the process lives.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}

/// A set of such hashes, which are not hashed again.
pub type KeyHashes = HashSet<u64, BuildHasherDefault<AsItIs>>;

/// Takes the number that it is given for its hash.
#[derive(Debug, Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only numbers are put into the set; whatever else is told apart, if badly.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_have_equal_hashes_whoever_asks() {
        let (one, other) = (KeyHasher::default(), KeyHasher::default());
        let keys: Vec<String> = (0..10_000).map(|id| format!("{{\"id\":{id}}}")).collect();
        let hashes: KeyHashes = keys.iter().map(|key| one.hash(key.as_bytes())).collect();
        assert!(keys.iter().all(|key| hashes.contains(&other.hash(key.as_bytes()))));
        // Ten thousand of 2^64: a collision would be a defect.
        assert_eq!(hashes.len(), keys.len());
    }
}
