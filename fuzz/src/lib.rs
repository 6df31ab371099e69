//! The decoders by their files and not by the crate `tidemill`: that would compile wasmtime and librdkafka
//! with the fuzzer's instruments. They depend on nothing but `thiserror`, and have to stay so.

/// `host/src/source.rs`, without Kafka.
#[path = "../../host/src/source"]
pub mod source {
    /// `host/src/source/postgres.rs`, as far as it is pure.
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
