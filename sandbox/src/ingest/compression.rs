//! Compressed bodies (protocol reference §1.5): the header `compression` or `content-encoding`, or for
//! CSV the format itself.

use http::HeaderMap;
use std::io::Read;

use super::params::text;

/// A compression that the sandbox reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Deflate,
    Lz4Frame,
    Zstd,
}

/// Unpacked bytes of one body: what a BE would refuse for its memory anyway.
const UNPACKED_BYTES_MAX: u64 = 2 << 30;

impl Compression {
    /// What the headers name, if they name one.
    ///
    /// # Errors
    /// The `Message` of the refusal.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, String> {
        let named = match (text(headers, "content-encoding"), text(headers, "compression")) {
            (Some(_), Some(_)) => {
                return Err("Only one of http header content-encoding and compression can be set".to_owned());
            }
            (Some(named), None) | (None, Some(named)) => named,
            (None, None) => return Ok(None),
        };
        match named.to_ascii_uppercase().as_str() {
            "NO_COMPRESSION" => Ok(None),
            "GZIP" => Ok(Some(Self::Gzip)),
            "DEFLATE" => Ok(Some(Self::Deflate)),
            "LZ4_FRAME" => Ok(Some(Self::Lz4Frame)),
            "ZSTD" => Ok(Some(Self::Zstd)),
            "BZIP2" => Err("the sandbox does not do this: compression BZIP2".to_owned()),
            _ => Err(format!("unsupported compression type: {named}")),
        }
    }

    /// What a `format` of compressed CSV says.
    pub(crate) fn of_csv_format(format: &str) -> Option<Self> {
        match format {
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "lz4" => Some(Self::Lz4Frame),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Unpacks the first frame of `packed`. Like a BE, it ignores what follows that frame.
    ///
    /// # Errors
    /// The `Message` for a body that is not what the header says.
    pub(crate) fn unpack(self, packed: &[u8]) -> Result<Vec<u8>, String> {
        let mut unpacked = Vec::new();
        let read = match self {
            Self::Gzip => read_capped(flate2::bufread::GzDecoder::new(packed), &mut unpacked),
            Self::Deflate => read_capped(flate2::bufread::ZlibDecoder::new(packed), &mut unpacked),
            Self::Lz4Frame => read_capped(lz4_flex::frame::FrameDecoder::new(packed), &mut unpacked),
            Self::Zstd => match zstd::stream::read::Decoder::with_buffer(packed) {
                Ok(decoder) => read_capped(decoder.single_frame(), &mut unpacked),
                Err(error) => Err(error),
            },
        };
        read.map_err(|error| format!("{self:?} decompress error: {error}"))?;
        if unpacked.len() as u64 > UNPACKED_BYTES_MAX {
            return Err(format!("Memory of load exceed limit. Limit: {UNPACKED_BYTES_MAX}"));
        }
        Ok(unpacked)
    }
}

fn read_capped(from: impl Read, into: &mut Vec<u8>) -> std::io::Result<()> {
    from.take(UNPACKED_BYTES_MAX + 1).read_to_end(into).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::Compression;
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn names_are_read_without_regard_to_case() {
        let check = |name: &'static str, value: &'static str, expected: Result<Option<Compression>, &str>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let found = Compression::from_headers(&headers);
            assert_eq!(found, expected.map_err(str::to_owned), "{name}: {value}");
        };
        check("compression", "lz4_frame", Ok(Some(Compression::Lz4Frame)));
        check("content-encoding", "Zstd", Ok(Some(Compression::Zstd)));
        check("compression", "snappy", Err("unsupported compression type: snappy"));
        check("other", "gzip", Ok(None));
    }
}
