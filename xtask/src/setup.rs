//! What the machine needs beyond rustup, and how it gets there. Each need is looked for first; installing is announced.

use crate::command::{self, Failure};
use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};
use tidemill_test_postgres::Programs;

/// A program that a chore calls, and the Debian package that brings it.
struct Need {
    program: &'static str,
    /// Whether the program of that name is there.
    found: fn(&str) -> bool,
    /// Arguments with which it does nothing and succeeds, where being there is not enough.
    probe: &'static [&'static str],
    package: &'static str,
    why: &'static str,
}

/// To compile at all: OpenSSL, librdkafka and SQLite are built from source. So is AWS-LC, which needs no CMake: its builder
/// runs the compiler itself where it has bindings for the platform.
const BUILD_NEEDS: [Need; 4] = [
    Need {
        program: "cc",
        found: on_path,
        probe: &[],
        package: "build-essential",
        why: "compiles librdkafka, OpenSSL and SQLite",
    },
    Need {
        program: "c++",
        found: on_path,
        probe: &[],
        package: "build-essential",
        why: "librdkafka's configure asks for it",
    },
    Need {
        program: "make",
        found: on_path,
        probe: &[],
        package: "build-essential",
        why: "builds librdkafka and OpenSSL",
    },
    Need {
        program: "perl",
        found: on_path,
        probe: &["-MFindBin", "-MIPC::Cmd", "-MPod::Usage", "-e1"],
        package: "perl",
        why: "configures OpenSSL; perl-base alone lacks modules",
    },
];

/// To run a real Kafka.
const KAFKA_NEEDS: [Need; 2] = [
    Need {
        program: "java",
        found: on_path,
        probe: &[],
        package: "default-jre-headless",
        why: "runs Apache Kafka",
    },
    Need {
        program: "mvn",
        found: on_path,
        probe: &[],
        package: "maven",
        why: "resolves Apache Kafka's jars",
    },
];

/// To run a real PostgreSQL, server and client. Debian keeps the programs outside of `PATH`.
const POSTGRES_NEEDS: [Need; 1] = [Need {
    program: "postgres",
    found: |_| Programs::find().is_ok(),
    probe: &[],
    package: POSTGRES_PACKAGE,
    why: "runs PostgreSQL",
}];
const POSTGRES_PACKAGE: &str = "postgresql";

/// The stock MySQL client with which a test counts rows, as a user would.
const CLIENT_NEEDS: [Need; 1] = [Need {
    program: "mysql",
    found: on_path,
    probe: &[],
    package: "default-mysql-client",
    why: "queries the sandbox as a user would",
}];

/// The client that sends HTTP requests, of which the benchmarks send as many as a server can take.
const HTTP_NEEDS: [Need; 1] = [Need {
    program: "wrk",
    found: on_path,
    probe: &[],
    package: "wrk",
    why: "sends the benchmarks' HTTP requests",
}];

const RUST_TARGETS: [&str; 2] = ["wasm32-unknown-unknown", "wasm32-wasip2"];
const RUST_COMPONENTS: [&str; 2] = ["clippy", "rustfmt"];

/// What is needed to build the workspace and its plugins.
pub(crate) fn for_building() -> Result<(), Failure> {
    packages(&[&BUILD_NEEDS])?;
    rust_parts("target", &RUST_TARGETS)
}

/// What is needed to build, and to run against a real PostgreSQL.
pub(crate) fn for_postgres() -> Result<(), Failure> {
    packages(&[&BUILD_NEEDS, &POSTGRES_NEEDS])?;
    rust_parts("target", &RUST_TARGETS)
}

/// What is needed to run against a real Kafka, a real PostgreSQL and a client of HTTP.
pub(crate) fn for_benchmarks() -> Result<(), Failure> {
    packages(&[&BUILD_NEEDS, &KAFKA_NEEDS, &POSTGRES_NEEDS, &HTTP_NEEDS])?;
    rust_parts("target", &RUST_TARGETS)
}

