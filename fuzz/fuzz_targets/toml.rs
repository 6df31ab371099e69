//! Any text as a pipeline file: a plan, or messages that a person can read.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tidemill_fuzz::config::{Overrides, load_texts};

/// Some fifty messages are shown for a file.
const MESSAGES_BYTES_MAX: usize = 256 << 10;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let flags = Overrides { cache_dir: Some("/tmp/tidemill-cache".into()), ..Overrides::default() };
    match load_texts(&[(Path::new("/nowhere/fuzz.toml"), &text)], &flags) {
        Ok(plan) => assert!(!plan.pipelines.is_empty()),
        Err(problems) => {
            let said = problems.to_string();
            assert!(!said.is_empty() && said.len() < MESSAGES_BYTES_MAX, "{} bytes", said.len());
        }
    }
});
