//! Reads numbers, names and sized bytes off a message, and never past its end.

use super::DecodeError;

/// A place in a message.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes between `start`, which was [`Self::at`] before, and here.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.at).unwrap_or_default()
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn short(&self, expected: &'static str) -> DecodeError {
        DecodeError::Short { at: self.at, expected }
    }

    #[inline]
    pub(super) fn peek(&self, expected: &'static str) -> Result<u8, DecodeError> {
        self.rest().first().copied().ok_or_else(|| self.short(expected))
    }

    #[inline]
    pub(super) fn byte(&mut self, expected: &'static str) -> Result<u8, DecodeError> {
        let byte = self.peek(expected)?;
        self.at += 1;
        Ok(byte)
    }

    /// Reads `wanted` and nothing else.
    pub(super) fn expect(&mut self, wanted: u8, expected: &'static str) -> Result<(), DecodeError> {
        if self.peek(expected)? != wanted {
            return Err(self.unknown(expected));
        }
        self.at += 1;
        Ok(())
    }

    /// The error for the byte that is next.
    pub(super) fn unknown(&self, expected: &'static str) -> DecodeError {
        match self.rest().first() {
            Some(found) => DecodeError::Byte { at: self.at, found: *found, expected },
            None => self.short(expected),
        }
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = *self.rest().first_chunk().ok_or_else(|| self.short(expected))?;
        self.at += N;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, expected: &'static str) -> Result<u32, DecodeError> {
        self.array(expected).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, expected: &'static str) -> Result<i32, DecodeError> {
        self.array(expected).map(i32::from_be_bytes)
    }

    /// A count of 16 bits.
    pub(super) fn count(&mut self, expected: &'static str) -> Result<u16, DecodeError> {
        let at = self.at;
        let found = i16::from_be_bytes(self.array(expected)?);
        u16::try_from(found).map_err(|_| DecodeError::Negative { at, found: found.into(), expected })
    }

    /// A length or count of 32 bits.
    #[inline]
    pub(super) fn length(&mut self, expected: &'static str) -> Result<usize, DecodeError> {
        let at = self.at;
        let found = self.i32(expected)?;
        usize::try_from(found).map_err(|_| DecodeError::Negative { at, found, expected })
    }

    /// A length of 32 bits and as many bytes.
    #[inline]
    pub(super) fn sized(&mut self, expected: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.length(expected)?;
        let bytes = self.rest().get(..length).ok_or_else(|| self.short(expected))?;
        self.at += length;
        Ok(bytes)
    }

    /// Text that ends with a zero byte.
    pub(super) fn name(&mut self, expected: &'static str) -> Result<&'a str, DecodeError> {
        let rest = self.rest();
        let length = rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.short(expected))?;
        let name = std::str::from_utf8(&rest[..length])
            .map_err(|_| DecodeError::NotUtf8 { at: self.at, expected })?;
        self.at += length + 1;
        Ok(name)
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.rest().is_empty() { Ok(()) } else { Err(DecodeError::Long { at: self.at }) }
    }
}
