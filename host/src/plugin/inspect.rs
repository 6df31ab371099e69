//! What `tidemill check` and `tidemill plugin inspect` say about a plugin.

use std::fmt;
use std::path::PathBuf;

use super::engine::{CONFIG_HINT, CacheState, Compiled, Descriptor, Engine, Wants};
use super::refusal::tolerated;
use crate::config::model::{Transform, Wasi};
use crate::fault::Fault;

/// Loads and configures the plugin of one `[[transform]]`, and forgets it: what `tidemill check` does.
///
/// # Errors
///
/// Those of [`Engine::load`].
pub fn check(engine: &Engine, transform: &Transform) -> Result<Descriptor, Fault> {
    engine.load(transform).map(|plugin| plugin.descriptor.clone())
}

/// All that can be said about a component without giving it records.
#[derive(Debug)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub file_bytes: usize,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// Interfaces and functions that it imports, as it names them.
    pub imports: Vec<String>,
    /// Interfaces and functions that it exports.
    pub exports: Vec<String>,
    /// Whether compiling was needed.
    pub cache: CacheState,
    /// What is granted beyond `log`.
    pub wasi: Wasi,
    /// What it answers to the configuration given, or why it cannot be used.
    pub verdict: Result<Descriptor, Fault>,
}

/// Looks at a component, whether or not it is a transform, and configures it if it is.
///
/// # Errors
///
/// `Halt` if the file is no component at all. That it is one of another kind is the [`Inspection::verdict`].
pub fn inspect(engine: &Engine, transform: &Transform) -> Result<Inspection, Fault> {
    let Compiled { component, sha256, file_bytes, cache } = engine.compile(&transform.plugin)?;
    let ty = component.component_type();
    let imports = ty.imports(component.engine()).map(|(name, _)| name.to_owned()).collect();
    let exports = ty.exports(component.engine()).map(|(name, _)| name.to_owned()).collect();
    let verdict = check(engine, transform).map_err(|fault| {
        // There is no file whose `config` could be changed.
        let of_config = fault.hint.as_deref() == Some(CONFIG_HINT);
        if of_config { fault.with_hint("give it with --config '{…}'") } else { fault }
    });
    Ok(Inspection {
        path: transform.plugin.clone(),
        file_bytes,
        sha256,
        imports,
        exports,
        cache,
        wasi: transform.wasi,
        verdict,
    })
}

/// A page of whole lines: print it as it is.
impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "file      {}, {} bytes", self.path.display(), self.file_bytes)?;
        writeln!(f, "sha256    {}", self.sha256)?;
        let cache = match self.cache {
            CacheState::Taken => "compiled before, taken from the cache",
            CacheState::Written => "compiled now and kept in the cache",
            CacheState::Off => "compiled now, no cache",
        };
        writeln!(f, "code      {cache}")?;
        self.list(f, "imports", &self.imports, |import| self.about_import(import))?;
        self.list(f, "exports", &self.exports, |_| "")?;
        match &self.verdict {
            Ok(descriptor) => {
                writeln!(f, "wants     {}", wanted(descriptor.wants))?;
                let tables = if descriptor.tables.is_empty() {
                    "the pipeline's own".to_owned()
                } else {
                    descriptor.tables.iter().map(|table| format!("{table:?}")).collect::<Vec<_>>().join(", ")
                };
                writeln!(f, "tables    {tables}")
            }
            Err(fault) => writeln!(f, "refused   {}", fault.story()),
        }
    }
}

impl Inspection {
    fn list<'a>(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        names: &'a [String],
        about: impl Fn(&'a str) -> &'static str,
    ) -> fmt::Result {
        if names.is_empty() {
            return writeln!(f, "{title:<9} nothing");
        }
        names.iter().enumerate().try_for_each(|(index, name)| {
            let title = if index == 0 { title } else { "" };
            writeln!(f, "{title:<9} {name}{}", about(name))
        })
    }

    fn about_import(&self, import: &str) -> &'static str {
        match (import.starts_with("wasi:"), tolerated(import), self.wasi) {
            (true, _, Wasi::None) => " (traps when it is called)",
            (true, _, Wasi::Minimal) => " (granted by wasi = \"minimal\")",
            (false, true, _) => "",
            (false, false, _) => " (no plugin may have this)",
        }
    }
}

fn wanted(wants: Wants) -> String {
    let Wants { key, timestamp, position, headers } = wants;
    let columns = [(key, "key"), (timestamp, "timestamp"), (position, "position"), (headers, "headers")];
    let wanted: Vec<&str> = columns.iter().filter(|(wanted, _)| *wanted).map(|(_, name)| *name).collect();
    if wanted.is_empty() { "values only".to_owned() } else { format!("values, {}", wanted.join(", ")) }
}
