//! Bearer tokens: who may send.

use http::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::config::model::Secret;

/// The tokens of a listener; without any, everybody may send.
pub(super) struct Tokens {
    /// Digests, so that neither the time of a comparison nor its end tells a token's length.
    digests: Vec<[u8; 32]>,
}

/// Why a request may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// It names no bearer token.
    Missing,
    /// It names one that is not ours.
    Wrong,
}

impl Tokens {
    pub(super) fn new(tokens: &[Secret]) -> Tokens {
        Tokens { digests: tokens.iter().map(|token| digest(token.reveal().as_bytes())).collect() }
    }

    /// Whether a request with these headers may send.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        if self.digests.is_empty() {
            return Ok(());
        }
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let shown = values.next().and_then(|value| bearer(value.as_bytes()));
        let shown = digest(shown.ok_or(Denied::Missing)?);
        // A proxy may have looked at the other one.
        if values.next().is_some() {
            return Err(Denied::Wrong);
        }
        // Each token is compared to its end, whether or not one before it was right.
        let known = self.digests.iter().fold(Choice::from(0), |known, token| known | token.ct_eq(&shown));
        if bool::from(known) { Ok(()) } else { Err(Denied::Wrong) }
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// The token of `Bearer <token>` (RFC 6750, 2.1); the scheme's case does not matter.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(tokens: &[&str], shown: Option<&'static str>) -> Result<(), Denied> {
        let secrets: Vec<Secret> = tokens.iter().map(|token| Secret::new(*token)).collect();
        let mut headers = HeaderMap::new();
        if let Some(shown) = shown {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(shown));
        }
        Tokens::new(&secrets).check(&headers)
    }

    #[test]
    fn any_of_the_tokens_is_enough() {
        assert_eq!(check(&["one", "two"], Some("Bearer two")), Ok(()));
        assert_eq!(check(&["one", "two"], Some("bearer  one ")), Ok(()));
        assert_eq!(check(&["one", "two"], Some("Bearer on")), Err(Denied::Wrong));
        assert_eq!(check(&["one"], Some("Bearer one1")), Err(Denied::Wrong));
        assert_eq!(check(&["one"], Some("Bearer")), Err(Denied::Missing));
        assert_eq!(check(&["one"], Some("Basic b25lOg==")), Err(Denied::Missing));
        assert_eq!(check(&["one"], None), Err(Denied::Missing));
    }

    #[test]
    fn without_tokens_everybody_may_send() {
        assert_eq!(check(&[], None), Ok(()));
        assert_eq!(check(&[], Some("Bearer whatever")), Ok(()));
    }
}
