//! `Content-Encoding`: packed bytes → the body, never longer than the limit.

use std::io::{ErrorKind, Read};

use flate2::{Decompress, FlushDecompress, Status};

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    /// RFC 1952, also of several members.
    Gzip,
    /// RFC 1950, and the bare RFC 1951 that some clients send instead.
    Deflate,
    /// RFC 8878
    Zstd,
}

/// Why a body could not be unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// It is longer than the limit.
    TooLarge,
    /// It is truncated, or not what the header says.
    Broken(String),
    /// The byte budget is full.
    NoRoom,
}

/// Unpacked bytes are asked room for, and made, in steps of this.
const STEP_BYTES: usize = 64 << 10;
/// A Zstandard frame may ask for this much memory, as a power of two: 8 MiB, which RFC 8878 (3.1.1.1.2) says
/// that a decoder should have.
const WINDOW_LOG_MAX: u32 = 23;
const TRUNCATED: &str = "it ends too early";

impl Coding {
    /// The coding that a `Content-Encoding` names; none = one that is not known here.
    pub(super) fn named(name: &str) -> Option<Coding> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Coding::Identity),
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            "zstd" => Some(Coding::Zstd),
            _unknown => None,
        }
    }

    /// Unpacks at most `limit` bytes. `room` is told how many bytes there will be before they are made, and
    /// says whether there is room for them.
    pub(super) fn unpack(
        self,
        packed: &[u8],
        limit: usize,
        room: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Vec<u8>, Undone> {
        let mut body = Body { bytes: Vec::new(), limit, room };
        match self {
            Coding::Identity => body.pour(packed)?,
            Coding::Gzip => body.pour(flate2::bufread::MultiGzDecoder::new(packed))?,
            Coding::Deflate => body.inflate(packed)?,
            Coding::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(packed).map_err(|error| broken(&error))?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(|error| broken(&error))?;
                body.pour(decoder)?;
            }
        }
        Ok(body.bytes)
    }
}

/// The body so far.
struct Body<'a> {
    bytes: Vec<u8>,
    limit: usize,
    room: &'a mut dyn FnMut(u64) -> bool,
}

