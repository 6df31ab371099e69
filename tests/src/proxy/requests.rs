//! Which requests pass on a connection to Kafka: each begins with its length and its kind.

/// Length and kind.
const HEAD_BYTES: usize = 6;
/// The kind counts in the length.
const KIND_BYTES: u32 = 2;

/// The kind of a request with records.
pub(super) const PRODUCE: i16 = 0;
/// The kind of a request that ends a transaction.
pub(super) const END_TXN: i16 = 26;

/// Follows the bytes of one connection from a client to a broker, from its begin on.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// What has come of the next request's head.
    head: Vec<u8>,
    /// What is still to come of the last one, in bytes.
    left: usize,
}

impl Requests {
    /// The kinds of the requests whose heads end in these bytes, in order.
    pub(super) fn kinds(&mut self, mut bytes: &[u8]) -> Vec<i16> {
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            let is_head = self.left == 0;
            let wanted = if is_head { HEAD_BYTES - self.head.len() } else { self.left };
            let (taken, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if !is_head {
                self.left -= taken.len();
                continue;
            }
            self.head.extend_from_slice(taken);
            if let &[a, b, c, d, high, low] = self.head.as_slice() {
                kinds.push(i16::from_be_bytes([high, low]));
                let left = u32::from_be_bytes([a, b, c, d]).saturating_sub(KIND_BYTES);
                self.left = usize::try_from(left).unwrap_or(usize::MAX);
                self.head.clear();
            }
        }
        kinds
    }
}

/// A request of a kind, with a body of zeros.
#[cfg(test)]
pub(super) fn request(kind: i16, body_bytes: u8) -> Vec<u8> {
    let mut bytes = (KIND_BYTES + u32::from(body_bytes)).to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.resize(bytes.len() + usize::from(body_bytes), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{END_TXN, PRODUCE, Requests, request};

    #[test]
    fn requests_are_told_apart_however_their_bytes_come() {
        let stream = [request(18, 30), request(PRODUCE, 200), request(END_TXN, 0), request(3, 1)].concat();
        for piece_bytes in 1..stream.len() {
            let mut requests = Requests::default();
            let kinds: Vec<i16> =
                stream.chunks(piece_bytes).flat_map(|piece| requests.kinds(piece)).collect();
            assert_eq!(kinds, [18, PRODUCE, END_TXN, 3], "in pieces of {piece_bytes} bytes");
        }
    }
}
