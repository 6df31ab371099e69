//! The plugin as a component: the generated bindings, and the way from their types to ours and back.
//!
//! Every conversion moves vectors; no byte is copied here.

use crate::columns::{self, BatchError, BytesColumn, HeaderColumn, Rows};
use crate::instance::Instance;
use crate::log::Level;

/// The bindings that wit-bindgen makes of `wit/transform.wit`. Public for plugins that do without the rows of this
/// crate, and for [`crate::export!`].
#[expect(missing_docs, reason = "generated; the WIT file documents every item")]
#[allow(unsafe_code, reason = "generated: the canonical ABI passes addresses")]
#[allow(clippy::all, rust_2018_idioms, unreachable_pub, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        world: "transform",
        pub_export_macro: true,
        export_macro_name: "export_component",
        default_bindings_module: "tidemill_sdk::component::bindings",
    });
}

use bindings::exports::tidemill::transform::plugin as wit;
use bindings::tidemill::transform::{log as wit_log, types as wit_types};

/// Reads the exported configuration.
///
/// # Errors
///
/// What [`Instance::configure`] answers.
pub fn configure<T: crate::Transform>(config: &str) -> Result<(Instance<T>, wit::Descriptor), String> {
    crate::log::report_panics();
    let instance = Instance::configure(config)?;
    let wants = instance.wants();
    let flag = |wanted: bool, column| if wanted { column } else { wit_types::Columns::empty() };
    let flags = flag(wants.key, wit_types::Columns::KEY)
        | flag(wants.timestamp, wit_types::Columns::TIMESTAMP)
        | flag(wants.position, wit_types::Columns::POSITION)
        | flag(wants.headers, wit_types::Columns::HEADERS);
    let descriptor = wit::Descriptor { wants: flags, tables: instance.tables().to_vec() };
    Ok((instance, descriptor))
}

/// Runs the exported transform.
///
/// # Errors
///
/// What [`Instance::process`] answers, and a fatal one if the host never configured the instance.
pub fn process<T: crate::Transform>(
    instance: Option<&mut Instance<T>>,
    records: wit::Batch,
) -> Result<wit::Output, wit::BatchError> {
    let Some(instance) = instance else {
        return Err(wit::BatchError::Fatal("process was called before configure".to_owned()));
    };
    match instance.process(&batch(records)) {
        Ok(rows) => Ok(output(rows)),
        Err(BatchError::Retry(message)) => Err(wit::BatchError::Retry(message)),
        Err(BatchError::Fatal(message)) => Err(wit::BatchError::Fatal(message)),
    }
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Debug => wit_log::Level::Debug,
        Level::Info => wit_log::Level::Info,
        Level::Warn => wit_log::Level::Warn,
        Level::Error => wit_log::Level::Error,
    };
    wit_log::log(level, message);
}

fn batch(records: wit::Batch) -> columns::Batch {
    columns::Batch {
        source: records.source,
        values: bytes_in(records.values),
        marks: records.marks,
        keys: bytes_in(records.keys),
        timestamps: records.timestamps,
        partitions: records.partitions,
        offsets: records.offsets,
        headers: HeaderColumn {
            ends: records.headers.ends,
            names: bytes_in(records.headers.names),
            contents: bytes_in(records.headers.contents),
        },
    }
}

fn output(rows: Rows) -> wit::Output {
    wit::Output {
        inputs: rows.inputs,
        tables: rows.tables,
        values: rows.values.map(bytes_out),
        marks: rows.marks,
        keys: rows.keys.map(bytes_out),
        timestamps: rows.timestamps,
        headers: rows.headers.map(|headers| wit_types::HeaderColumn {
            ends: headers.ends,
            names: bytes_out(headers.names),
            contents: bytes_out(headers.contents),
        }),
        errors: rows
            .errors
            .into_iter()
            .map(|error| wit_types::RecordError {
                input: error.input,
                code: error.code,
                message: error.message,
            })
            .collect(),
    }
}

fn bytes_in(column: wit_types::BytesColumn) -> BytesColumn {
    BytesColumn { data: column.data, ends: column.ends }
}

fn bytes_out(column: BytesColumn) -> wit_types::BytesColumn {
    wit_types::BytesColumn { data: column.data, ends: column.ends }
}
