//! Write a Tidemill transform in Rust: one function per record, on top of the plugin contract's columns.
//!
//! The contract (`wit/transform.wit`) moves whole batches as columns, because that costs 10 ns a record where a list of
//! records costs 300. This crate gives the records back to you one by one, without copying them, and puts
//! your rows into columns again, returning only those that you touched:
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tidemill_sdk::{Output, Record, Reject, Setup, Transform};
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     least_celsius: f64,
//! }
//!
//! #[derive(Deserialize)]
//! struct Reading<'a> {
//!     sensor: &'a str,
//!     celsius: f64,
//! }
//!
//! #[derive(Serialize)]
//! struct Alarm<'a> {
//!     sensor: &'a str,
//!     fahrenheit: f64,
//! }
//!
//! struct Heat {
//!     config: Config,
//! }
//!
//! impl Transform for Heat {
//!     type Config = Config;
//!
//!     fn configure(config: Config, _setup: &mut Setup) -> Result<Self, String> {
//!         Ok(Self { config })
//!     }
//!
//!     fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject> {
//!         let reading: Reading<'_> = record.json()?; // not JSON: a dead letter with the code `parse`
//!         if reading.celsius < self.config.least_celsius {
//!             out.drop();
//!             return Ok(());
//!         }
//!         out.replace_json(&Alarm { sensor: reading.sensor, fahrenheit: reading.celsius * 1.8 + 32.0 })?;
//!         Ok(())
//!     }
//! }
//!
//! tidemill_sdk::export!(Heat);
//!
//! // Natively, with no host:
//! use tidemill_sdk::testing::Harness;
//! let mut heat = Harness::<Heat>::new(r#"{"least_celsius":30}"#).unwrap();
//! let answer = heat.run([r#"{"sensor":"a","celsius":35}"#, r#"{"sensor":"b","celsius":20}"#, "garbage"]);
//! assert_eq!(answer.values(), [r#"{"sensor":"a","fahrenheit":95.0}"#]);
//! assert_eq!(answer.rejects[0].1.code, "parse");
//! ```
//!
//! What a plugin remembers between records must be a cache and nothing else: Tidemill runs several instances, replaces
//! them as it likes, and gives the same records again after a crash.
//!
//! A component's memory comes from the standard allocator. One of free lists by size was tried: it saved 12 % where records
//! are read into `serde_json::Value`, 4 % with owned strings and nothing with borrowed ones, which is too little for
//! unsafe code. Borrowing saves a third.

mod columns;
#[cfg(target_family = "wasm")]
pub mod component;
mod instance;
pub mod json;
pub mod log;
mod output;
mod record;
mod reject;
mod setup;
pub mod testing;

pub use columns::{
    Batch, BatchError, BytesColumn, Columns, HeaderColumn, MARK_DELETE, MARK_KEY, MARK_VALUE, RecordError,
    Rows,
};
pub use instance::Instance;
pub use output::{Output, Row};
pub use record::Record;
pub use reject::{CODE_NO_TABLE, CODE_NO_VALUE, CODE_PARSE, Reject};
pub use setup::{Setup, TABLES_MAX, TableId};

/// A plugin.
pub trait Transform: Sized + 'static {
    /// What stands as `config` in the pipeline's file. Put `#[serde(deny_unknown_fields)]` on it, so that a mistyped
    /// key is found before anything runs; an error names the key.
    type Config: serde::de::DeserializeOwned;

    /// Called once for each instance, before any record: checks the configuration, asks for columns and declares
    /// tables. The same configuration must always ask for and declare the same.
    ///
    /// # Errors
    ///
    /// One sentence for the person who wrote the file: the key, what was expected, what stands there. The pipeline
    /// does not start.
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, String>;

    /// Called for each record, in the order of each partition. What it puts into `out` are the record's rows; if it puts
    /// none, the record is dropped.
    ///
    /// # Errors
    ///
    /// The record becomes a dead letter, and rows that it already had in `out` are taken back. Its neighbours are not touched.
    fn record(&mut self, record: Record<'_>, out: &mut Output<'_>) -> Result<(), Reject>;

    /// Called before the records of each batch, which all come from `source`.
    ///
    /// # Errors
    ///
    /// The whole batch fails; this is not meant for bad records.
    fn begin_batch(&mut self, source: &str) -> Result<(), BatchError> {
        let _ = source;
        Ok(())
    }
}

/// Makes the crate a Tidemill plugin: a component that exports the given [`Transform`]. Natively it does nothing, so
/// that tests and other programs can link the crate.
#[macro_export]
macro_rules! export {
    ($transform:ty) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the exported functions take addresses, as the canonical ABI says")]
        const _: () = {
            use $crate::component::bindings::exports::tidemill::transform::plugin as wit;

            ::std::thread_local! {
                /// One instance of the component is one plugin; it has one thread.
                static INSTANCE: ::std::cell::RefCell<::std::option::Option<$crate::Instance<$transform>>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            struct Exported;

            impl wit::Guest for Exported {
                fn configure(
                    config: ::std::string::String,
                ) -> ::std::result::Result<wit::Descriptor, ::std::string::String> {
                    let (instance, descriptor) = $crate::component::configure::<$transform>(&config)?;
                    INSTANCE.set(::std::option::Option::Some(instance));
                    ::std::result::Result::Ok(descriptor)
                }

                fn process(records: wit::Batch) -> ::std::result::Result<wit::Output, wit::BatchError> {
                    INSTANCE.with_borrow_mut(|instance| $crate::component::process(instance.as_mut(), records))
                }
            }

            $crate::component::bindings::export_component!(Exported with_types_in $crate::component::bindings);
        };
    };
}
