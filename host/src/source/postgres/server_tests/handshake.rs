use std::path::PathBuf;

use pgwire_replication::ReplicationClient;
use tidemill_test_postgres::{Auth, Server, Settings, Tls, certificates};

use super::{PATIENCE, connector, expect, run, source, start};
use crate::config::model::{Postgres, PostgresTls, Tls as Files, TlsMode};
use crate::fault::{Fault, FaultKind};
use crate::source::postgres::connect::Connector;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::trouble::Failure;

/// The certificate names `localhost` and 127.0.0.1; 127.0.0.2 is the same machine by a name that it does not have.
fn with_tls(tls: Tls) -> Server {
    let settings = Settings { tls, auth: Auth::Scram, ..Settings::default() };
    let server = start(&settings.with("listen_addresses", "127.0.0.1,127.0.0.2"));
    run(&server, "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret'");
    server
}

fn reader(server: &Server, host: &str, mode: TlsMode, ca: Option<PathBuf>) -> Postgres {
    let tls = PostgresTls { mode, files: Files { ca, ..Files::default() } };
    Postgres { host: host.to_owned(), tls, ..source(server, "reader", &["public.*"]) }
}

/// Connects in all three ways; tells whether the connections are encrypted.
async fn connect(source: &Postgres) -> Result<bool, Fault> {
    let connector = connector(source);
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let control = connector.control().await?;
    let row =
        control.client().query_one(encrypted, &[]).await.map_err(|error| control.fault("ask", error))?;
    let mut session = connector.copying().await?;
    let rows = session.run(encrypted).await.map_err(|failure| failure.fault("ask", source))?;
    let encrypted: bool = row.get(0);
    assert_eq!(rows, [[Some(if encrypted { "t" } else { "f" }.to_owned())]]);
    stream(&connector).await?;
    Ok(encrypted)
}

/// The replication client reaches the server and is told that there is no such slot.
async fn stream(connector: &Connector) -> Result<(), Fault> {
    let config = connector.replication_config(Lsn(0))?;
    let failed = |error| Failure::from(error).fault("follow the changes", connector.source());
    let mut client = ReplicationClient::connect(config).await.map_err(failed)?;
    let refused = tokio::time::timeout(PATIENCE, client.wait_started()).await.expect("an answer in time");
    match refused.map_err(Failure::from) {
        Err(Failure::Server { code, .. }) if code == "42704" => Ok(()),
        Err(failure) => Err(failure.fault("follow the changes", connector.source())),
        Ok(()) => panic!("there is no slot to stream from"),
    }
}

#[tokio::test]
async fn each_mode_is_as_strict_as_libpqs() {
    let server = with_tls(Tls::Offered);
    let (ours, stranger) = (Some(certificates::authority()), Some(certificates::stranger()));
    for (host, mode, ca, encrypted) in [
        ("127.0.0.1", TlsMode::Disable, None, false),
        ("127.0.0.1", TlsMode::Prefer, None, true),
        ("127.0.0.1", TlsMode::Require, None, true),
        ("127.0.0.2", TlsMode::Require, None, true),
        ("127.0.0.1", TlsMode::VerifyCa, ours.clone(), true),
        ("127.0.0.2", TlsMode::VerifyCa, ours.clone(), true),
        ("127.0.0.2", TlsMode::Require, ours.clone(), true),
        ("127.0.0.1", TlsMode::VerifyFull, ours.clone(), true),
        ("localhost", TlsMode::VerifyFull, ours.clone(), true),
    ] {
        let connected = connect(&reader(&server, host, mode, ca)).await;
        let story = connected.as_ref().map_err(Fault::story);
        assert_eq!(story, Ok(&encrypted), "{mode:?} at {host}");
    }
    for (host, mode, ca, why) in [
        ("127.0.0.1", TlsMode::VerifyCa, stranger.clone(), "UnknownIssuer"),
        ("127.0.0.1", TlsMode::Require, stranger.clone(), "UnknownIssuer"),
        ("127.0.0.1", TlsMode::VerifyFull, stranger, "UnknownIssuer"),
        ("127.0.0.2", TlsMode::VerifyFull, ours, "not valid for name \"127.0.0.2\""),
        ("127.0.0.1", TlsMode::VerifyFull, None, "UnknownIssuer"),
    ] {
        let refused = connect(&reader(&server, host, mode, ca)).await;
        expect(refused, FaultKind::Halt, &[why, "[source.postgres.tls]"]);
    }
}

#[tokio::test]
async fn a_server_without_tls_is_taken_only_by_those_who_do_not_insist() {
    let server = with_tls(Tls::Off);
    let connected = connect(&reader(&server, "127.0.0.1", TlsMode::Prefer, None)).await;
    assert_eq!(connected.map_err(|fault| fault.story()), Ok(false));
    let insisting = connector(&reader(&server, "127.0.0.1", TlsMode::Require, None));
    expect(insisting.control().await, FaultKind::Halt, &["the server has no TLS", "its mode"]);
    expect(insisting.copying().await, FaultKind::Halt, &["the server has no TLS"]);
}

#[tokio::test]
async fn a_server_that_insists_says_what_to_set() {
    let server = with_tls(Tls::Required);
    let connector = connector(&reader(&server, "127.0.0.1", TlsMode::Disable, None));
    expect(connector.control().await, FaultKind::Halt, &["no encryption", "mode = \"require\""]);
    let over_socket = Postgres {
        host: server.socket_dir().display().to_string(),
        ..reader(&server, "", TlsMode::VerifyFull, None)
    };
    assert_eq!(
        connect(&over_socket).await.map_err(|fault| fault.story()),
        Ok(false),
        "as in libpq: no TLS there"
    );
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_wanted() {
    let server = with_tls(Tls::ClientCertificate);
    let mut source = reader(&server, "127.0.0.1", TlsMode::VerifyFull, Some(certificates::authority()));
    let bare = connector(&source).control().await;
    expect(bare, FaultKind::Halt, &["client certificate"]);
    source.tls.files.certificate = Some(certificates::client());
    source.tls.files.key = Some(certificates::client_key());
    assert_eq!(connect(&source).await.map_err(|fault| fault.story()), Ok(true));
}
