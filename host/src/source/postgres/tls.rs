//! TLS as libpq's `sslmode` means it, by rustls and ring.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hyper_rustls::ConfigBuilderExt;
use pgwire_replication::{SslMode, TlsConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use crate::config::model::{PostgresTls, TlsMode};
use crate::fault::Fault;

const HINT: &str = "mend [source.postgres.tls]";

/// Where systems keep their authorities in one file. pgwire-replication knows only Mozilla's list and files.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// How connections to one server are protected.
#[derive(Debug, Clone)]
pub struct TlsPolicy {
    mode: TlsMode,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    client: Arc<ClientConfig>,
    /// A name in the server's certificate, learnt in a handshake of `verify-ca`.
    presented: Arc<OnceLock<String>>,
}

impl TlsPolicy {
    /// Reads the files; none if the mode is `disable`.
    ///
    /// As in libpq, `require` with an authority given is `verify-ca`, and `verify-ca` needs one: that some
    /// public authority knows the server says nothing unless the name is looked at too.
    ///
    /// # Errors
    /// `Halt` for files that cannot be read or do not fit.
    pub fn new(tls: &PostgresTls) -> Result<Option<TlsPolicy>, Fault> {
        let mode = match tls.mode {
            TlsMode::Disable => return Ok(None),
            TlsMode::Require if tls.files.ca.is_some() => TlsMode::VerifyCa,
            mode @ (TlsMode::Prefer | TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull) => mode,
        };
        let identity = match (&tls.files.certificate, &tls.files.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(Fault::halt("the client certificate has no key", HINT)),
            (None, Some(_)) => return Err(Fault::halt("the client key has no certificate", HINT)),
        };
        let presented = Arc::new(OnceLock::new());
        let ca = tls.files.ca.clone();
        let client = client_config(mode, ca.as_deref(), identity.as_ref(), &presented)?;
        Ok(Some(TlsPolicy { mode, ca, identity, client: Arc::new(client), presented }))
    }

    /// Whether a server without TLS is accepted.
    pub fn is_optional(&self) -> bool {
        self.mode == TlsMode::Prefer
    }

    /// For a handshake.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// The same policy for the replication client, which has its own TLS code.
    ///
    /// Its `verify-ca` still looks at the name, and its `verify-full` refuses addresses unless they are given as the
    /// name (postgres-cdc.md §1.3): so it is told the name that the certificate was seen to have, which is why
    /// a connection of our own should come first.
    ///
    /// # Errors
    /// `Halt` for `verify-ca` and a certificate of which no name is known.
    pub fn for_replication(&self, host: &str) -> Result<TlsConfig, Fault> {
        let mode = match self.mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require => SslMode::Require,
            TlsMode::VerifyCa => SslMode::VerifyCa,
            TlsMode::VerifyFull => SslMode::VerifyFull,
        };
        let name = match self.mode {
            TlsMode::VerifyCa => match self.presented.get() {
                Some(name) if name.is_empty() => {
                    return Err(Fault::halt(
                        "the server's certificate has no subjectAltName, which the replication connection needs",
                        "give the server a certificate with a subjectAltName, or set mode = \"require\" without `ca` \
                         in [source.postgres.tls]",
                    ));
                }
                name => name.cloned(),
            },
            TlsMode::VerifyFull => host.parse::<IpAddr>().is_ok().then(|| host.to_owned()),
            TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => None,
        };
        let (certificate, key) = self.identity.clone().unzip();
        Ok(TlsConfig {
            mode,
            ca_pem_path: self.ca.clone().or_else(|| system_bundle().filter(|_| mode.verifies_certificate())),
            sni_hostname: name,
            client_cert_pem_path: certificate,
            client_key_pem_path: key,
        })
    }
}

fn system_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(SYSTEM_BUNDLES.map(PathBuf::from)).find(|path| path.is_file())
}

