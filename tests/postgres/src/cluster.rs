//! A cluster's folder: where it may lie, and how its data come there without a second of `initdb` each time.

use crate::{Fault, Programs, Settings, Tls, account::Account, certificates};
use std::{
    env,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

/// The address of a Unix socket holds 107 bytes, of which `/run-4194304-999` and `/.s.PGSQL.65535` need 31.
const SCRATCH_BYTES_MAX: usize = 76;

/// `C.UTF-8` needs no locale to be installed. What is not synced is lost in a power cut only.
const INITDB: [&str; 6] = [
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C.UTF-8",
    "--no-sync",
    "--no-instructions",
];

/// A folder with the data of one cluster, its socket and its log. Dropping it removes all that.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) home: PathBuf,
}

impl Cluster {
    /// Makes a cluster under `root`, or under the system's temporary folder where PostgreSQL cannot live there: where it
    /// may not enter, or where the path is too long for a socket.
    pub(crate) fn create(
        programs: &Programs,
        account: &Account,
        root: &Path,
        settings: &Settings,
        port: u16,
    ) -> Result<Self, Fault> {
        let cluster = Self::empty(account, root)?;
        let data = cluster.data();
        if settings.own_identity {
            initdb(programs, account, &cluster.home)?;
        } else {
            let template = template(programs, account, &scratch(account, root)?)?;
            let mut copy = account.command("cp", &cluster.home);
            run_to_end(
                "copy a PostgreSQL cluster",
                copy.args(["-a", "--reflink=auto"]).arg(template).arg(&data),
            )?;
        }
        let file = data.join("postgresql.conf");
        let attempt = || format!("write {}", file.display());
        let mut configuration = OpenOptions::new().append(true).open(&file).map_err(Fault::io(attempt()))?;
        let text = settings.configuration(port, &cluster.home);
        configuration.write_all(text.as_bytes()).map_err(Fault::io(attempt()))?;
        let file = data.join("pg_hba.conf");
        fs::write(&file, settings.access()).map_err(Fault::io(format!("write {}", file.display())))?;
        if settings.tls != Tls::Off {
            certificates::place(&data, account)?;
        }
        Ok(cluster)
    }

    /// A folder for a cluster that has no data yet.
    pub(crate) fn empty(account: &Account, root: &Path) -> Result<Self, Fault> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let scratch = scratch(account, root)?;
        remove_what_the_dead_left(&scratch);
        let run = format!("run-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on dropping it removes the folder.
        let cluster = Self { home: scratch.join(run) };
        create_for(account, &cluster.home)?;
        Ok(cluster)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    /// What a killed server leaves outside of its folder: the segment of shared memory by which it knows that it is alone.
    fn remove_shared_memory(&self) {
        let Ok(text) = fs::read_to_string(self.data().join("postmaster.pid")) else { return };
        // Line 7: key and id.
        if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            // A few bytes until the next boot, should it fail.
            drop(Command::new("ipcrm").args(["--shmem-id", id]).output());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.remove_shared_memory();
        // Scratch: what cannot be removed now is removed by the next run.
        drop(fs::remove_dir_all(&self.home));
    }
}

fn scratch(account: &Account, root: &Path) -> Result<PathBuf, Fault> {
    let create =
        |folder: &Path| fs::create_dir_all(folder).map_err(Fault::io(format!("create {}", folder.display())));
    create(root)?;
    let root = root.canonicalize().map_err(Fault::io(format!("find {}", root.display())))?;
    if root.as_os_str().as_bytes().len() <= SCRATCH_BYTES_MAX && account.may_enter(&root) {
        return Ok(root);
    }
    let elsewhere = env::temp_dir().join(format!("tidemill-postgres-{}", account.id()));
    create(&elsewhere)?;
    Ok(elsewhere)
}

/// A cluster that was never started, to be copied; kept for later runs.
fn template(programs: &Programs, account: &Account, scratch: &Path) -> Result<PathBuf, Fault> {
    let template = scratch.join(format!("template-{}-{}", programs.version()?, account.id()));
    let data = template.join("data");
    if data.is_dir() {
        return Ok(data);
    }
    // Aside and renamed: two runs at once, or one that was interrupted, never leave half a cluster behind. The name is that
    // of a run, so that it is cleared away like one.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let aside =
        scratch.join(format!("run-{}-template-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    create_for(account, &aside)?;
    let made = initdb(programs, account, &aside).and_then(|()| match fs::rename(&aside, &template) {
        Err(_) if data.is_dir() => Ok(()),
        done => done.map_err(Fault::io(format!("move a cluster to {}", template.display()))),
    });
    // It is still there only when somebody else was faster, or after a failure that is told anyway.
    drop(fs::remove_dir_all(&aside));
    made.map(|()| data)
}

fn create_for(account: &Account, folder: &Path) -> Result<(), Fault> {
    fs::create_dir(folder).map_err(Fault::io(format!("create {}", folder.display())))?;
    account.give(folder)
}

fn initdb(programs: &Programs, account: &Account, home: &Path) -> Result<(), Fault> {
    let mut initdb = account.command(programs.path("initdb"), home);
    initdb.args(INITDB).arg("--pgdata").arg(home.join("data"));
    run_to_end("make a PostgreSQL cluster", &mut initdb)
}

pub(crate) fn run_to_end(attempt: &str, command: &mut Command) -> Result<(), Fault> {
    let output = command.output().map_err(Fault::io(attempt))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Fault::said(attempt, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Removes the folders of runs whose process is gone: a killed run cannot clean up after itself.
fn remove_what_the_dead_left(scratch: &Path) {
    for entry in fs::read_dir(scratch).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(Cluster { home: entry.path() });
        }
    }
}
