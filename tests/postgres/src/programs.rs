use crate::Fault;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the folder with PostgreSQL's programs, for another version than the newest that Debian installed.
pub const BIN_VARIABLE: &str = "TIDEMILL_TEST_POSTGRES_BIN";

/// Debian keeps each major version in a folder of its own, outside of `PATH`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// PostgreSQL's programs in a folder.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
}

impl Programs {
    /// Takes the folder named by [`BIN_VARIABLE`], else the newest under `/usr/lib/postgresql`.
    ///
    /// # Errors
    /// When there is no server; the text names Debian's package.
    pub fn find() -> Result<Self, Fault> {
        let found = env::var_os(BIN_VARIABLE).map(PathBuf::from).or_else(|| newest(Path::new(DEBIAN)));
        found.filter(|bin| bin.join("postgres").is_file()).map(|bin| Self { bin }).ok_or_else(|| {
            Fault::said(
                "find PostgreSQL's programs",
                format!(
                    "no `postgres` in {DEBIAN}/*/bin; `cargo xtask test` installs it, or by hand \
                     `apt-get install postgresql`, or {BIN_VARIABLE} names its folder"
                ),
            )
        })
    }

    /// The path of a program, such as `psql` or `pg_recvlogical`.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    /// The version of the server, as `15.18`.
    ///
    /// # Errors
    /// When the server's program cannot be run.
    pub fn version(&self) -> Result<String, Fault> {
        let attempt = "ask PostgreSQL for its version";
        let output =
            Command::new(self.path("postgres")).arg("--version").output().map_err(Fault::io(attempt))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        let version = text.split_whitespace().nth(2).map(str::to_owned);
        version.ok_or_else(|| Fault::said(attempt, format!("it said {text:?}")))
    }
}

fn newest(versions: &Path) -> Option<PathBuf> {
    let found = fs::read_dir(versions).ok()?.flatten().filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        // A client alone makes the folder too.
        bin.join("postgres").is_file().then_some((version, bin))
    });
    found.max().map(|(_, bin)| bin)
}

#[cfg(test)]
mod tests {
    use super::newest;
    use std::{env, fs, process};

    #[test]
    fn the_newest_version_that_has_a_server_is_taken() {
        let root = env::temp_dir().join(format!("tidemill-programs-{}", process::id()));
        for (version, program) in
            [("9", "postgres"), ("15", "postgres"), ("17", "psql"), ("common", "postgres")]
        {
            let bin = root.join(version).join("bin");
            fs::create_dir_all(&bin).expect("a folder");
            fs::write(bin.join(program), "").expect("a file");
        }
        let found = newest(&root);
        fs::remove_dir_all(&root).expect("it is ours");
        assert_eq!(found, Some(root.join("15/bin")));
        assert_eq!(newest(&root), None);
    }
}