fn client_config(
    mode: TlsMode,
    ca: Option<&Path>,
    identity: Option<&(PathBuf, PathBuf)>,
    presented: &Arc<OnceLock<String>>,
) -> Result<ClientConfig, Fault> {
    // Two providers are compiled in, so the process has no default one.
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::halt("cannot set up TLS", HINT).caused_by(error))?;
    let builder = match (mode, ca) {
        (TlsMode::VerifyFull, Some(ca)) => builder.with_root_certificates(roots(ca)?),
        (TlsMode::VerifyFull, None) => builder.with_native_roots().map_err(|error| {
            Fault::halt("cannot load the system's certificate authorities", CA_HINT).caused_by(error)
        })?,
        (TlsMode::VerifyCa, Some(ca)) => {
            let roots = Arc::new(roots(ca)?);
            let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| Fault::halt("cannot set up verify-ca", HINT).caused_by(error))?;
            let verifier = ChainOnly { inner, presented: Arc::clone(presented) };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        (TlsMode::VerifyCa, None) => {
            return Err(Fault::halt("verify-ca has no certificate authority to verify against", CA_HINT));
        }
        (TlsMode::Disable | TlsMode::Prefer | TlsMode::Require, _) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anything { provider }))
        }
    };
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate, "the client certificate")?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        Fault::halt(format!("cannot read the client key {}", key.display()), HINT).caused_by(error)
    })?;
    builder.with_client_auth_cert(chain, key).map_err(|error| {
        Fault::halt("the client certificate and its key cannot be used", HINT).caused_by(error)
    })
}

const CA_HINT: &str =
    "set `ca` in [source.postgres.tls] to a PEM file with the authority that signed the server's certificate";

fn roots(path: &Path) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "the certificate authority")? {
        roots.add(certificate).map_err(|error| {
            let what = format!("cannot use the certificate authority {}", path.display());
            Fault::halt(what, CA_HINT).caused_by(error)
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(Fault::halt(format!("no certificate in {}", path.display()), HINT))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => {
            Err(Fault::halt(format!("cannot read {what} {}", path.display()), HINT).caused_by(error))
        }
    }
}

/// `verify-ca`: a known authority signed the certificate, for whatever name.
#[derive(Debug)]
struct ChainOnly {
    inner: Arc<WebPkiServerVerifier>,
    presented: Arc<OnceLock<String>>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        // The chain is looked at before the name, so only the name was wrong then.
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            Ok(verified) => {
                let _ = self.presented.set(server_name.to_str().into_owned());
                Ok(verified)
            }
            Err(TlsError::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented, ..
            })) => {
                let name = presented.iter().find_map(|name| a_name_within(name)).unwrap_or_default();
                let _ = self.presented.set(name);
                Ok(ServerCertVerified::assertion())
            }
            Err(TlsError::InvalidCertificate(CertificateError::NotValidForName)) => {
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A name for which a certificate is good, of what rustls tells of its names: `DnsName("*.example.com")`.
fn a_name_within(presented: &str) -> Option<String> {
    let inner = presented.split_once('(')?.1.strip_suffix(')')?.trim_matches('"');
    let name = match inner.strip_prefix("*.") {
        Some(domain) => format!("tidemill.{domain}"),
        None => inner.to_owned(),
    };
    ServerName::try_from(name.as_str()).is_ok().then_some(name)
}

/// `prefer` and `require`: protection from listeners, not from impostors.
#[derive(Debug)]
struct Anything {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Tls;

    #[test]
    fn a_name_is_found_in_what_rustls_tells() {
        assert_eq!(a_name_within("DnsName(\"db.example.com\")"), Some("db.example.com".to_owned()));
        assert_eq!(a_name_within("DnsName(\"*.example.com\")"), Some("tidemill.example.com".to_owned()));
        assert_eq!(a_name_within("IpAddress(10.0.0.1)"), Some("10.0.0.1".to_owned()));
        assert_eq!(a_name_within("DirectoryName"), None);
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let files = |ca: Option<&str>, certificate: Option<&str>, key: Option<&str>| Tls {
            ca: ca.map(PathBuf::from),
            certificate: certificate.map(PathBuf::from),
            key: key.map(PathBuf::from),
        };
        let check = |mode, files, expected: &str| {
            let fault = TlsPolicy::new(&PostgresTls { mode, files }).expect_err(expected);
            assert!(fault.story().contains(expected), "{}", fault.story());
        };
        check(TlsMode::VerifyCa, files(None, None, None), "verify-ca has no certificate authority");
        check(TlsMode::Require, files(None, Some("a"), None), "has no key");
        check(TlsMode::Prefer, files(None, None, Some("a")), "has no certificate");
        check(TlsMode::VerifyFull, files(Some("/nowhere.pem"), None, None), "/nowhere.pem");
        let disabled = TlsPolicy::new(&PostgresTls { mode: TlsMode::Disable, ..PostgresTls::default() });
        assert!(disabled.expect("no file is read").is_none());
    }
}
