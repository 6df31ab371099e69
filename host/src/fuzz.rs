//! The crate root of `/fuzz`, not a module of this crate: what reads bytes that strangers wrote, and the types that it
//! needs. Depending on all of `tidemill` would compile wasmtime and librdkafka with the fuzzer's instruments.
//!
//! Modules are included as they are. Where one of them takes a plain type out of a module that would bring the rest
//! along, the type stands here once more, and a field that is missing fails the fuzzer's build.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "the rest of the crate uses it")]

pub mod config;
pub mod fault;
pub mod record;

mod planted;

/// `plugin.rs`, without WebAssembly.
pub mod plugin {
    pub mod fuzzed;
    pub mod validate;

    mod excerpt;
    mod merge;

    /// What `bindgen!` makes of the types of an output.
    pub mod wit {
        #[derive(Debug)]
        pub struct BytesColumnResult {
            pub data: Vec<u8>,
            pub ends: Vec<u32>,
        }
        #[derive(Debug)]
        pub struct HeaderColumnResult {
            pub ends: Vec<u32>,
            pub names: BytesColumnResult,
            pub contents: BytesColumnResult,
        }
        #[derive(Debug)]
        pub struct RecordError {
            pub input: u32,
            pub code: String,
            pub message: String,
        }
        #[derive(Debug)]
        pub struct Output {
            pub inputs: Vec<u32>,
            pub tables: Option<Vec<u16>>,
            pub values: Option<BytesColumnResult>,
            pub marks: Option<Vec<u8>>,
            pub keys: Option<BytesColumnResult>,
            pub timestamps: Option<Vec<i64>>,
            pub headers: Option<HeaderColumnResult>,
            pub errors: Vec<RecordError>,
        }
    }
}

/// `sink.rs`, without whoever sends.
pub mod sink {
    use std::sync::Arc;

    use bytes::Bytes;

    use crate::config::model::{StarRocks, TableModel};
    use crate::fault::Fault;

    #[derive(Debug)]
    pub struct Destination {
        pub cluster: Arc<StarRocks>,
        pub table: String,
        pub model: TableModel,
        pub key: Vec<String>,
    }

    #[derive(Debug, Clone)]
    pub struct Load {
        pub destination: Arc<Destination>,
        pub label: String,
        pub segments: Vec<Bytes>,
        pub bytes: u64,
        pub rows: u64,
        pub columns: Option<Arc<[String]>>,
        pub packed: Option<Packed>,
        pub fences: Vec<std::convert::Infallible>,
        pub body_sent: bool,
    }

    #[derive(Debug, Clone)]
    pub struct Packed {
        pub segments: Vec<Bytes>,
        pub bytes: u64,
    }

    impl Load {
        pub fn body(&self) -> &[Bytes] {
            self.packed.as_ref().map_or(&self.segments, |packed| &packed.segments)
        }
    }

    #[derive(Debug)]
    pub enum Outcome {
        Durable(Receipt),
        Refused(Fault),
        Overloaded(Fault, Scarce),
        Unsure(Fault),
        BadRows(Rejection),
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Scarce {
        Versions,
        Other,
    }

    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct Receipt {
        pub txn: Option<i64>,
        pub loaded_rows: Option<u64>,
        pub visible: bool,
    }

    #[derive(Debug)]
    pub struct Rejection {
        pub message: String,
        pub filtered_rows: Option<u64>,
        pub syntax: bool,
        pub error_log: Option<String>,
    }

    /// `sink/starrocks.rs`, as far as it is pure.
    pub mod starrocks {
        pub mod create_table;
        pub mod error_log;
        pub mod fuzzed;
        pub mod outcome;
        pub mod state;

        mod address;
        mod redirect;
    }
}

/// `source.rs`, without those that read.
pub mod source {
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Gathering {
        pub keys: bool,
        pub headers: bool,
        pub timestamps: bool,
        pub partitions: bool,
        pub line_feeds: bool,
    }

    /// `source/http.rs`: bodies.
    pub mod http {
        pub mod fuzzed;

        mod coding;
        mod records;
    }

    /// `source/postgres.rs`, as far as it is pure.
    pub mod postgres {
        pub mod copy_text;
        pub mod kind;
        pub mod lsn;
        pub mod pgoutput;
        pub mod table;
        pub mod value;

        mod scan;
    }
}
