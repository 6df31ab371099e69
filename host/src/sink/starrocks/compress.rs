//! Compressed bodies. Pure, and slow: not for the runtime.
//!
//! The result is a single frame (gzip: one member), because a BE stops unpacking JSON at the end of the
//! first one (`CompressedStreamLoadPipeReader`, reference/starrocks-load-protocol.md §1.5); it is kept in
//! pieces of [`PIECE_BYTES`], not in one growing vector.

use std::io::{self, Write};

use bytes::Bytes;

use crate::config::model::Compression;

/// Length of all pieces but the last.
const PIECE_BYTES: usize = 256 << 10;
/// zstd's fastest of the usual levels: rows are sent once and unpacked once.
const ZSTD_LEVEL: i32 = 1;

/// The value of Stream Load's header `compression`; none for a body that is sent as it is.
pub(super) fn header(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Lz4 => Some("lz4_frame"),
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

/// `segments` behind one another as one compressed frame; with [`Compression::None`] a copy of them.
///
/// # Errors
/// What the compressor says; memory takes all that is written.
pub fn compress(compression: Compression, segments: &[Bytes]) -> io::Result<Vec<Bytes>> {
    packed(compression, |into| segments.iter().try_for_each(|segment| into.write_all(segment)))
}

/// What `write` writes, as one compressed frame.
pub(super) fn packed<E: From<io::Error>>(
    compression: Compression,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<Vec<Bytes>, E> {
    match compression {
        Compression::None => {
            let mut pieces = Pieces::default();
            write(&mut pieces)?;
            Ok(pieces.finish())
        }
        Compression::Lz4 => {
            let frame = lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max1MB);
            let mut packer = lz4_flex::frame::FrameEncoder::with_frame_info(frame, Pieces::default());
            write(&mut packer)?;
            Ok(packer.finish().map_err(io::Error::other)?.finish())
        }
        Compression::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Pieces::default(), flate2::Compression::fast());
            write(&mut packer)?;
            Ok(packer.finish()?.finish())
        }
        Compression::Zstd => {
            let mut packer = zstd::Encoder::new(Pieces::default(), ZSTD_LEVEL)?;
            write(&mut packer)?;
            Ok(packer.finish()?.finish())
        }
    }
}

/// Takes bytes into pieces of one length.
#[derive(Debug, Default)]
struct Pieces {
    full: Vec<Bytes>,
    open: Vec<u8>,
}

impl Pieces {
    fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            // The last piece keeps no more memory than it needs.
            self.open.shrink_to_fit();
            self.full.push(self.open.into());
        }
        self.full
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.open.capacity() == 0 {
            self.open.reserve_exact(PIECE_BYTES);
        }
        let room = PIECE_BYTES - self.open.len();
        let taken = &bytes[..room.min(bytes.len())];
        self.open.extend_from_slice(taken);
        if self.open.len() == PIECE_BYTES {
            self.full.push(std::mem::take(&mut self.open).into());
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unpack(compression: Compression, packed: &[u8]) -> Vec<u8> {
        let mut unpacked = Vec::new();
        match compression {
            Compression::None => unpacked.extend_from_slice(packed),
            Compression::Lz4 => {
                lz4_flex::frame::FrameDecoder::new(packed).read_to_end(&mut unpacked).expect("lz4");
            }
            // The plain decoder stops at the first member, as a BE does.
            Compression::Gzip => {
                flate2::read::GzDecoder::new(packed).read_to_end(&mut unpacked).expect("gzip");
            }
            Compression::Zstd => {
                let decoder = zstd::Decoder::with_buffer(packed).expect("zstd");
                decoder.single_frame().read_to_end(&mut unpacked).expect("zstd");
            }
        }
        unpacked
    }

    #[test]
    fn all_segments_come_back_out_of_the_first_frame() {
        let mut state = 1_u64;
        let mut noise = |bytes: usize| -> Vec<u8> {
            (0..bytes)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect()
        };
        let bodies = [
            vec![],
            vec![Bytes::from_static(b"{\"id\":1}\n")],
            vec![Bytes::from(noise(3 * PIECE_BYTES)), Bytes::new(), Bytes::from(noise(7)), "{}\n".into()],
            vec![Bytes::from(vec![b'a'; 9 << 20]); 2],
        ];
        for compression in [Compression::None, Compression::Lz4, Compression::Gzip, Compression::Zstd] {
            for body in &bodies {
                let packed = compress(compression, body).expect("memory takes all");
                if compression != Compression::None {
                    let full = packed.split_last().map_or(&packed[..0], |(_, full)| full);
                    assert!(full.iter().all(|piece| piece.len() == PIECE_BYTES));
                }
                assert!(unpack(compression, &packed.concat()) == body.concat(), "{compression:?}");
            }
        }
    }
}
