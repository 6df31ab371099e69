//! The headers of a load, checked as the BE checks them (protocol reference §1.5).

use http::HeaderMap;
use std::time::Duration;

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
}

const TIMEOUT_SECONDS_MAX: u64 = 259_200;

impl LoadParams {
    /// # Errors
    /// The `Message` of the refusal.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, String> {
        let get = |name: &str| text(headers, name);
        let format = match get("format").map(|format| format.to_ascii_lowercase()).as_deref() {
            None | Some("csv") => Format::Csv,
            Some("json") => Format::Json,
            Some("gzip" | "bzip2" | "lz4" | "deflate" | "zstd") => {
                return Err("the sandbox does not read compressed CSV".to_owned());
            }
            Some(_) => {
                let format = get("format").unwrap_or_default();
                return Err(format!("unknown data format, format={format}"));
            }
        };
        refuse_what_is_not_done(headers)?;
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
        })
    }
}

/// A header's value when it is set, not empty, and text.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = std::str::from_utf8(headers.get(name)?.as_bytes()).ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn refuse_what_is_not_done(headers: &HeaderMap) -> Result<(), String> {
    if headers.contains_key("content-encoding") && headers.contains_key("compression") {
        return Err("Only one of http header content-encoding and compression can be set".to_owned());
    }
    for name in [
        "compression",
        "content-encoding",
        "where",
        "partitions",
        "temporary_partitions",
        "envelope",
        "enclose",
        "escape",
    ] {
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
