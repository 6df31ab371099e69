//! Against a real PostgreSQL, started by each test for itself.

use std::time::Duration;

use tidemill_test_postgres::{Server, Settings};

use super::catalog;
use super::connect::{Connector, Control};
use super::facts::Facts;
use super::preflight::fixtures;
use crate::config::model::{Postgres, PostgresTls, Secret, TlsMode};
use crate::fault::{Fault, FaultKind};

mod copying;
mod handshake;
mod preflight;
mod refusals;
mod slots;

/// What waits for a condition gives up after this time.
const PATIENCE: Duration = Duration::from_secs(30);

fn start(settings: &Settings) -> Server {
    let root = std::env::temp_dir().join("tidemill-postgres");
    Server::start(&root, settings).unwrap_or_else(|fault| panic!("{fault}"))
}

/// Runs statements as the superuser.
fn run(server: &Server, sql: &str) -> String {
    server.psql(sql).unwrap_or_else(|fault| panic!("{sql}: {fault}"))
}

/// A pipeline's settings: over TCP, as `user`.
fn source(server: &Server, user: &str, tables: &[&str]) -> Postgres {
    Postgres {
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        database: "postgres".to_owned(),
        user: user.to_owned(),
        password: Some(Secret::new("secret")),
        tls: PostgresTls { mode: TlsMode::Disable, ..PostgresTls::default() },
        tables: tables.iter().map(ToString::to_string).collect(),
        ..fixtures::source()
    }
}

fn connector(source: &Postgres) -> Connector {
    Connector::new(source, "shop").expect("the settings are good")
}

async fn control(source: &Postgres) -> Control {
    connector(source).control().await.unwrap_or_else(|fault| panic!("{}", fault.story()))
}

async fn facts(source: &Postgres) -> Facts {
    let control = control(source).await;
    catalog::facts(&control, source).await.unwrap_or_else(|fault| panic!("{}", fault.story()))
}

/// Expects a fault of this kind, whose story has each of the words.
fn expect<T>(result: Result<T, Fault>, kind: FaultKind, words: &[&str]) {
    let Err(fault) = result else { panic!("a fault with {words:?} was expected") };
    let story = fault.story();
    for word in words {
        assert!(story.contains(word), "{word:?} is not in: {story}");
    }
    assert_eq!(fault.kind, kind, "{story}");
    assert!(!story.contains("secret"), "a password is in: {story}");
}
