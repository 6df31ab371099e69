//! Where a request goes: scheme, host and port, without user info, path or query.

use std::fmt;

use http::Uri;
use http::uri::Scheme;

/// An HTTP end point. Prints as `http://host:port`, never with credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    /// TLS or not.
    pub(super) https: bool,
    /// Host in lower case; IPv6 in brackets.
    pub(super) host: String,
    /// Port, always explicit.
    pub(super) port: u16,
}

impl Address {
    /// The end point and the path with query of an absolute `http` or `https` URL; none for anything else.
    pub(super) fn split(url: &str) -> Option<(Self, String)> {
        let uri: Uri = url.trim().parse().ok()?;
        let https = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTP => false,
            scheme if *scheme == Scheme::HTTPS => true,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Some((Self { https, host, port }, path.to_owned()))
    }

    /// `host:port`: for `Host` headers and lists.
    pub(super) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether the host means "this machine" to whoever reads it.
    pub(super) fn is_local(&self) -> bool {
        self.host == "localhost" || self.host == "[::1]" || self.host.starts_with("127.")
    }

    /// What a connector dials. The parts came out of a URI or a checked file, so this succeeds; an
    /// error is passed on all the same.
    pub(super) fn uri(&self) -> Result<Uri, http::Error> {
        let scheme = if self.https { Scheme::HTTPS } else { Scheme::HTTP };
        Uri::builder().scheme(scheme).authority(self.authority()).path_and_query("/").build()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", if self.https { "https" } else { "http" }, self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_is_left_of_a_url_without_secrets_and_path() {
        let check = |url: &str, address: &str, path: &str| {
            let (found, rest) = Address::split(url).expect(url);
            assert_eq!((found.to_string().as_str(), rest.as_str()), (address, path), "{url}");
        };
        check("http://FE:8030", "http://fe:8030", "/");
        check(
            "http://root:secret@be1:8040/api/d/t/_stream_load?a=b",
            "http://be1:8040",
            "/api/d/t/_stream_load?a=b",
        );
        check("https://fe.example", "https://fe.example:443", "/");
        check("http://[::1]:8040/x", "http://[::1]:8040", "/x");
        for bad in ["fe:8030", "/api/d/t", "ftp://fe:21/", "http://", ""] {
            assert_eq!(Address::split(bad), None, "{bad:?}");
        }
    }
}
