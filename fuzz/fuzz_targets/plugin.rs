//! Any bytes as what a plugin returned: refused, or safe to use without a further look.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_fuzz::plugin::fuzzed::any;

fuzz_target!(|bytes: &[u8]| any(bytes));
