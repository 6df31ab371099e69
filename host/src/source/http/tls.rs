//! TLS of the listener: certificate, key, and authorities of client certificates.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::model::HttpTls;
use crate::config::warn_if_open;
use crate::fault::Fault;

/// Reads the files.
///
/// # Errors
/// Halt, naming the file that cannot be used.
pub(super) fn acceptor(tls: &HttpTls) -> Result<TlsAcceptor, Fault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("certificate", &tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| {
        unusable("key", &tls.key, "a PEM file with a key without a password").caused_by(error)
    })?;
    warn_if_open("key", &tls.key);
    let clients = match &tls.client_ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => clients_of(path, &provider)?,
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(clients).with_single_cert(chain, key));
    let mut config = config.map_err(|error| {
        unusable("certificate", &tls.certificate, "the certificate that belongs to `key`").caused_by(error)
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn clients_of(
    path: &Path,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Fault> {
    let mut roots = RootCertStore::empty();
    let expected = "certificates of authorities";
    for certificate in certificates("client_ca", path)? {
        roots.add(certificate).map_err(|error| unusable("client_ca", path, expected).caused_by(error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| unusable("client_ca", path, expected).caused_by(error))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let expected = "a PEM file with certificates";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| unusable(key, path, expected).caused_by(error))?;
    if found.is_empty() { Err(unusable(key, path, expected)) } else { Ok(found) }
}

fn unusable(key: &str, path: &Path, expected: &str) -> Fault {
    Fault::halt(
        format!("cannot use `{key}` of [source.http.tls], {}", path.display()),
        format!("it has to be {expected}"),
    )
}
