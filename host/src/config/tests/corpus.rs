//! Files of strangers: the fuzzer's corpus (`/fuzz`), and changes of it.

use proptest::prelude::*;

use super::read;
use crate::test_corpus::{files, mutated};

/// A person reads some fifty messages, of a line or two each.
const MESSAGES_BYTES_MAX: usize = 256 << 10;

fn check(bytes: &[u8]) {
    match read(&String::from_utf8_lossy(bytes)) {
        Ok(plan) => assert!(!plan.pipelines.is_empty()),
        Err(problems) => {
            let said = problems.to_string();
            assert!(!said.is_empty() && said.len() < MESSAGES_BYTES_MAX, "{} bytes", said.len());
        }
    }
}

#[test]
fn the_corpus_is_read_without_a_panic() {
    files("toml").iter().for_each(|bytes| check(bytes));
}

#[test]
fn a_credential_of_the_corpus_is_in_no_message() {
    for bytes in files("toml") {
        if let Err(problems) = read(&String::from_utf8_lossy(&bytes)) {
            assert!(!problems.to_string().contains("hunter2"), "{problems}");
        }
    }
}

proptest! {
    #[test]
    fn whatever_a_file_says_it_is_a_plan_or_messages(bytes in mutated(files("toml"))) {
        check(&bytes);
    }
}
