//! A load's body as it is sent: rows as CSV and compressed, if the file says so. Made once for all attempts
//! of a load, on a blocking thread, in one pass: there is never a copy between CSV and compression.

use std::sync::Arc;

use super::compress;
use super::csv::{CsvWriter, NotWritten};
use super::request::takes_ops;
use crate::config::model::{Compression, RowFormat};
use crate::fault::Fault;
use crate::sink::{Load, Packed, Rejection};

/// Why a body could not be made.
#[derive(Debug)]
pub(super) enum Unprepared {
    /// A row cannot be sent in this format.
    BadRow(Rejection),
    /// A person is needed.
    Halt(Fault),
}

/// Gives `load` the body that is sent, if that is not the rows as they are and it has none yet. The load's
/// own segments stay as they are.
pub(super) async fn prepare(load: &mut Load) -> Result<(), Unprepared> {
    let cluster = &load.destination.cluster;
    let (format, compression) = (cluster.format, cluster.compression);
    if load.packed.is_some() || (format == RowFormat::Json && compression == Compression::None) {
        return Ok(());
    }
    let columns: Arc<[String]> = match &load.columns {
        Some(columns) => Arc::clone(columns),
        None => cluster.columns.as_slice().into(),
    };
    let (ops, segments) = (takes_ops(load.destination.model), load.segments.clone());
    let preparing = tokio::task::spawn_blocking(move || match format {
        RowFormat::Json => Ok(compress::compress(compression, &segments)?),
        RowFormat::Csv => compress::packed(compression, |into| {
            let mut writer = CsvWriter::new(columns, ops);
            segments.iter().try_for_each(|segment| writer.write_segment(segment, into))
        }),
    });
    let failed = || {
        let hint =
            "nothing was loaded; set compression = \"none\" in [sink.starrocks], and report this defect";
        Fault::halt(format!("cannot prepare the body of load {}", load.label), hint)
    };
    let segments = match preparing.await {
        Ok(Ok(segments)) => segments,
        Ok(Err(NotWritten::Row(row))) => {
            let message = format!("a row cannot be sent as CSV: {row}");
            let (filtered_rows, syntax, error_log) = (Some(0), false, None);
            return Err(Unprepared::BadRow(Rejection { message, filtered_rows, syntax, error_log }));
        }
        Ok(Err(NotWritten::Io(error))) => return Err(Unprepared::Halt(failed().caused_by(error))),
        Err(panic) => return Err(Unprepared::Halt(failed().caused_by(panic))),
    };
    let bytes = segments.iter().map(|piece| piece.len() as u64).sum();
    load.packed = Some(Packed { segments, bytes });
    Ok(())
}
