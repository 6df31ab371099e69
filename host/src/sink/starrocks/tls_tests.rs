//! `https` addresses: a server with a certificate that only `ca` vouches for.
//!
//! `fixtures/localhost.*` were made once, for 127.0.0.1 and a hundred years, and are used nowhere else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::client::Client;
use super::scripted::{cluster, json, load, redirect};
use crate::fault::FaultKind;
use crate::sink::Outcome;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/sink/starrocks/fixtures").join(name)
}

/// A TLS server for one request; gives back its body.
struct TlsServer {
    url: String,
    thread: JoinHandle<std::io::Result<Vec<u8>>>,
}

impl TlsServer {
    fn start(answer: impl FnOnce(&str) -> String + Send + 'static) -> Self {
        let certificate = CertificateDer::from_pem_file(fixture("localhost.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(fixture("localhost.key")).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("bound"));
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            let connection = ServerConnection::new(Arc::new(config)).map_err(std::io::Error::other)?;
            let mut stream = BufReader::new(StreamOwned::new(connection, stream));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if stream.read_line(&mut head)? == 0 {
                    return Ok(Vec::new());
                }
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.and_then(|text| text.parse().ok()).unwrap_or(0)];
            if !body.is_empty() {
                stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                stream.read_exact(&mut body)?;
            }
            stream.get_mut().write_all(answer(&head).as_bytes())?;
            Ok(body)
        });
        Self { url, thread }
    }
}

#[tokio::test]
async fn a_load_over_tls_trusts_the_authority_of_the_file_and_no_other() {
    let be = TlsServer::start(|_| json(r#"{"TxnId":5,"Status":"Success","NumberTotalRows":3}"#));
    let to_be = redirect(&format!("{}/api/shop/orders/_stream_load", be.url));
    let fe = TlsServer::start(move |_| to_be);
    let mut file = cluster(&[&fe.url]);
    file.ca = Some(fixture("localhost.pem"));
    let mut trusted = load(file.clone());
    let outcome = Client::new(Arc::new(file)).expect("a client").attempt(&mut trusted).await;
    assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    let body = be.thread.join().expect("no panic").expect("a request");
    assert_eq!(body, trusted.segments.concat());
    fe.thread.join().expect("no panic").expect("a request");

    let fe = TlsServer::start(|_| json(r#"{"Status":"Success"}"#));
    let file = cluster(&[&fe.url]);
    let Ok(client) = Client::new(Arc::new(file.clone())) else {
        return; // A machine without any certificate authority says so at once.
    };
    let outcome = client.attempt(&mut load(file)).await;
    let Outcome::Refused(fault) = outcome else { panic!("{outcome:?}") };
    assert!(fault.what.to_lowercase().contains("certificate"), "{}", fault.what);
    assert!(fe.thread.join().expect("no panic").is_err(), "the handshake failed");
}

#[test]
fn a_file_that_holds_no_certificate_halts() {
    for bad in [fixture("localhost.key"), fixture("nothing.pem")] {
        let mut file = cluster(&["http://127.0.0.1:1"]);
        file.ca = Some(bad);
        let fault = Client::new(Arc::new(file)).expect_err("no certificate");
        assert_eq!(fault.kind, FaultKind::Halt);
        assert!(fault.hint.is_some_and(|hint| hint.contains("`ca`")));
    }
}
