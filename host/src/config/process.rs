//! `[process]` of whichever file has it, and the flags that win over it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::kind::Kind;
use super::model::Process;
use super::node::Node;
use super::problem::Problem;
use super::schema::Key;
use super::sections::process::{
    ADMIN, ADMIN_PUBLIC, BUDGET, CACHE_DIR, LANES, SHUTDOWN_TIMEOUT, STALL_AFTER,
};
use super::source::Source;
use super::table::Table;

/// Flags of `tidemill run` that win over `[process]`, as they were written.
///
/// They are text, so that a flag and its key are read and refused by the same code.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Overrides {
    /// Bytes in flight in the whole process, such as 144MiB
    #[arg(long, value_name = "SIZE", help_heading = "Process")]
    pub budget: Option<String>,
    /// Threads a pipeline that read and transform
    #[arg(long, value_name = "COUNT", help_heading = "Process")]
    pub lanes: Option<usize>,
    /// Where /health, /ready and /metrics listen; `false` for nowhere
    #[arg(long, value_name = "HOST:PORT", help_heading = "Process")]
    pub admin: Option<String>,
    /// Where compiled plugins are kept
    #[arg(long, value_name = "DIR", help_heading = "Process")]
    pub cache_dir: Option<PathBuf>,
    /// How long the end may take after a signal, such as 30s
    #[arg(long, value_name = "TIME", help_heading = "Process")]
    pub shutdown_timeout: Option<String>,
}

/// The settings of the process; problems of flags are added to `of_flags`.
pub(super) fn read(table: &Table<'_>, flags: &Overrides, of_flags: &mut Vec<Problem>) -> Option<Process> {
    let allowed = table.get(&ADMIN_PUBLIC) == Some(true);
    let mut settings = (
        table.get(&BUDGET),
        table.get(&LANES),
        read_admin(table, flags, allowed),
        cache_dir_of(flags).or_else(|| table.get(&CACHE_DIR)),
        table.get(&SHUTDOWN_TIMEOUT),
        table.get(&STALL_AFTER),
    );
    if let Some(text) = &flags.budget {
        settings.0 = flag("--budget", &BUDGET, text, of_flags);
    }
    if let Some(lanes) = flags.lanes {
        settings.1 = flag("--lanes", &LANES, &lanes.to_string(), of_flags);
    }
    if let Some(text) = &flags.admin {
        let source = Source::flag("--admin");
        let read = read_flag(&source, &ADMIN, text);
        if let Some(Some(address)) = read.filter(|_| !allowed) {
            refuse_public(address, |what| source.note_whole(allow_public(Problem::whole(&source, what))));
        }
        settings.2 = read;
        of_flags.extend(source.into_problems());
    }
    if let Some(text) = &flags.shutdown_timeout {
        settings.4 = flag("--shutdown-timeout", &SHUTDOWN_TIMEOUT, text, of_flags);
    }
    let (budget, lanes, admin, cache_dir, shutdown_timeout, stall_after) = settings;
    let cache_dir = cache_dir.or_else(|| usual_cache_dir(of_flags));
    Some(Process {
        budget_bytes: budget?,
        lanes: lanes.and_then(|lanes| usize::try_from(lanes).ok()),
        admin: admin?,
        cache_dir: cache_dir?,
        shutdown_timeout: shutdown_timeout?,
        stall_after: stall_after?,
    })
}

fn read_admin(table: &Table<'_>, flags: &Overrides, allowed: bool) -> Option<Option<SocketAddr>> {
    let admin = table.get(&ADMIN)?;
    if let Some(address) = admin.filter(|_| !allowed && flags.admin.is_none()) {
        refuse_public(address, |what| table.note_at("admin", what, allow_public));
    }
    Some(admin)
}

fn refuse_public(address: SocketAddr, note: impl FnOnce(String)) {
    if !address.ip().is_loopback() {
        note(format!("`admin` is {address}, which other machines can reach, and it asks for no password"));
    }
}

fn allow_public(problem: Problem) -> Problem {
    problem.expected("a loopback address such as \"127.0.0.1:9464\", or `admin_public = true` in [process]")
}

/// Reads a flag's text as its key would.
fn flag<K: Kind>(name: &str, key: &Key<K>, text: &str, problems: &mut Vec<Problem>) -> Option<K::Value> {
    let source = Source::flag(name);
    let value = read_flag(&source, key, text);
    problems.extend(source.into_problems());
    value
}

fn read_flag<K: Kind>(source: &Source, key: &Key<K>, text: &str) -> Option<K::Value> {
    use toml::de::DeValue;
    let number =
        DeValue::parse(text).ok().filter(|value| value.get_ref().is_integer() || value.get_ref().is_bool());
    let string = DeValue::String(text.into());
    let value = number.as_ref().map_or(&string, |value| value.get_ref());
    key.kind.read(&Node { source, name: key.name, value, span: 0..0 })
}

/// A flag is relative to the working directory, as flags are.
pub(super) fn cache_dir_of(flags: &Overrides) -> Option<PathBuf> {
    let path = flags.cache_dir.as_ref()?;
    Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
}

/// The directory that is used when nothing says another.
pub(super) fn usual_cache_dir(problems: &mut Vec<Problem>) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let usual = cache_dir(variable("XDG_CACHE_HOME").as_deref(), variable("HOME").as_deref(), is_root());
    if usual.is_none() {
        let what = "no directory for compiled plugins: HOME is not set";
        problems.push(
            Problem::whole(&Source::flag("--cache-dir"), what)
                .expected("a directory that only you can write"),
        );
    }
    usual
}

fn cache_dir(xdg: Option<&Path>, home: Option<&Path>, root: bool) -> Option<PathBuf> {
    // The XDG specification says that a relative path is to be ignored.
    let absolute = |path: Option<&Path>| path.filter(|path| path.is_absolute()).map(Path::to_owned);
    let of_user = absolute(xdg).or_else(|| absolute(home).map(|home| home.join(".cache")));
    match of_user {
        Some(folder) => Some(folder.join("tidemill")),
        None => root.then(|| PathBuf::from("/var/cache/tidemill")),
    }
}

/// Whether the process may write below `/var/cache`.
fn is_root() -> bool {
    // The owner of /proc/self is the effective user; asking libc would need unsafe code.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_the_users_own() {
        let (xdg, home) = (Path::new("/x"), Path::new("/h"));
        let check = |xdg, home, root, expected: Option<&str>| {
            assert_eq!(cache_dir(xdg, home, root), expected.map(PathBuf::from));
        };
        check(Some(xdg), Some(home), false, Some("/x/tidemill"));
        check(Some(Path::new("x")), Some(home), false, Some("/h/.cache/tidemill"));
        check(None, Some(home), true, Some("/h/.cache/tidemill"));
        check(None, None, true, Some("/var/cache/tidemill"));
        check(None, None, false, None);
    }
}
