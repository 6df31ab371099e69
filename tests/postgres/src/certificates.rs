//! Certificates for tests of TLS, made once for a hundred years; the authorities' keys were thrown away.

use crate::{Fault, account::Account};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// What the server reads from its data folder.
const OF_THE_SERVER: [&str; 3] = ["ca.pem", "server.pem", "server.key"];

/// The authority that vouches for the server, as `localhost` and 127.0.0.1, and for the client.
#[must_use]
pub fn authority() -> PathBuf {
    fixture("ca.pem")
}

/// An authority that vouches for nobody.
#[must_use]
pub fn stranger() -> PathBuf {
    fixture("stranger.pem")
}

/// The certificate of a client, for the name `tidemill`.
#[must_use]
pub fn client() -> PathBuf {
    fixture("client.pem")
}

/// The key of [`client`].
#[must_use]
pub fn client_key() -> PathBuf {
    fixture("client.key")
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Puts the server's files into its data folder, readable for it alone: it insists on that.
pub(crate) fn place(data: &Path, account: &Account) -> Result<(), Fault> {
    for name in OF_THE_SERVER {
        let file = data.join(name);
        let attempt = || format!("write {}", file.display());
        let text = fs::read(fixture(name)).map_err(Fault::io(format!("read the fixture {name}")))?;
        fs::write(&file, text).map_err(Fault::io(attempt()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(Fault::io(attempt()))?;
        account.give(&file)?;
    }
    Ok(())
}