impl Body<'_> {
    /// Makes room for a step; returns how long the body may now become. One byte past the limit shows that it
    /// is passed.
    fn step(&mut self) -> Result<usize, Undone> {
        if self.bytes.len() > self.limit {
            return Err(Undone::TooLarge);
        }
        let upto = (self.bytes.len() + STEP_BYTES).min(self.limit + 1);
        if upto > self.bytes.capacity() {
            // Doubling would hold twice the limit at its end.
            let wanted = (self.bytes.capacity() * 2).clamp(upto, self.limit + 1);
            if !(self.room)(wanted as u64) {
                return Err(Undone::NoRoom);
            }
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        Ok(upto)
    }

    fn pour(&mut self, mut from: impl Read) -> Result<(), Undone> {
        loop {
            let filled = self.bytes.len();
            let upto = self.step()?;
            self.bytes.resize(upto, 0);
            let space = self.bytes.get_mut(filled..).unwrap_or_default();
            let read = from.read(space).map_err(|error| broken(&error));
            self.bytes.truncate(filled + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(());
            }
        }
    }

    /// flate2's readers take a truncated stream for a whole one, so the end is looked for here.
    fn inflate(&mut self, packed: &[u8]) -> Result<(), Undone> {
        let mut decompress = Decompress::new(is_zlib(packed));
        let mut rest = packed;
        loop {
            let upto = self.step()?;
            let filled = self.bytes.len();
            let (seen, made) = (decompress.total_in(), decompress.total_out());
            self.bytes.resize(upto, 0);
            let space = self.bytes.get_mut(filled..).unwrap_or_default();
            let status = decompress
                .decompress(rest, space, FlushDecompress::None)
                .map_err(|error| Undone::Broken(error.to_string()));
            let (seen, made) = (decompress.total_in() - seen, decompress.total_out() - made);
            self.bytes.truncate(filled + made as usize);
            rest = rest.get(seen as usize..).unwrap_or_default();
            match status? {
                Status::StreamEnd if rest.is_empty() => {
                    return if self.bytes.len() > self.limit { Err(Undone::TooLarge) } else { Ok(()) };
                }
                Status::StreamEnd => return Err(Undone::Broken("something follows its end".to_owned())),
                Status::Ok | Status::BufError if seen == 0 && made == 0 => {
                    return Err(Undone::Broken(TRUNCATED.to_owned()));
                }
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

/// Whether the two bytes of a zlib header are there (RFC 1950, 2.2).
fn is_zlib(packed: &[u8]) -> bool {
    match packed {
        [method, flags, ..] => {
            method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31)
        }
        _shorter => false,
    }
}

fn broken(error: &std::io::Error) -> Undone {
    match error.kind() {
        ErrorKind::UnexpectedEof => Undone::Broken(TRUNCATED.to_owned()),
        _other => Undone::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn packed(coding: Coding, body: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Identity => body.to_vec(),
            Coding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).expect("a vector takes everything");
                encoder.finish().expect("a vector takes everything")
            }
            Coding::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).expect("a vector takes everything");
                encoder.finish().expect("a vector takes everything")
            }
            Coding::Zstd => zstd::encode_all(body, 3).expect("a vector takes everything"),
        }
    }

    fn unpack(coding: Coding, packed: &[u8]) -> Result<Vec<u8>, Undone> {
        coding.unpack(packed, LIMIT, &mut |_| true)
    }

    const ALL: [Coding; 4] = [Coding::Identity, Coding::Gzip, Coding::Deflate, Coding::Zstd];

    #[test]
    fn each_coding_is_undone() {
        for coding in ALL {
            for length in [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 300_000, LIMIT] {
                let body: Vec<u8> = (0..length).map(|place| (place * place / 7) as u8).collect();
                assert!(unpack(coding, &packed(coding, &body)) == Ok(body), "{coding:?} {length}");
            }
        }
        let bare = {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(b"{\"a\":1}").expect("a vector takes everything");
            encoder.finish().expect("a vector takes everything")
        };
        assert_eq!(unpack(Coding::Deflate, &bare).as_deref(), Ok(&b"{\"a\":1}"[..]));
        let twice = [packed(Coding::Gzip, b"a\n"), packed(Coding::Gzip, b"b\n")].concat();
        assert_eq!(unpack(Coding::Gzip, &twice).as_deref(), Ok(&b"a\nb\n"[..]));
    }

    #[test]
    fn a_body_that_is_cut_short_is_broken_wherever_it_is_cut() {
        let body: Vec<u8> = (0..5_000_u32).flat_map(|number| number.to_le_bytes()).collect();
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let whole = packed(coding, &body);
            for length in (1..whole.len()).step_by(97).chain([whole.len() - 1]) {
                let said = unpack(coding, &whole[..length]);
                assert!(
                    matches!(said, Err(Undone::Broken(_))),
                    "{coding:?} {length}: {:?}",
                    said.map(|b| b.len())
                );
            }
        }
    }

    #[test]
    fn what_is_not_packed_is_broken() {
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let said = unpack(coding, b"{\"a\":1}");
            assert!(matches!(said, Err(Undone::Broken(_))), "{coding:?} {said:?}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 64 << 20];
        for coding in ALL {
            let bomb = packed(coding, &zeros);
            let mut most = 0;
            let said = coding.unpack(&bomb, LIMIT, &mut |bytes| {
                most = most.max(bytes);
                true
            });
            assert_eq!(said, Err(Undone::TooLarge), "{coding:?}");
            assert!(most <= LIMIT as u64 + 1, "{coding:?} asked for {most}");
            assert_eq!(coding.unpack(&bomb, LIMIT, &mut |bytes| bytes < 200_000), Err(Undone::NoRoom));
        }
    }

    #[test]
    fn codings_are_known_by_name() {
        assert_eq!(Coding::named(" GZIP "), Some(Coding::Gzip));
        assert_eq!(Coding::named("identity"), Some(Coding::Identity));
        assert_eq!(Coding::named("br"), None);
    }
}
