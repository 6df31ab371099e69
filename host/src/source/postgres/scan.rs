//! Finds bytes in bulk.

/// Bytes that are looked at together: one vector register.
const BLOCK_BYTES: usize = 16;

/// Place of the first byte that is `wanted`.
#[inline]
pub(super) fn find(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    for (index, block) in blocks.iter().enumerate() {
        // No early way out within a block, so that the compiler makes vector instructions of it.
        let any = block.iter().fold(0, |any, byte| any | u8::from(wanted(*byte)));
        if any != 0 {
            let within = block.iter().position(|byte| wanted(*byte)).unwrap_or_default();
            return Some(index * BLOCK_BYTES + within);
        }
    }
    let within = rest.iter().position(|byte| wanted(*byte))?;
    Some(bytes.len() - rest.len() + within)
}

/// Whether all bytes are `wanted`.
#[inline]
pub(super) fn all(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> bool {
    find(bytes, |byte| !wanted(byte)).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_found_wherever_it_stands() {
        for length in 0..50 {
            let mut bytes = vec![b'a'; length];
            assert_eq!(find(&bytes, |byte| byte == b'x'), None);
            assert!(all(&bytes, |byte| byte == b'a'));
            for place in (0..length).rev() {
                bytes[place] = b'x';
                assert_eq!(find(&bytes, |byte| byte == b'x'), Some(place), "{length}");
                assert!(!all(&bytes, |byte| byte == b'a'));
            }
        }
    }
}
