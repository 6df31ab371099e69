//! Finds bytes in bulk.

/// Bytes that are looked at together: one vector register.
const BLOCK_BYTES: usize = 16;

/// Place of the first byte that is `wanted`.
#[inline]
pub(super) fn find(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    for (index, block) in blocks.iter().enumerate() {
        let hits = hits(block, &wanted);
        if hits != 0 {
            return Some(index * BLOCK_BYTES + first(hits));
        }
    }
    let hits = hits(&padded(rest), &wanted);
    let within = if hits == 0 { BLOCK_BYTES } else { first(hits) };
    (within < rest.len()).then(|| bytes.len() - rest.len() + within)
}

/// Calls `found` with the place of each byte that is `wanted`, in order.
#[inline]
pub(super) fn each(bytes: &[u8], wanted: impl Fn(u8) -> bool, mut found: impl FnMut(usize)) {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    for (index, block) in blocks.iter().enumerate() {
        let mut hits = hits(block, &wanted);
        while hits != 0 {
            found(index * BLOCK_BYTES + first(hits));
            hits &= !(0xff << (first(hits) * 8));
        }
    }
    let mut hits = hits(&padded(rest), &wanted);
    while hits != 0 && first(hits) < rest.len() {
        found(bytes.len() - rest.len() + first(hits));
        hits &= !(0xff << (first(hits) * 8));
    }
}

/// Whether all bytes are `wanted`.
#[inline]
pub(super) fn all(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> bool {
    find(bytes, |byte| !wanted(byte)).is_none()
}

/// A word of which those bytes are set whose place holds a byte that is `wanted`. No early way out, so that the
/// compiler makes vector instructions of it; of `block.map(…)` it does not.
#[inline(always)]
fn hits(block: &[u8; BLOCK_BYTES], wanted: &impl Fn(u8) -> bool) -> u128 {
    let mut hits = [0; BLOCK_BYTES];
    for (hit, byte) in hits.iter_mut().zip(block) {
        *hit = if wanted(*byte) { 0xff } else { 0 };
    }
    u128::from_le_bytes(hits)
}

/// Place of the first byte that is set.
#[inline]
fn first(hits: u128) -> usize {
    (hits.trailing_zeros() / 8) as usize
}

/// The last bytes as a block; what is behind them is nobody's.
#[inline]
fn padded(rest: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..rest.len()].copy_from_slice(rest);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_found_wherever_it_stands() {
        for length in 0..50 {
            let mut bytes = vec![b'a'; length];
            // What fills up the last block counts for nothing.
            assert_eq!(find(&bytes, |byte| byte != b'a'), None);
            assert!(all(&bytes, |byte| byte == b'a'));
            for place in (0..length).rev() {
                bytes[place] = b'x';
                assert_eq!(find(&bytes, |byte| byte == b'x'), Some(place), "{length}");
                assert!(!all(&bytes, |byte| byte == b'a'));
            }
        }
    }

    #[test]
    fn each_is_found_in_order() {
        for length in 0..50_usize {
            for step in 1..20 {
                let wanted = |place: &usize| place.is_multiple_of(step);
                let bytes: Vec<u8> = (0..length).map(|place| u8::from(!wanted(&place))).collect();
                let mut places = Vec::new();
                each(&bytes, |byte| byte == 0, |place| places.push(place));
                assert_eq!(places, (0..length).filter(wanted).collect::<Vec<_>>(), "{length} by {step}");
            }
        }
    }
}
