//! The byte stream to a server: TCP or a Unix socket, with TLS if that was agreed.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::Service;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::TlsPolicy;
use super::trouble::Failure;

/// A silent peer is asked for a sign of life after this time, …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// … again and again in this rhythm, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and given up after so many questions.
const KEEPALIVE_PROBES: u32 = 3;
/// What we sent and nobody confirmed ends the connection after this time.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(60);

/// "Shall we speak TLS?", in place of a start-up message: its length and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A stream to a server. Closed when dropped.
#[derive(Debug)]
pub enum Link {
    /// TCP in the clear.
    Tcp(TcpStream),
    /// A socket in the file system.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// Reaches a server; `host` that begins with `/` is the directory of its Unix socket, for which TLS is
    /// never asked, as in libpq. The caller limits the time.
    ///
    /// # Errors
    /// When nobody answers, TLS is refused though wanted, or its certificate is not accepted.
    pub async fn open(host: &str, port: u16, tls: Option<&TlsPolicy>) -> Result<Link, Failure> {
        if host.starts_with('/') {
            let path = Path::new(host).join(format!(".s.PGSQL.{port}"));
            return Ok(Link::Unix(UnixStream::connect(&path).await?));
        }
        let mut stream = dial(host, port).await?;
        let Some(policy) = tls else { return Ok(Link::Tcp(stream)) };
        stream.write_all(&SSL_REQUEST).await?;
        match stream.read_u8().await? {
            b'S' => {}
            b'N' if policy.is_optional() => return Ok(Link::Tcp(stream)),
            b'N' => return Err(Failure::Tls("the server has no TLS".to_owned())),
            _ => return Err(Failure::Protocol("the answer to the request for TLS is no answer".to_owned())),
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Failure::Tls(format!("{host:?} can be no name in a certificate")))?;
        let stream = TlsConnector::from(policy.client()).connect(name, stream).await?;
        Ok(Link::Tls(Box::new(stream)))
    }
}

/// Tries each address of the host.
async fn dial(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(UNCONFIRMED_MAX));
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let unusable = |error: http::Error| Failure::Protocol(format!("{host:?} is no host: {error}"));
    let uri = http::Uri::builder()
        .scheme("postgres")
        .authority(authority)
        .path_and_query("/")
        .build()
        .map_err(unusable)?;
    match TowerToHyperService::new(connector).call(uri).await {
        Ok(stream) => Ok(stream.into_inner()),
        Err(error) => Err(Failure::unreached(&error)),
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            Link::Unix(stream) => Pin::new(stream).poll_read(context, into),
            Link::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Link::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Link::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Link::Unix(stream) => Pin::new(stream).poll_flush(context),
            Link::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Link::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
