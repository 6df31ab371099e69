//! Any bytes as an answer of StarRocks, its error log, or a redirect: only a success is one, and nothing leads out of the list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_fuzz::sink::starrocks::fuzzed::any;

fuzz_target!(|bytes: &[u8]| any(bytes));
