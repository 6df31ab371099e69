//! The headers of a load, checked as the BE checks them (protocol reference §1.5).

use http::HeaderMap;
use std::time::Duration;

use super::compression::Compression;

/// What the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
}

/// The headers of one load that the sandbox acts on.
#[derive(Debug, Clone)]
pub(crate) struct LoadParams {
    pub(crate) format: Format,
    pub(crate) columns: Option<String>,
    pub(crate) jsonpaths: Option<String>,
    pub(crate) json_root: Option<String>,
    pub(crate) strip_outer_array: bool,
    pub(crate) ignore_json_size: bool,
    pub(crate) strict_mode: bool,
    pub(crate) max_filter_ratio: f64,
    pub(crate) timeout: Option<Duration>,
    pub(crate) partial_update: bool,
    pub(crate) merge_condition: Option<String>,
    pub(crate) column_separator: String,
    pub(crate) row_delimiter: String,
    pub(crate) skip_header: usize,
    pub(crate) trim_space: bool,
    /// The byte around fields, and the one before a character that is to be taken as it is.
    pub(crate) enclose: Option<u8>,
    pub(crate) escape: Option<u8>,
    pub(crate) compression: Option<Compression>,
}

const TIMEOUT_SECONDS_MAX: u64 = 259_200;

impl LoadParams {
    /// # Errors
    /// The `Message` of the refusal.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, String> {
        let get = |name: &str| text(headers, name);
        let (format, packed_csv) = format(headers)?;
        refuse_what_is_not_done(headers)?;
        let compression = Compression::from_headers(headers)?.or(packed_csv);
        Ok(Self {
            format,
            columns: get("columns"),
            jsonpaths: get("jsonpaths"),
            json_root: get("json_root"),
            strip_outer_array: is_true(get("strip_outer_array").as_deref()),
            ignore_json_size: is_true(get("ignore_json_size").as_deref()),
            strict_mode: boolean(
                get("strict_mode").as_deref(),
                "Invalid strict mode format. Must be bool type",
            )?,
            max_filter_ratio: get("max_filter_ratio").and_then(|ratio| ratio.parse().ok()).unwrap_or(0.0),
            timeout: get("timeout").map(|timeout| seconds(&timeout)).transpose()?,
            partial_update: boolean(
                get("partial_update").as_deref(),
                "Invalid partial update flag format. Must be bool type",
            )?,
            merge_condition: get("merge_condition"),
            column_separator: get("column_separator")
                .map_or_else(|| "\t".to_owned(), |text| delimiter(&text)),
            row_delimiter: get("row_delimiter").map_or_else(|| "\n".to_owned(), |text| delimiter(&text)),
            skip_header: get("skip_header")
                .map(|count| count.parse().map_err(|_| "Invalid csv load skip_header format".to_owned()))
                .transpose()?
                .unwrap_or(0),
            trim_space: boolean(
                get("trim_space").as_deref(),
                "Invalid trim space format. Must be bool type",
            )?,
            enclose: get("enclose").and_then(|text| text.bytes().next()),
            escape: get("escape").and_then(|text| text.bytes().next()),
            compression,
        })
    }
}

/// What the body is, and how it is packed if the format says that it is packed CSV.
fn format(headers: &HeaderMap) -> Result<(Format, Option<Compression>), String> {
    let Some(written) = text(headers, "format") else { return Ok((Format::Csv, None)) };
    let format = written.to_ascii_lowercase();
    match format.as_str() {
        "csv" => Ok((Format::Csv, None)),
        "json" => Ok((Format::Json, None)),
        "bzip2" => Err("the sandbox does not do this: format bzip2".to_owned()),
        packed => match Compression::of_csv_format(packed) {
            Some(compression) => Ok((Format::Csv, Some(compression))),
            None => Err(format!("unknown data format, format={written}")),
        },
    }
}

/// A header's value when it is set, not empty, and text.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = std::str::from_utf8(headers.get(name)?.as_bytes()).ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn refuse_what_is_not_done(headers: &HeaderMap) -> Result<(), String> {
    for name in ["where", "partitions", "temporary_partitions", "envelope"] {
        if text(headers, name).is_some() {
            return Err(format!("the sandbox does not do this: header {name}"));
        }
    }
    if is_true(text(headers, "enable_merge_commit").as_deref()) {
        return Err("the sandbox does not do this: header enable_merge_commit".to_owned());
    }
    Ok(())
}

fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn boolean(value: Option<&str>, complaint: &str) -> Result<bool, String> {
    match value {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok(true),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(complaint.to_owned()),
    }
}

/// A time-out header in seconds.
pub(crate) fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<u64>() {
        Ok(seconds) if (1..=TIMEOUT_SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => Err("Invalid timeout format".to_owned()),
    }
}

/// A separator with its escapes: `\t`, `\n`, `\x01` or `\\x01`, `\x0D0A`.
fn delimiter(written: &str) -> String {
    let written = written.replace("\\\\", "\\");
    if let Some(hex) = written.strip_prefix("\\x").or_else(|| written.strip_prefix("0x")) {
        let bytes: Option<Vec<u8>> = (0..hex.len())
            .step_by(2)
            .map(|at| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect();
        if let Some(text) = bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
            return text;
        }
    }
    written.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r")
}
