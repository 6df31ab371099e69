//! Any bytes as a value of each kind, and as a COPY: no panic, and never a second line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_fuzz::source::postgres::copy_text::CopyText;
use tidemill_fuzz::source::postgres::kind::Types;
use tidemill_fuzz::source::postgres::value::append_json;

/// A type of each kind, and arrays of those whose elements are read in a way of their own.
const OIDS: [u32; 19] =
    [16, 20, 701, 1700, 790, 25, 17, 1082, 1114, 1184, 3802, 1000, 1007, 1022, 1231, 1009, 1001, 1185, 3807];

fuzz_target!(|bytes: &[u8]| {
    let types = Types::new();
    let mut copy = CopyText::new();
    let mut out = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        for field in copy.row(line).fields().flatten() {
            for oid in OIDS {
                out.clear();
                if append_json(&types.kind(oid), field, &mut out).is_ok() {
                    assert!(!out.is_empty() && !out.contains(&b'\n'));
                }
            }
        }
    }
});
