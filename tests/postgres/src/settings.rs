//! How a server is set up, and the text of its configuration files.

use std::{fmt::Write as _, path::Path};

/// How clients prove who they are over TCP. Over the Unix socket everybody is let in: that is our own way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Auth {
    /// Not at all.
    #[default]
    Trust,
    /// By a password, SCRAM-SHA-256.
    Scram,
    /// By a password in the way of PostgreSQL 13 and older; roles need `SET password_encryption = 'md5'` first.
    Md5,
}

/// TLS over TCP, with the certificates of [`certificates`](crate::certificates).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Tls {
    /// The server has none.
    #[default]
    Off,
    /// Clients choose.
    Offered,
    /// Clients without it are refused.
    Required,
    /// Clients need a certificate of the test authority, too.
    ClientCertificate,
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How clients prove who they are over TCP.
    pub auth: Auth,
    /// TLS over TCP.
    pub tls: Tls,
    /// Off by default: a process that is killed loses nothing that the kernel has.
    pub fsync: bool,
    /// `minimal`, `replica` or, by default, `logical`.
    pub wal_level: String,
    /// Slots.
    pub max_replication_slots: u32,
    /// Connections that stream; `minimal` allows none.
    pub max_wal_senders: u32,
    /// Connections altogether.
    pub max_connections: u32,
    /// WAL that a slot may hold back, as `"64MB"`; none = without limit.
    pub max_slot_wal_keep_size: Option<String>,
    /// Takes a second longer: a cluster by an `initdb` of its own. Clusters are otherwise copies of one, and so have one
    /// system identifier.
    pub own_identity: bool,
    /// Any other settings; they win over what stands above.
    pub more: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auth: Auth::Trust,
            tls: Tls::Off,
            fsync: false,
            wal_level: "logical".to_owned(),
            max_replication_slots: 32,
            max_wal_senders: 32,
            max_connections: 200,
            max_slot_wal_keep_size: None,
            own_identity: false,
            more: Vec::new(),
        }
    }
}

impl Settings {
    /// With one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.more.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What is appended to `postgresql.conf`, where the last line of a name counts.
    pub(crate) fn configuration(&self, port: u16, socket_dir: &Path) -> String {
        let senders = if self.wal_level == "minimal" { 0 } else { self.max_wal_senders };
        let on_off = |on: bool| if on { "on" } else { "off" };
        let mut lines = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("unix_socket_directories", socket_dir.display().to_string()),
            ("fsync", on_off(self.fsync).to_owned()),
            ("wal_level", self.wal_level.clone()),
            ("max_replication_slots", self.max_replication_slots.to_string()),
            ("max_wal_senders", senders.to_string()),
            ("max_connections", self.max_connections.to_string()),
            ("max_prepared_transactions", "16".to_owned()),
            ("shared_buffers", "128MB".to_owned()),
            // In the data folder: Docker's /dev/shm is small, and a killed server would leave its segments there.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("lc_messages", "C".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("log_line_prefix", "%m [%p] %q%u@%d %a ".to_owned()),
            ("log_replication_commands", "on".to_owned()),
            ("ssl", on_off(self.tls != Tls::Off).to_owned()),
        ];
        if self.tls != Tls::Off {
            lines.push(("ssl_ca_file", "ca.pem".to_owned()));
            lines.push(("ssl_cert_file", "server.pem".to_owned()));
            lines.push(("ssl_key_file", "server.key".to_owned()));
        }
        if let Some(limit) = &self.max_slot_wal_keep_size {
            lines.push(("max_slot_wal_keep_size", limit.clone()));
        }
        let more = self.more.iter().map(|(name, value)| (name.as_str(), value.clone()));
        lines.into_iter().chain(more).fold(String::from("\n"), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
            text
        })
    }

    /// `pg_hba.conf`.
    pub(crate) fn access(&self) -> String {
        let connection = match self.tls {
            Tls::Off | Tls::Offered => "host",
            Tls::Required | Tls::ClientCertificate => "hostssl",
        };
        let method = match self.auth {
            Auth::Trust => "trust",
            Auth::Scram => "scram-sha-256",
            Auth::Md5 => "md5",
        };
        let certificate = match self.tls {
            Tls::Off | Tls::Offered | Tls::Required => "",
            Tls::ClientCertificate => " clientcert=verify-ca",
        };
        // `all` leaves physical replication out; logical replication names a database and is covered.
        format!(
            "local all all trust\n\
             local replication all trust\n\
             {connection} all all 127.0.0.1/32 {method}{certificate}\n\
             {connection} replication all 127.0.0.1/32 {method}{certificate}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Auth, Settings, Tls};
    use std::path::Path;

    #[test]
    fn values_are_quoted_and_further_settings_come_last() {
        let text = Settings { wal_level: "minimal".to_owned(), ..Settings::default() }
            .with("port", "it's")
            .configuration(5432, Path::new("/tmp/x"));
        assert!(text.contains("\nmax_wal_senders = '0'\n"), "{text}");
        assert!(text.ends_with("\nport = 'it''s'\n"), "{text}");
    }

    #[test]
    fn access_over_tcp_is_as_strict_as_asked_for() {
        let settings = Settings { auth: Auth::Scram, tls: Tls::ClientCertificate, ..Settings::default() };
        let last = "hostssl replication all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n";
        assert!(settings.access().ends_with(last), "{}", settings.access());
        assert!(Settings::default().access().contains("\nhost all all 127.0.0.1/32 trust\n"));
    }
}
