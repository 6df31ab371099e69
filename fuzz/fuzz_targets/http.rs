//! Any bytes as the body of a request: unpacked within limits, and read as complete objects.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_fuzz::source::http::fuzzed::any;

fuzz_target!(|bytes: &[u8]| any(bytes));
