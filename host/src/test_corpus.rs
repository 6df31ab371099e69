//! The fuzzer's corpora (`/fuzz/corpus`), which the tests read too, without nightly.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Bytes that are put in at a time.
const INSERTED_BYTES_MAX: usize = 12;

/// The contents of all files of one target's corpus.
///
/// # Panics
/// If it is not there, or has few files only.
pub(crate) fn files(target: &str) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).expect("the corpus is checked in");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    assert!(paths.len() >= 24, "only {} files in {}", paths.len(), folder.display());
    // Directories have no order, and a failing case is to fail again.
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a readable file")).collect()
}

/// Files of a corpus with changes, and sometimes bytes from nowhere.
pub(crate) fn mutated(files: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<Index>(), any::<Index>(), 0..5_u8, vec(any::<u8>(), 1..INSERTED_BYTES_MAX));
    let changed = (any::<Index>(), vec(change, 0..8)).prop_map(move |(file, changes)| {
        let mut bytes = file.get(&files).clone();
        for (at, to, kind, new) in changes {
            let places = [at.index(bytes.len() + 1), to.index(bytes.len() + 1)];
            let (at, end) = (places[0].min(places[1]), places[0].max(places[1]));
            match kind {
                0 => drop(bytes.splice(at..at, new)),
                1 => drop(bytes.splice(at..end.min(at + new.len()), new)),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let again = bytes[at..end].to_vec();
                    drop(bytes.splice(end..end, again));
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    });
    prop_oneof![9 => changed, 1 => vec(any::<u8>(), 0..200)]
}
