//! Copies of a server: a standby that streams from it, and one of its files alone.

use crate::{
    Fault, Programs, Server,
    cluster::{Cluster, run_to_end},
    free_port,
};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

impl Server {
    /// A standby that streams from this running server, made by `pg_basebackup`. It has none of its logical slots.
    ///
    /// # Errors
    /// When it cannot be made or started.
    pub fn standby(&self, root: &Path) -> Result<Self, Fault> {
        self.copied(root, |cluster| {
            let mut backup = self.account().command(self.programs().path("pg_basebackup"), &cluster.home);
            backup.arg("--host").arg(self.socket_dir()).args(["--port", &self.port().to_string()]).args([
                "--username=postgres",
                "--write-recovery-conf",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
            ]);
            run_to_end("make a standby", backup.arg("--pgdata").arg(cluster.data()))
        })
    }

    /// A standby of the files of this stopped server, its slots included: it has no primary, and nothing but what the server
    /// had when it was stopped.
    ///
    /// # Errors
    /// When it cannot be made or started.
    pub fn copy(&self, root: &Path) -> Result<Self, Fault> {
        self.copied(root, |cluster| {
            let mut copy = self.account().command("cp", &cluster.home);
            run_to_end(
                "copy a PostgreSQL cluster",
                copy.args(["-a", "--reflink=auto"]).arg(self.data_dir()).arg(cluster.data()),
            )?;
            let mut signal = self.account().command("touch", &cluster.home);
            run_to_end("make a standby of it", signal.arg(cluster.data().join("standby.signal")))
        })
    }

    /// Makes a primary of a standby, on a timeline of its own. Done when it takes writes.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn promote(&self) -> Result<(), Fault> {
        self.psql("SELECT pg_promote()").map(drop)
    }

    fn copied(&self, root: &Path, fill: impl FnOnce(&Cluster) -> Result<(), Fault>) -> Result<Self, Fault> {
        let programs = Programs::find()?;
        let port = free_port()?;
        let cluster = Cluster::empty(self.account(), root)?;
        fill(&cluster)?;
        let file = cluster.data().join("postgresql.conf");
        let attempt = || format!("write {}", file.display());
        let mut configuration = OpenOptions::new().append(true).open(&file).map_err(Fault::io(attempt()))?;
        let home = cluster.home.display();
        write!(configuration, "\nport = '{port}'\nunix_socket_directories = '{home}'\n")
            .map_err(Fault::io(attempt()))?;
        // Of the server that it was copied from, should it have died.
        drop(fs::remove_file(cluster.data().join("postmaster.pid")));
        Self::on(cluster, programs, *self.account(), port)
    }
}