/// What is needed for the whole suite.
pub(crate) fn for_testing() -> Result<(), Failure> {
    packages(&[&BUILD_NEEDS, &KAFKA_NEEDS, &POSTGRES_NEEDS, &CLIENT_NEEDS])?;
    rust_parts("target", &RUST_TARGETS)?;
    rust_parts("component", &RUST_COMPONENTS)
}

impl Need {
    fn is_met(&self) -> bool {
        let runs = || {
            let mut probe = Command::new(self.program);
            probe.args(self.probe).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        };
        (self.found)(self.program) && (self.probe.is_empty() || runs())
    }
}

fn packages(needs: &[&[Need]]) -> Result<(), Failure> {
    let missing: Vec<&Need> = needs.iter().copied().flatten().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("`{}` is missing ({}): installing {}", need.program, need.why, need.package);
    }
    let mut names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    names.dedup();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if !on_path("apt-get") {
        return Err(Failure::new(format!(
            "this machine has no apt-get; install what Debian calls {}",
            names.join(", ")
        )));
    }
    if !is_root()? {
        return Err(Failure::new(format!(
            "installing packages needs root; run `sudo {by_hand}` and try again"
        )));
    }
    command::run(&mut apt(&["update", "--quiet"]))?;
    let mut install = apt(&["install", "--yes", "--quiet", "--no-install-recommends"]);
    let programs_only = names.contains(&POSTGRES_PACKAGE).then(NoMainCluster::ask_for).transpose()?;
    command::run(install.args(&names))?;
    drop(programs_only);
    match missing.iter().find(|need| !need.is_met()) {
        None => Ok(()),
        Some(need) => Err(Failure::new(format!(
            "{} is installed, but `{}` still does not run",
            need.package, need.program
        ))),
    }
}

/// While it is there, Debian's PostgreSQL is installed without its cluster `main`, which would be started at once, and at
/// each boot from then on: tests make clusters of their own. What Debian does later is left as it was.
struct NoMainCluster;

impl NoMainCluster {
    /// Read by the package's postinst through `include_dir` of `createcluster.conf`.
    const FOLDER: &str = "/etc/postgresql-common/createcluster.d";
    const FILE: &str = "/etc/postgresql-common/createcluster.d/tidemill-setup.conf";

    fn ask_for() -> Result<Self, Failure> {
        let asked = fs::create_dir_all(Self::FOLDER)
            .and_then(|()| fs::write(Self::FILE, "create_main_cluster = false\n"));
        asked.map(|()| Self).map_err(|cause| Failure::new(format!("write {}: {cause}", Self::FILE)))
    }
}

impl Drop for NoMainCluster {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_file(Self::FILE) {
            eprintln!("remove {}: {cause}", Self::FILE);
        }
        // It stays when somebody else has files there.
        drop(fs::remove_dir(Self::FOLDER));
    }
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Adds targets or components that the active toolchain lacks. `rust-toolchain.toml` names them too, but rustup
/// installs them by itself only where automatic installation is on.
fn rust_parts(kind: &str, wanted: &[&str]) -> Result<(), Failure> {
    if !on_path("rustup") {
        println!("no rustup here: trusting that the toolchain has the {kind}s {}", wanted.join(", "));
        return Ok(());
    }
    let listing = Command::new("rustup")
        .args([kind, "list", "--installed"])
        .current_dir(command::root())
        .output()
        .map_err(|cause| Failure::new(format!("list the installed Rust {kind}s: {cause}")))?;
    let installed = String::from_utf8_lossy(&listing.stdout);
    // components are listed with their host: `clippy-x86_64-unknown-linux-gnu`
    let missing: Vec<&str> =
        wanted.iter().copied().filter(|name| !installed.lines().any(|line| line.starts_with(name))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("the Rust toolchain lacks {}", missing.join(", "));
    let mut add = Command::new("rustup");
    command::run(add.args([kind, "add"]).args(missing).current_dir(command::root()))
}

pub(crate) fn on_path(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| is_executable(&folder.join(program))))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn is_root() -> Result<bool, Failure> {
    let output = Command::new("id")
        .arg("-u")
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| Failure::new(format!("ask for the user's id: {cause}")))?;
    Ok(output.stdout.trim_ascii() == b"0")
}
